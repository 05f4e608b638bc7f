"""Every snippet of `docs/FRONTEND.md` runs in the environment that the page names."""

import json
import os
import re
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.sync_api import Browser, Page, expect
from support.chats import AGENT_KEY
from support.clients import SDK, OneOrigin, Site, esbuild, need, open_page
from support.world import OWN_KEY, PATH, Gateway, http, read, running_upstream, until

from bff.sessions.list_query import PARAMETERS
from bff.tokens.verify import AUDIENCE, MAX_TOKEN_BYTES

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "FRONTEND.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- ([\w.]+) -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL))
HTML = (
    b'<!doctype html><title>app</title><main></main><script type="module" src="/app.js"></script>'
)


def snippet(name: str, url: str = "", api: str = "") -> str:
    """Text of a snippet, with real addresses in place of those of the page."""
    text = SNIPPETS[name]
    for example, real in (("https://gateway.example.com", url), ("https://api.trigger.dev", api)):
        text = text.replace(example, real) if real else text
    return text


def on_node(path: Path, files: dict[str, str], **environ: str) -> Any:
    """Bundle and run the *files*; return the JSON that ``main.ts`` prints."""
    for name, text in files.items():
        (path / name).write_text(text)
    (path / "out.mjs").write_bytes(esbuild(path / "main.ts", "--platform=node"))
    done = subprocess.run(
        [need("node"), path / "out.mjs"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check(token: str, gateway: Gateway, upstream: running_upstream) -> None:
    sent = {"authorization": f"Bearer {token}"}
    listed = http.get(gateway.url + PATH.rstrip("/"), headers=sent)
    unnamed = http.get(gateway.url + PATH + "chat-closed", headers=sent)
    direct = http.get(f"http://127.0.0.1:{upstream.port}{PATH}chat-1", headers=sent)

    assert [one["externalId"] for one in listed.json()["data"]] == ["chat-2", "chat-1"]
    assert unnamed.status_code == 403
    assert direct.status_code == 401, "Trigger.dev rejects the token"
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 900
    assert claims["act"] == {"sub": "ann"}


def test_typescript_snippet_mints_a_token(
    tmp_path: Path, gateway: Gateway, upstream: running_upstream
) -> None:
    main = """
        import { mintGatewayToken } from "./mint";
        console.log(JSON.stringify(await mintGatewayToken("ann", ["chat-2", "chat-1"])));
    """
    token = on_node(
        tmp_path,
        {"mint.ts": snippet("mint.ts"), "main.ts": main},
        GATEWAY_SIGNING_KEY=OWN_KEY,
    )

    _check(token, gateway, upstream)


def test_python_snippet_mints_a_token(gateway: Gateway, upstream: running_upstream) -> None:
    code = snippet("mint.py") + '\nprint(mint_gateway_token("ann", ["chat-2", "chat-1"]))\n'
    environ = {"GATEWAY_SIGNING_KEY": OWN_KEY}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )

    _check(done.stdout.strip(), gateway, upstream)


ROUTE_MAIN = """
    import { POST } from "./route";
    const ask = async (query: string) => {
      const url = "https://app.example.com/api/gateway-token" + query;
      const response = await POST(new Request(url, { method: "POST" }));
      return [response.status, await response.text(), response.headers.get("cache-control")];
    };
    const [user, ...queries] = JSON.parse(process.env.ASKED!);
    Object.assign(globalThis, { user });
    console.log(JSON.stringify(await Promise.all(queries.map(ask))));
"""
ROUTE_APP = """
    export const signedIn = async (_: Request) => (globalThis as any).user as string | null;
    export const chatsOf = async (user: string) =>
      user === "new" ? [] : Array.from({ length: 150 }, (_, i) => `chat-${i}`);
"""


def test_route_snippet_gives_tokens_by_part_and_chat(tmp_path: Path, gateway: Gateway) -> None:
    files = {"mint.ts": snippet("mint.ts"), "route.ts": snippet("route.ts")}
    files |= {"app.ts": ROUTE_APP, "main.ts": ROUTE_MAIN}

    def asked(*queries: str | None) -> list[Any]:
        environ = {"GATEWAY_SIGNING_KEY": OWN_KEY, "ASKED": json.dumps(queries)}
        answers: list[Any] = on_node(tmp_path, files, **environ)
        return answers

    def scopes(answer: list[Any]) -> list[str]:
        status, token, cached = answer
        assert (status, cached) == (200, "no-store")
        claims = jwt.decode(token, OWN_KEY, algorithms=["HS256"], audience=AUDIENCE)
        return list(claims["scopes"])

    first, second, third, one, foreign = asked(
        "ann", "", "?part=1", "?part=2", "?chat=chat-7", "?chat=chat-of-bob"
    )
    assert scopes(first) == read(*(f"chat-{i}" for i in range(100)))
    assert scopes(second) == read(*(f"chat-{i}" for i in range(100, 150)))
    assert scopes(third) == []
    assert scopes(one) == ["read:sessions:chat-7", "write:sessions:chat-7"]
    assert foreign[0] == 403
    assert asked(None, "")[0][0] == 401
    ((_, token, _),) = asked("new", "")
    listed = http.get(gateway.url + PATH.rstrip("/"), headers={"authorization": f"Bearer {token}"})
    assert (listed.status_code, listed.json()["data"]) == (200, []), "a person without chats"


def test_page_says_how_many_chats_a_token_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SIGNING_KEY", OWN_KEY * 2)
    names: dict[str, Any] = {}
    exec(snippet("mint.py"), names)  # noqa: S102  the page's own code
    header, cookie = len("Authorization: Bearer \r\n"), len("__Host-bff-token=")

    def most(size: int, around: int) -> list[int]:
        def fits(chats: int, length: int) -> bool:
            token = names["mint_gateway_token"]("user_0123456789", ["x" * length] * chats)
            return len(token) + around <= size

        return [
            bisect_left(range(2000), 1, key=lambda n: not fits(n, length)) - 1
            for length in (36, 10)
        ]

    table = DOCUMENT.partition("How many chats a token can name")[2].partition("## ")[0]
    rows = [[int(n) for n in pair] for pair in re.findall(r"\| (\d+) \| (\d+) \|", table)]
    assert rows == [most(4096, cookie), most(8192, header), most(16384, header), most(32768, 0)]
    assert MAX_TOKEN_BYTES == 32768


def test_every_package_of_a_snippet_has_its_install_line() -> None:
    installed = {name for line in re.findall(r"`npm i ([^`]+)`", DOCUMENT) for name in line.split()}
    imported = {
        re.match(r"(@[\w.-]+/)?[\w.-]+", path)[0]
        for text in SNIPPETS.values()
        for path in re.findall(r'from "([^.][^"]*)"', text)
    }

    assert imported - installed == set()
    assert "`pip install pyjwt`" in DOCUMENT


# -- in a browser


Setup = tuple[dict[str, Any], Site, Gateway]
"""The files of a site, the site, and a gateway that allows its origin."""


@pytest.fixture(scope="module")
def setup(upstream: running_upstream) -> Iterator[Setup]:
    files: dict[str, Any] = {"index_html": HTML}
    with Site(files) as site:
        settings = {"BFF_ALLOWED_ORIGINS": site.origin, "BFF_UPSTREAM_BUDGET": "off"}
        with Gateway(upstream.port, **settings) as gateway:
            yield files, site, gateway


@pytest.fixture
def app(chromium: Browser, tmp_path: Path, setup: Setup) -> Iterator["App"]:
    app = App(chromium, tmp_path, setup)
    yield app
    app.close()


class App:
    """A page of the site that runs a module with a snippet."""

    def __init__(self, browser: Browser, path: Path, setup: Setup) -> None:
        self._browser = browser
        self._path = path
        self.files, self.site, self.gateway = setup

    def run(self, name: str, main: str, *, api: str = "") -> Page:
        """Open a page that runs *main*, which may import the snippet *name*."""
        (self._path / name).write_text(snippet(name, self.gateway.url, api))
        (self._path / "main.tsx").write_text(main)
        self.files["app_js"] = esbuild(self._path / "main.tsx", "--jsx=automatic")
        return open_page(self._browser, self.site.origin)

    def add(self, name: str) -> None:
        """Put another snippet beside that of `run`."""
        (self._path / name).write_text(snippet(name, self.gateway.url))

    def close(self) -> None:
        for context in self._browser.contexts:
            context.close()


def test_fetch_snippet_returns_a_session_and_errors(app: App) -> None:
    main = 'import { getSession } from "./fetch"; Object.assign(globalThis, { getSession });'
    page = app.run("fetch.ts", main)
    page.wait_for_function("!!globalThis.getSession")
    ask = """([id, token]) => getSession(id, token).catch(
        ({ status, code, message }) => ({ status, code, message }))"""

    session = page.evaluate(ask, ["chat-1", app.gateway.token(*read("chat-1"))])
    refused = page.evaluate(ask, ["chat-2", app.gateway.token(*read("chat-1"))])

    assert session["externalId"] == "chat-1"
    assert refused == {"status": 403, "code": "unauthorized", "message": "Unauthorized"}


def test_sdk_snippet_lists_and_retrieves_sessions(app: App) -> None:
    main = 'import { openSessions } from "./client"; Object.assign(globalThis, { openSessions });'
    page = app.run("client.ts", main)
    page.wait_for_function("!!globalThis.openSessions")

    token = app.gateway.token(*read("chat-2", "chat-closed", "chat-1"))
    result = page.evaluate("token => openSessions(token)", token)

    assert result["names"] == ["chat-2", "chat-1"]
    assert result["first"]["externalId"] == "chat-2"


def test_transport_snippet_splits_requests_by_base_url(app: App) -> None:
    main = """
        import { makeReader, makeTransport } from "./transport";

        Object.assign(globalThis, { run: async (token: string) => {
          const transport = makeTransport(async () => token);
          const messages = [{ id: "m1", role: "user", parts: [{ type: "text", text: "hello" }] }];
          const message = { trigger: "submit-message", chatId: "chat-1", messages };
          const sent = await transport.sendMessages(message as any).catch((error) => error.message);
          const session = await makeReader(token).retrieveSession("chat-1");
          return session.externalId;
        } });
    """
    with running_upstream() as api:
        page = app.run("transport.ts", main, api=f"http://127.0.0.1:{api.port}")
        page.wait_for_function("!!globalThis.run")
        name = page.evaluate("token => run(token)", app.gateway.token(*read("chat-1")))

    assert name == "chat-1", "from the gateway, which has another upstream"
    requests = {(seen.method, seen.raw_path) for seen in api.seen}
    assert ("POST", "/realtime/v1/sessions/chat-1/in/append") in requests
    assert not [path for _, path in requests if path.startswith(PATH)]


CHAT = {"BFF_CHAT": "true", "BFF_IDENTITY_FIELD": "__bff", "BFF_IDENTITY_KEY": AGENT_KEY}


def test_chat_snippets_chat_and_tell_who_speaks(tmp_path: Path) -> None:
    main = """
        import { makeChat } from "./chat";
        import { speaker } from "./identity";
        const started: string[] = [];
        const token = async () => process.env.TOKEN!;
        const transport = makeChat(async (chatId) => { started.push(chatId); }, token);
        const said = { id: "m1", role: "user", parts: [{ type: "text", text: "hello" }] };
        const stream = await transport.sendMessages({
          trigger: "submit-message", chatId: "chat-1", messageId: undefined,
          messages: [said], abortSignal: undefined,
        } as any);
        let text = "";
        for await (const chunk of stream as any) text += chunk.delta ?? "";
        const seen = await (await fetch(process.env.SEEN!)).json();
        const metadata = seen.payload.metadata;
        const foreign = await speaker(metadata, "chat-2").catch((error) => error.message);
        console.log(JSON.stringify([started, text, await speaker(metadata, "chat-1"), foreign]));
        process.exit(0);
    """
    with running_upstream() as api, Gateway(api.port, **CHAT) as chats:
        files = {"main.ts": main, "identity.ts": snippet("identity.ts")}
        files["chat.ts"] = snippet("chat.ts", chats.url)
        inputs = api.app.chats.channel(api.app.environments[0], "chat-1").inputs
        token = chats.token(
            "read:sessions:chat-1", "write:sessions:chat-1", act={"sub": "ann"}
        )  # fmt: skip
        with Site({"index_html": lambda: inputs[0]}) as site:
            printed = on_node(
                tmp_path, files, TOKEN=token, BFF_IDENTITY_KEY=AGENT_KEY, SEEN=site.origin + "/"
            )

    assert printed == [
        ["chat-1"], "hello — answered, üñí 😀 done.", "ann", "an identity of another chat",
    ]  # fmt: skip


def test_react_snippet_shows_a_list_and_mints_once(app: App) -> None:
    scopes = read("chat-2", "chat-1")
    tokens = [app.gateway.token(*scopes, exp=1), app.gateway.token(*scopes)]
    minted: list[str] = []

    def mint() -> bytes:
        minted.append(tokens[min(len(minted), 1)])
        return minted[-1].encode()

    app.files["api/gateway-token"] = mint
    main = """
        import { createRoot } from "react-dom/client";
        import { useSession, useSessions } from "./sessions";

        function App() {
          const list = useSessions();
          const one = useSession("chat-1");
          const other = useSession("not-mine");
          return <>
            <ul>{list.data?.data.map((chat) => <li key={chat.id}>{chat.externalId}</li>)}</ul>
            <p>{one.data?.taskIdentifier}</p>
            <output>{other.error?.code}</output>
          </>;
        }
        createRoot(document.querySelector("main")!).render(<App />);
    """
    page = app.run("sessions.ts", main)

    expect(page.locator("li")).to_have_text(["chat-2", "chat-1"])
    expect(page.locator("p")).to_have_text("my-chat")
    expect(page.locator("output")).to_have_text("unauthorized")
    assert minted == tokens, "three requests failed with the expired token; one of them minted"


LIST_MAIN = """
    import { createRoot } from "react-dom/client";
    import { afterNewChat, afterSignOut, useSessions } from "./sessions";
    Object.assign(globalThis, { afterNewChat, afterSignOut });

    function App() {
      const list = useSessions();
      return <>
        <ul>{list.data?.data.map((chat: any) => <li key={chat.id}>{chat.externalId}</li>)}</ul>
        <output>{list.error?.message}</output>
      </>;
    }
    createRoot(document.querySelector("main")!).render(<App />);
"""


def test_react_snippet_recovers_renews_and_forgets_tokens(app: App) -> None:
    """A sign-in page does not count as a token, and the next poll mints again."""
    answers: list[bytes] = [b"<!doctype html><title>sign in</title>"]
    minted: list[bytes] = []

    def mint() -> bytes:
        minted.append(answers[0])
        return answers[0]

    app.files["api/gateway-token"] = mint
    page = app.run("sessions.ts", LIST_MAIN)
    page.clock.install()
    page.reload()
    expect(page.locator("output")).to_have_text("no token")
    assert len(minted) == 2, "once for each time that the page was opened"

    answers[0] = app.gateway.token(*read("chat-1")).encode()
    page.clock.run_for(6_000)
    expect(page.locator("li")).to_have_text(["chat-1"])
    expect(page.locator("output")).to_have_text("")

    answers[0] = app.gateway.token(*read("chat-2", "chat-1")).encode()
    page.evaluate("afterNewChat()")
    expect(page.locator("li")).to_have_text(["chat-2", "chat-1"])

    answers[0] = b"<!doctype html><title>sign in</title>"
    page.evaluate("afterSignOut()")
    expect(page.locator("li")).to_have_count(0)
    expect(page.locator("output")).to_have_text("no token")
    assert minted[-1] == answers[0], "the token of before is not sent again"


def test_cookie_snippet_needs_no_token_in_the_page(
    chromium: Browser, tmp_path: Path, upstream: running_upstream
) -> None:
    (tmp_path / "cookie.ts").write_text(snippet("cookie.ts"))
    (tmp_path / "main.ts").write_text(
        'import { getSession } from "./cookie"; Object.assign(globalThis, { getSession });'
    )
    name = "__Host-bff-token"
    with Gateway(upstream.port, BFF_TOKEN_COOKIE=name) as gateway:
        token = gateway.token(*read("chat-1"))
        cookie = f"{name}={token}; Secure; HttpOnly; SameSite=Strict; Path=/"
        with OneOrigin(gateway.port, cookie, prefix="/trigger") as site:
            site.pages = {"/login": HTML, "/app.js": esbuild(tmp_path / "main.ts")}
            page = open_page(chromium, site.origin + "/login")
            page.wait_for_function("!!globalThis.getSession")
            session = page.evaluate("() => getSession('chat-1')")
            refused = page.evaluate("() => getSession('chat-2').catch(({ code }) => code)")
            cookies = page.evaluate("() => document.cookie")
            page.context.close()

    assert (session["externalId"], refused, cookies) == ("chat-1", "unauthorized", "")


def test_live_snippets_show_each_change(app: App, upstream: running_upstream) -> None:
    tokens = [app.gateway.token(*read("chat-2")), app.gateway.token(*read("chat-2", "chat-1"))]
    minted: list[str] = []

    def mint() -> bytes:
        minted.append(tokens[min(len(minted), 1)])
        return minted[-1].encode()

    app.files["api/gateway-token"] = mint
    app.files["api/gateway-token?part=1"] = app.gateway.token(*read("chat-closed")).encode()
    app.add("live.ts")
    main = """
        import { useState } from "react";
        import { createRoot } from "react-dom/client";
        import { useLive } from "./useLive";

        function App() {
          const [version, setVersion] = useState(0);
          const chats = useLive("/api/v1/sessions", version);
          const further = useLive("/api/v1/sessions", 0, 1);
          return <>
            <ul>{chats?.map((c) => <li key={c.id}>{c.externalId} {c.taskIdentifier}</li>)}</ul>
            <ol>{further?.map((c) => <b key={c.id}>{c.externalId}</b>)}</ol>
            <button onClick={() => setVersion(1)}>new chat</button>
          </>;
        }
        createRoot(document.querySelector("main")!).render(<App />);
    """
    page = app.run("useLive.ts", main)
    document = upstream.app.environments[0].find("chat-2")
    assert document is not None

    expect(page.locator("li")).to_have_text(["chat-2 my-chat"])
    expect(page.locator("b")).to_have_text(["chat-closed"])
    document["taskIdentifier"] = "another"
    expect(page.locator("li")).to_have_text(["chat-2 another"])
    document["taskIdentifier"] = "my-chat"
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.headers.get("authorization", "")))
    signed_out = "<!doctype html><title>sign in</title>"
    page.route("**/api/gateway-token", lambda route: route.fulfill(body=signed_out))
    with page.expect_response("**/api/gateway-token"):
        page.click("button")
    page.unroute("**/api/gateway-token")
    expect(page.locator("li")).to_have_text(["chat-2 my-chat", "chat-1 my-chat"])
    assert minted == tokens
    assert not [one for one in sent if "doctype" in one], "a sign-in page is no token"


def test_event_source_snippet_needs_the_cookie_alone(
    chromium: Browser, tmp_path: Path, upstream: running_upstream
) -> None:
    (tmp_path / "events.ts").write_text(snippet("events.ts"))
    (tmp_path / "main.ts").write_text("""
        import { followWithCookie } from "./events";
        const shown = document.querySelector("main")!;
        let renewals = 0;
        const stop = followWithCookie((chats) => {
          shown.textContent = chats.map((chat) => chat.taskIdentifier).join();
        }, async () => { if (!renewals++) throw new Error("the first renewal fails"); });
        Object.assign(globalThis, { stop });
    """)
    name = "__Host-bff-token"
    document = upstream.app.environments[0].find("chat-1")
    assert document is not None
    with Gateway(upstream.port, BFF_TOKEN_COOKIE=name) as gateway:
        token = gateway.token(*read("chat-1"))
        cookie = f"{name}={token}; Secure; HttpOnly; SameSite=Strict; Path=/"
        with OneOrigin(gateway.port, cookie, prefix="/trigger") as site:
            site.pages = {"/login": HTML, "/app.js": esbuild(tmp_path / "main.ts")}
            page = open_page(chromium, "about:blank")
            refused = re.compile("/trigger/api/v1/sessions$")
            page.route(refused, lambda route: route.fulfill(status=401), times=1)
            page.goto(site.origin + "/login")
            expect(page.locator("main")).to_have_text("my-chat")
            document["taskIdentifier"] = "another"
            expect(page.locator("main")).to_have_text("another")
            document["taskIdentifier"] = "my-chat"
            assert _streams(gateway) == 1
            page.evaluate("stop()")
            until(lambda: _streams(gateway) == 0)
            page.context.close()


def _streams(gateway: Gateway) -> float:
    metrics = http.get(gateway.ops_url + "/metrics").text
    return float(re.search(r"^bff_listeners (\S+)", metrics, re.MULTILINE)[1])


def test_react_snippet_polls(app: App) -> None:
    app.files["api/gateway-token"] = lambda: app.gateway.token(*read("chat-1")).encode()
    main = """
        import { createRoot } from "react-dom/client";
        import { useSession } from "./sessions";
        const App = () => <p>{useSession("chat-1").data?.externalId}</p>;
        createRoot(document.querySelector("main")!).render(<App />);
    """
    page = app.run("sessions.ts", main)
    expect(page.locator("p")).to_have_text("chat-1")
    page.clock.install()
    page.reload()
    expect(page.locator("p")).to_have_text("chat-1")

    with page.expect_response(re.compile("/api/v1/sessions/chat-1")) as poll:
        page.clock.run_for(15_000)

    assert poll.value.status in (200, 304)


def test_typed_snippet_has_the_types_of_the_gateway(gateway: Gateway, tmp_path: Path) -> None:
    (command,) = re.findall(r"^    npx (openapi-typescript .+)$", DOCUMENT, re.MULTILINE)
    tool, *arguments = command.replace("https://gateway.example.com", gateway.url).split()
    tools = SDK / "node_modules/.bin"
    subprocess.run([tools / tool, *arguments], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "typed.ts").write_text(snippet("typed.ts"))
    (tmp_path / "use.ts").write_text("""
        import { readSession } from "./typed";
        const read = await readSession("chat-1", "token");
        const shown: string | null = "id" in read ? read.closedReason : read.code;
        // @ts-expect-error: the policy hides this field
        const hidden = "id" in read ? read.triggerConfig : null;
    """)
    options = "--noEmit --strict --target es2022 --module es2022 --moduleResolution bundler"
    done = subprocess.run(
        [tools / "tsc", *options.split(), "use.ts"],
        cwd=tmp_path, check=False, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout


def test_page_tests_every_snippet_and_lists_every_parameter() -> None:
    source = Path(__file__).read_text()

    assert set(SNIPPETS) == {name for name in SNIPPETS if f'"{name}"' in source}, (
        "a snippet without a test"
    )
    assert DOCUMENT.count("```") == 2 * len(SNIPPETS), "a code block without a name"
    assert [name for name in PARAMETERS if f"`{name}`" not in DOCUMENT] == []

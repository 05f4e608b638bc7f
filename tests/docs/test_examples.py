"""The example apps of `docs/examples`, in Chromium, in front of the pretend upstream.

Next.js takes more than a minute to install and to build. So a usual run checks the types of that
app, and runs the plain one; `make example` runs both.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect
from support.clients import SDK, need, open_page
from support.engines import free_port
from support.world import OWN_KEY, Gateway, http, running_upstream, until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NEXT = EXAMPLES / "next"
ANSWER = "hello — answered, üñí 😀 done."


@contextmanager
def gateway_for(origin: str) -> Iterator[Gateway]:
    with (
        running_upstream() as upstream,
        Gateway(upstream.port, BFF_CHAT="true", BFF_ALLOWED_ORIGINS=origin) as gateway,
    ):
        yield gateway


@contextmanager
def serving(command: list[str | Path], folder: Path, origin: str, **environ: str) -> Iterator[None]:
    """Run the server of an app until it answers at *origin*, and afterwards end it."""
    environ = {"PATH": os.environ["PATH"], "GATEWAY_SIGNING_KEY": OWN_KEY} | environ
    with subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: _answers(origin))
            yield
        finally:
            process.kill()


def _answers(origin: str) -> bool:
    try:
        return http.get(origin).status_code == 200
    except httpx2.ConnectError:
        return False


def test_plain_example_lists_and_chats(chromium: Browser) -> None:
    assert len((EXAMPLES / "plain/index.html").read_text().splitlines()) == 40
    port = str(free_port())
    origin = f"http://localhost:{port}"
    with gateway_for(origin) as gateway:
        environ = {"GATEWAY_URL": gateway.url, "PORT": port, "CHATS": "chat-2,chat-closed"}
        with serving([need("node"), "server.mjs"], EXAMPLES / "plain", origin, **environ):
            page = open_page(chromium, "about:blank")
            signed_out = "<!doctype html>\n<title>sign in</title>"
            token = re.compile(r"/api/gateway-token\?chat=chat-2$")
            page.route(token, lambda route: route.fulfill(body=signed_out), times=1)
            page.goto(origin)
            expect(page.locator("li")).to_have_text(["chat-2 open", "chat-closed closed"])
            page.get_by_label("Message").fill("hello")
            page.get_by_role("button", name="Send").click()
            expect(page.get_by_role("log")).to_contain_text(ANSWER)
            assert [text.splitlines()[0] for text in page.console] == ["Error: no token: 200"]
            page.context.close()


def test_next_example_has_right_types(tmp_path: Path) -> None:
    """The compiler reads the packages that the tests of clients use, so Next.js is not needed."""
    shutil.copytree(NEXT, tmp_path / "next", ignore=shutil.ignore_patterns("node_modules", ".next"))
    (tmp_path / "next/node_modules").symlink_to(SDK / "node_modules")
    compiler = SDK / "node_modules/typescript/bin/tsc"
    done = subprocess.run(
        [need("node"), compiler, "-p", tmp_path / "next"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(
    not os.environ.get("EXAMPLE"),
    reason="make example runs it: Next.js takes a minute or two to install and to build",
)
def test_next_example_signs_in_lists_and_chats(chromium: Browser) -> None:
    port = str(free_port())
    origin = f"http://localhost:{port}"
    program = NEXT / "node_modules/next/dist/bin/next"
    with gateway_for(origin) as gateway:
        public = {"NEXT_PUBLIC_GATEWAY_URL": gateway.url, "NEXT_TELEMETRY_DISABLED": "1"}
        subprocess.run(
            [need("node"), program, "build"],
            cwd=NEXT, env={"PATH": os.environ["PATH"], **public}, check=True,
        )  # fmt: skip
        start: list[str | Path] = [need("node"), program, "start", "-p", port]
        with serving(start, NEXT, origin, CHATS="chat-2,chat-closed", **public):
            page = open_page(chromium, origin)
            page.get_by_role("button", name="Sign in as ann").click()
            expect(page.locator("li")).to_have_text(["chat-2 open", "chat-closed closed"])
            page.get_by_role("button", name="chat-2").click()
            page.get_by_label("Message").fill("hello")
            page.get_by_role("button", name="Send").click()
            expect(page.get_by_role("log")).to_contain_text(ANSWER)
            page.reload()
            page.get_by_role("button", name="Sign in as ann").click()
            page.get_by_role("button", name="chat-2").click()
            page.get_by_label("Message").fill("again")
            page.get_by_role("button", name="Send").click()
            expect(page.get_by_role("log")).to_contain_text("again — answered")
            expect(page.get_by_role("log")).not_to_contain_text(ANSWER)
            page.get_by_role("button", name="Sign in as bob").click()
            expect(page.locator("ul")).to_have_count(1)
            expect(page.locator("li")).to_have_count(0)  # a person without chats
            page.get_by_role("button", name="Sign out").click()
            expect(page.locator("ul")).to_have_count(0)
            page.context.close()


def test_next_example_has_the_snippets_of_the_page() -> None:
    """Only the address of the gateway differs."""
    document = (EXAMPLES.parent / "FRONTEND.md").read_text()
    snippets = dict(re.findall(r"<!-- ([\w.]+) -->\n```\w+\n(.*?)```", document, re.DOTALL))
    app = EXAMPLES / "next/app"
    for name, path in (
        ("sessions.ts", app / "sessions.ts"),
        ("mint.ts", app / "api/gateway-token/mint.ts"),
        ("route.ts", app / "api/gateway-token/route.ts"),
    ):
        text = snippets[name].replace(
            '"https://gateway.example.com"', "process.env.NEXT_PUBLIC_GATEWAY_URL!"
        )
        assert path.read_text() == text, name

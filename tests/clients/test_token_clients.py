"""Tokens in frontends: a cookie in Chromium; the official SDK when upstream verifies tokens."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from support.clients import Node, OneOrigin, open_page
from support.hostile import eventually
from support.world import (
    FRIENDLY,
    PATH,
    ROOT_KEY,
    Gateway,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff.demo.upstream import Answer, Seen

NAME = "__Host-bff-token"


@pytest.fixture(scope="module")
def cookies(upstream: running_upstream) -> Iterator[Gateway]:
    with Gateway(upstream.port, BFF_TOKEN_COOKIE=NAME, BFF_ALLOWED_ORIGINS="*") as gateway:
        yield gateway


FETCH = """async ([path, options]) => {
    const reply = await fetch(path, options ?? {});
    return { status: reply.status, body: await reply.json().catch(() => null) };
}"""


@contextmanager
def logged_in(chromium: Browser, site: OneOrigin) -> Iterator[Page]:
    page = open_page(chromium, site.origin + "/login")
    yield page
    page.context.close()


@pytest.mark.parametrize("same_site", ["Strict", "None"])
def test_same_origin_page_reads_sessions_but_not_the_token(
    chromium: Browser, cookies: Gateway, same_site: str
) -> None:
    token = cookies.token(*read("chat-1", "chat-2"))
    cookie = f"{NAME}={token}; Path=/; Secure; HttpOnly; SameSite={same_site}"
    with OneOrigin(cookies.port, cookie) as site, logged_in(chromium, site) as page:
        read_one = page.evaluate(FETCH, [PATH + "chat-1", None])
        listed = page.evaluate(FETCH, [PATH.rstrip("/"), None])
        other = page.evaluate(FETCH, [PATH + "chat-closed", None])
        written = page.evaluate(FETCH, [PATH + "chat-1", {"method": "POST"}])
        header = {"headers": {"authorization": "Bearer not-a-token"}}
        with_header = page.evaluate(FETCH, [PATH + "chat-1", header])
        stored = page.evaluate(
            "() => document.cookie + JSON.stringify(Object.entries(localStorage))"
        )

    assert (read_one["status"], read_one["body"]["externalId"]) == (200, "chat-1")
    assert [one["externalId"] for one in listed["body"]["data"]] == ["chat-1", "chat-2"]
    assert (other["status"], other["body"]["code"]) == (403, "unauthorized")
    assert (written["status"], written["body"]["code"]) == (405, "method_not_allowed")
    assert (with_header["status"], with_header["body"]["code"]) == (401, "token_invalid")
    assert NAME not in stored
    assert token not in stored
    assert {site for _, site, _, _ in site.seen} == {"same-origin"}
    assert all(had for *_, had, _ in site.seen), "the browser sent the cookie each time"


ATTACK = (Path(__file__).parent.parent / "support" / "attack.js").read_text()


@pytest.mark.parametrize("where", ["127.0.0.1", "localhost"], ids=["cross-site", "same-site"])
def test_foreign_page_reads_nothing_and_causes_no_load(
    chromium: Browser, cookies: Gateway, upstream: running_upstream, where: str
) -> None:
    """The worst case: a cookie with SameSite=None, CORS for all origins, a same-site page."""
    token = cookies.token(*read("chat-2"), jti=where)
    cookie = f"{NAME}={token}; Path=/; Secure; HttpOnly; SameSite=None"
    with (
        OneOrigin(cookies.port, cookie) as site,
        OneOrigin(cookies.port, "a=b") as foreign,
        logged_in(chromium, site) as page,
    ):
        before = len(upstream.seen)
        target = f"{site.origin}{PATH}chat-2"
        page.goto(f"http://{where}:{foreign.port}/")
        results = page.evaluate(ATTACK, target)
        attacks = len(site.seen)
        page.goto(f"http://{where}:{foreign.port}/")
        with page.expect_navigation():
            page.evaluate("(target) => { location.href = target; }", target)
        shown = page.evaluate("() => document.body.innerText")
        caused = len(upstream.seen) - before

        page.goto(site.origin + "/")
        own = page.evaluate(FETCH, [PATH + "chat-2", None])

    assert own["status"] == 200, "the cookie is set and valid"
    assert caused == 0
    assert attacks >= 9
    statuses = {status for method, _, _, status in site.seen[:-1] if method != "OPTIONS"}
    assert statuses <= {401, 405}
    assert '"code": "token_missing"' in shown, "a navigation shows a refusal"
    assert results["fetch no-cors"] == [0, 0]
    assert results["img"] == results["script"] == results["module"] == "error"
    assert results["iframe"] == results["form"] == "closed"
    for name, value in results.items():
        assert "chat-2" not in str(value), name
    sites = {site for _, site, _, _ in site.seen[:-1]}
    assert sites == {"cross-site" if where == "127.0.0.1" else "same-site"}
    if where == "localhost":
        assert any(had for *_, had, _ in site.seen[:-1]), "the browser sent the cookie"


# -- the official SDK, with tokens that upstream verifies

ADDITIONAL = "tr_prod_sk_ADDITIONALsentinel0123AB"
"""An additional key. The SDK cannot sign with it, so upstream signs."""
SCOPES = {"scopes": {"read": {"sessions": ["chat-1", "chat-2", "gone"]}}}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


def minting(token: str) -> Any:
    """Make an override: upstream signs for additional keys, and answers other requests as usual."""

    async def override(seen: Seen) -> Answer | None:
        return Answer(200, {"token": token}) if seen.raw_path.endswith("/public-tokens") else None

    return override


@pytest.mark.parametrize("key", [ROOT_KEY, ADDITIONAL], ids=["the SDK signs", "upstream signs"])
def test_sdk_token_works_when_the_gateway_cannot_verify_it(node: Node, key: str) -> None:
    """The gateway has an additional key: upstream sends its id and verifies tokens."""
    opaque = {"BFF_SIGNING_KEYS": "", "BFF_ENVIRONMENT_ID": "", "TRIGGER_SECRET_KEY": ADDITIONAL}
    with running_upstream() as upstream:
        upstream.app.environments[0].additional_keys[ADDITIONAL] = ()
        signed = sign(claims(time.time(), *read("chat-1", "chat-2", "gone")), ROOT_KEY)
        upstream.app.override = minting(signed)
        with Gateway(upstream.port, **opaque) as gateway:
            assert eventually(lambda: http.get(gateway.ops_url + "/readyz").status_code == 200)
            base = f"http://127.0.0.1:{upstream.port}"
            token = node.call("mint", base, key, options=SCOPES)["value"]
            upstream.seen.clear()
            first = [
                node.call("retrieve", gateway.url, token, id=id_)
                for id_ in ("chat-1", FRIENDLY["chat-1"], "chat-1")
            ]
            listed = node.call("iterate", gateway.url, token, options={"limit": 2})
            refused = [
                node.call("retrieve", gateway.url, made, id=id_)
                for made, id_ in (
                    (token, "gone"),
                    (token, "chat-closed"),
                    (token, "no-such-chat"),
                    (token[:-4] + "AAAA", "chat-1"),
                    (sign(claims(time.time(), *read("chat-1"))), "chat-1"),
                )
            ]
            requests = Counter(seen.header("authorization") for seen in upstream.seen)

    assert [answer["value"]["externalId"] for answer in first] == ["chat-1"] * 3
    assert all("triggerConfig" not in answer["value"] for answer in first)
    assert listed["value"] == ["chat-1", "chat-2"]
    assert [(answer["kind"], answer["status"], answer["code"]) for answer in refused] == [
        ("NotFoundError", 404, "not_found"),
        ("PermissionDeniedError", 403, "unauthorized"),
        ("PermissionDeniedError", 403, "unauthorized"),
        ("AuthenticationError", 401, "token_invalid"),
        ("AuthenticationError", 401, "token_invalid"),
    ]
    assert refused[1]["error"] == refused[2]["error"]
    assert requests[f"Bearer {token}"] == 3, "one introspection for each session that it names"


def test_sdk_gets_one_503_when_upstream_limits_its_token(node: Node) -> None:
    """It gets a 503 with a near Retry-After: after a 429 it would wait a minute, four times."""
    with (
        running_upstream() as upstream,
        Gateway(upstream.port, BFF_SIGNING_KEYS="") as gateway,
    ):
        upstream.app.PUBLIC_LIMIT = 1
        token = sign(claims(time.time(), *read("chat-1", "chat-2")), ROOT_KEY)
        good = node.call("retrieve", gateway.url, token, id="chat-1")
        limited = node.call("retrieve", gateway.url, token, id="chat-2")
        again = node.call("retrieve", gateway.url, token, id="chat-2")
        hit = node.call("retrieve", gateway.url, token, id="chat-1")
        requests = [seen for seen in upstream.seen if seen.raw_path.endswith("chat-2")]

    assert good["value"]["externalId"] == hit["value"]["externalId"] == "chat-1"
    for answer in (limited, again):
        assert (answer["status"], answer["code"]) == (503, "over_budget")
        assert answer["seconds"] < 30, "one attempt"
    assert len(requests) == 1

"""The official client in Chromium, bundled as a frontend does it, on a page of another origin."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser
from support.clients import Site, bundle, open_page
from support.world import Gateway, http, read, running_upstream

from bff.demo.upstream import session

HTML = b'<!doctype html><title>app</title><script type="module" src="/app.js"></script>'
ONCE = {"maxAttempts": 1}

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site({"index_html": HTML, "app_js": bundle("browser.mjs")}) as site:
        yield site


@pytest.fixture(scope="module")
def allowing(site: Site, upstream: running_upstream) -> Iterator[Gateway]:
    """A gateway that allows only the site's origin."""
    with Gateway(
        upstream.port, BFF_ALLOWED_ORIGINS=site.origin, BFF_UPSTREAM_BUDGET="off"
    ) as gateway:
        yield gateway


@pytest.fixture
def ask(chromium: Browser, site: Site) -> Iterator[Ask]:
    """Calls a method of the SDK in a new page of the site."""
    page = open_page(chromium, site.origin)
    page.wait_for_function("globalThis.ask !== undefined")
    yield lambda call, **arguments: page.evaluate(
        "([call, options]) => ask(call, options)", [call, arguments]
    )
    page.context.close()


def counted(gateway: Gateway, route: str) -> Counter[str]:
    """The number of answers of *route*, by status."""
    metrics = http.get(gateway.ops_url + "/metrics").text
    pattern = rf'bff_requests_total{{[^}}]*route="{route}",[^}}]*status="(\d+)"}} (\d+)'
    counts: Counter[str] = Counter()
    for status, count in re.findall(pattern, metrics):
        counts[status] += int(count)
    return counts


def test_repeated_request_is_a_304_from_the_browsers_cache(ask: Ask, allowing: Gateway) -> None:
    before = [counted(allowing, route) for route in ("session", "preflight")]
    call = {"url": allowing.url, "token": allowing.token(*read("chat-1")), "id": "chat-1"}
    first = ask("retrieve", **call)
    call["token"] = allowing.token(*read("chat-1"), jti="re-minted")
    again = ask("retrieve", **call)

    assert first["value"]["externalId"] == "chat-1"
    assert again["value"] == first["value"]
    assert [one["status"] for one in first["fetched"] + again["fetched"]] == [200, 200]
    assert counted(allowing, "session") - before[0] == {"200": 1, "304": 1}
    # The client sends `cache: no-cache`, which bypasses the preflight cache too.
    assert counted(allowing, "preflight") - before[1] == {"204": 2}


@pytest.mark.parametrize(
    ("call", "scopes", "arguments", "status", "code"),
    [
        ("retrieve", [], {"token": "garbage"}, 401, "token_invalid"),
        ("retrieve", read("chat-2"), {}, 403, "unauthorized"),
        ("retrieve", read("nope"), {"id": "nope"}, 404, "not_found"),
        ("close", read("chat-1"), {}, 410, "not_served"),
        ("list", ["read:sessions"], {}, 403, "unauthorized"),
        ("list", read("chat-1"), {"options": {"tag": "x"}}, 400, "bad_request"),
    ],
)
def test_script_can_read_a_refusal(
    ask: Ask, allowing: Gateway, call: str, scopes: list, arguments: dict, status: int, code: str
) -> None:
    token = allowing.token(*scopes)

    answer = ask(call, **{"url": allowing.url, "token": token, "id": "chat-1", **arguments})

    assert (answer["status"], answer["code"]) == (status, code)
    assert answer["error"]
    assert [one["status"] for one in answer["fetched"]] == [status], "one attempt"


def test_script_can_read_the_rate_limit_headers(ask: Ask, allowing: Gateway) -> None:
    token = allowing.token(*read("chat-1"))

    (answer,) = ask("retrieve", url=allowing.url, token=token, id="chat-1")["fetched"]

    assert set(answer["headers"]) >= {
        "age",
        "cache-control",
        "cache-status",
        "etag",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "x-request-id",
    }
    assert answer["headers"]["x-ratelimit-limit"] == "300"


def test_client_waits_out_a_429_and_script_can_read_it(
    ask: Ask, site: Site, upstream: running_upstream
) -> None:
    settings = {"BFF_ALLOWED_ORIGINS": site.origin, "BFF_RATE_LIMIT": "1/second"}
    with Gateway(upstream.port, **settings) as gateway:
        call = {"url": gateway.url, "token": gateway.token(*read("chat-1")), "id": "chat-1"}
        answers = [ask("retrieve", **call) for _ in range(2)]
        refused = [ask("retrieve", retry=ONCE, **call) for _ in range(2)][-1]

    assert [answer["value"]["externalId"] for answer in answers] == ["chat-1"] * 2
    assert [one["status"] for one in answers[1]["fetched"]] == [429, 200]
    assert (refused["status"], refused["code"]) == (429, "rate_limited")
    assert {"retry-after", "x-ratelimit-reset"} <= set(refused["fetched"][0]["headers"])


def test_client_does_not_retry_a_503_and_script_can_read_it(
    ask: Ask, site: Site, upstream: running_upstream
) -> None:
    settings = {"BFF_ALLOWED_ORIGINS": site.origin, "BFF_UPSTREAM_BUDGET": "1/hour"}
    with Gateway(upstream.port, **settings) as gateway:
        call = {"url": gateway.url, "token": gateway.token(*read("chat-1", "chat-2"))}
        ask("retrieve", id="chat-1", **call)
        answer = ask("retrieve", id="chat-2", **call)
        listed = ask("list", **call)

    assert (answer["status"], answer["code"]) == (503, "over_budget")
    assert len(answer["fetched"]) == 1
    assert [one["externalId"] for one in listed["value"]] == ["chat-1"]
    assert listed["fetched"][0]["headers"]["x-unavailable-sessions"] == "1"


def test_list_is_iterated_by_page_and_then_a_304(
    ask: Ask, allowing: Gateway, upstream: running_upstream
) -> None:
    names = [f"browsed-{number}" for number in range(25)]
    for number, name in enumerate(names, start=300):
        upstream.app.environments[0].add(session(number, name))
    before = counted(allowing, "list")
    call = {"url": allowing.url, "token": allowing.token(*read(*names))}
    iterated = ask("iterate", options={"limit": 10}, **call)
    again = ask("list", options={"limit": 10}, **call)

    assert iterated["value"] == names
    assert len(iterated["fetched"]) == 3
    assert [one["externalId"] for one in again["value"]] == names[:10]
    assert counted(allowing, "list") - before == {"200": 3, "304": 1}


def test_browser_blocks_an_origin_that_is_not_allowed(chromium: Browser, allowing: Gateway) -> None:
    call = {"url": allowing.url, "token": allowing.token(*read("chat-1")), "id": "chat-1"}
    before = counted(allowing, "session")
    with Site({"index_html": HTML, "app_js": bundle("browser.mjs")}) as stranger:
        page = open_page(chromium, stranger.origin)
        page.wait_for_function("globalThis.ask !== undefined")
        answer = page.evaluate("call => ask('retrieve', call)", {"retry": ONCE, **call})
        page.context.close()

    assert (answer["message"], answer["fetched"]) == ("Connection error.", [])
    assert any("blocked by CORS policy" in text for text in page.console)
    assert counted(allowing, "session") == before, "the preflight stopped it"

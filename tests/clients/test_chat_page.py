"""`useChat` in Chromium on a page of another origin, through the shipped nginx and Caddy.

Each conversation is also held straight with the pretend upstream. The page must show the same
messages on every way.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from clients.test_chat import CHAT, SCOPES, text_of
from deploy.test_proxies import nginx, running
from playwright.sync_api import Browser
from support.clients import ConsolePage, Site, bundle, open_page
from support.world import (
    PATIENCE,
    ROOT_KEY,
    Gateway,
    claims,
    running_upstream,
    sign,
)
from topology.test_rolling import Caddy

from bff.demo.upstream import session

HTML = b'<!doctype html><title>chat</title><script type="module" src="/app.js"></script>'
ROUTE = "/realtime/v1/sessions/chat-1/out"
FIRST_DELTA_SECONDS = 1.0

Conversation = Callable[["Way"], dict[str, Any]]


class Way:
    """One way from the page to the agent: straight, or through a proxy and the gateway."""

    def __init__(self, upstream: running_upstream, url: str, key: str | None) -> None:
        self.upstream, self.url, self._key = upstream, url, key
        self.page: ConsolePage | None = None

    def token(self, seconds: float = 900.0) -> str:
        now = time.time()
        payload = claims(now, *SCOPES, act={"sub": "ann"}, exp=int(now + seconds))
        return sign(payload) if self._key is None else sign(payload, self._key)

    def open(self, *tokens: str) -> None:
        self.ask("open", url=self.url, tokens=list(tokens) or [self.token()])

    def ask(self, call: str, **options: Any) -> dict[str, Any]:
        assert self.page is not None
        answer: dict[str, Any] = self.page.evaluate(
            "([call, options]) => ask(call, options)", [call, options]
        )
        return answer

    def reload(self) -> None:
        assert self.page is not None
        self.page.reload()
        self.page.wait_for_function("globalThis.ask !== undefined")

    def write(self, **data: Any) -> None:
        """Let the agent write one record."""
        app = self.upstream.app
        channel = app.chats.channel(app.environments[0], "chat-1")
        channel.write(timestamp=1, headers=[], body='{"data":{"type":"start"}}', **data)


def turns(way: Way) -> dict[str, Any]:
    way.open()
    for text in ("one", "two"):
        way.ask("send", text=text)
    return way.ask("send", text="three")


def regenerated(way: Way) -> dict[str, Any]:
    way.open()
    way.ask("send", text="one")
    return way.ask("regenerate")


def stopped(way: Way) -> dict[str, Any]:
    way.upstream.app.chats.pace = 0.3
    way.open()
    way.ask("begin", text="a b c d e f g h", length=2)
    cut = way.ask("stop")
    assert "done" not in text_of(cut["messages"][-1])
    way.upstream.app.chats.pace = 0.002
    report = way.ask("send", text="again")
    report["messages"] = report["messages"][2:]  # the word at which it stopped is chance
    return report


def reloaded(way: Way) -> dict[str, Any]:
    way.upstream.app.chats.pace = 0.03
    way.open()
    way.ask("begin", text=" ".join("abcdefghijklmnopqrst"), length=4)
    way.reload()
    return way.ask("resume", url=way.url, tokens=[way.token()])


def approved(way: Way) -> dict[str, Any]:
    way.open()
    way.ask("send", text="use the tool")
    return way.ask("approve")


def closed(way: Way) -> dict[str, Any]:
    way.upstream.app.chats.closed_status = 409
    document = session(1, "chat-1", closedAt="2026-02-01T00:00:00.500Z", closedReason="spam")
    way.upstream.app.environments[0].add(document)
    way.open()
    return way.ask("send", text="hello")


def expired(way: Way) -> dict[str, Any]:
    way.upstream.app.chats.pace = 0.15
    way.open(way.token(2), way.token())
    return way.ask("send", text=" ".join("abcdefghijklm"))


def cut(way: Way) -> dict[str, Any]:
    way.upstream.app.chats.cut_after = 9
    way.open()
    return way.ask("send", text="a b c d e f")


CONVERSATIONS = {
    turns: "three — answered, üñí 😀 done.",
    regenerated: "regenerate-message — answered, üñí 😀 done.",
    stopped: "again — answered, üñí 😀 done.",
    reloaded: "a b c d e f g h i j k l m n o p q r s t — answered, üñí 😀 done.",
    approved: "approval-responded — answered, üñí 😀 done.",
    closed: "hello",
    expired: "a b c d e f g h i j k l m — answered, üñí 😀 done.",
    cut: "a b c d e f — answered, üñí 😀 done.",
}
"""Each conversation, with the text of its last message."""


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[list[Way]]:
    """Straight to the pretend upstream, through nginx, and through Caddy with TLS."""
    with ExitStack() as stack:
        upstream = stack.enter_context(running_upstream())
        files = {"index_html": HTML, "app_js": bundle("page.mjs")}
        site = stack.enter_context(Site(files))  # type: ignore[arg-type]
        settings = CHAT | {
            "BFF_ALLOWED_ORIGINS": site.origin,
            "BFF_TRUSTED_PROXIES": "127.0.0.1",
        }
        gateway = stack.enter_context(Gateway(upstream.port, **settings))
        homes = [tmp_path_factory.mktemp(name) for name in ("nginx", "caddy")]
        caddy = stack.enter_context(Caddy(homes[1], [gateway.port]))
        ways = [
            Way(upstream, f"http://127.0.0.1:{upstream.port}", ROOT_KEY),
            Way(upstream, stack.enter_context(running(nginx, gateway, homes[0])), None),
            Way(upstream, caddy.url, None),
        ]
        for way in ways:
            way.page = open_page(chromium, site.origin, ignore_https_errors=True)
            way.page.wait_for_function("globalThis.ask !== undefined")
        yield ways
        for way in ways:
            assert way.page is not None
            way.page.context.close()


def held(way: Way, conversation: Conversation) -> dict[str, Any]:
    chats, environment = way.upstream.app.chats, way.upstream.app.environments[0]
    chats.channels.clear()
    chats.pace, chats.cut_after, chats.closed_status = 0.002, 0, 400
    environment.add(session(1, "chat-1"))
    return conversation(way)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one.__name__)
def test_page_shows_the_same_on_every_way(ways: list[Way], conversation: Conversation) -> None:
    straight, *through = [held(way, conversation) for way in ways]

    for report in through:
        assert report["messages"] == straight["messages"]
        assert report["status"] == straight["status"]
    assert text_of(straight["messages"][-1]).endswith(CONVERSATIONS[conversation])
    assert (straight["status"] == "error") is (conversation is closed)


def test_first_delta_passes_the_proxies_at_once(ways: list[Way]) -> None:
    held(ways[0], lambda _: {})
    ways[0].upstream.app.chats.ping = 3600.0  # nothing else pushes what a proxy collects
    with ExitStack() as stack:
        parts = []
        for way in ways:
            browser = stack.enter_context(
                httpx2.Client(verify=False, trust_env=False, timeout=PATIENCE)
            )
            headers = {"authorization": f"Bearer {way.token()}", "accept": "text/event-stream"}
            answer = stack.enter_context(browser.stream("GET", way.url + ROUTE, headers=headers))
            parts.append(answer.iter_raw())
        late: list[list[float]] = [[], []]
        for _ in range(9):
            ways[0].write()
            next(parts[0])
            came = time.monotonic()
            for times, through in zip(late, parts[1:], strict=True):
                next(through)
                times.append(time.monotonic() - came)

    assert [statistics.median(times) < FIRST_DELTA_SECONDS for times in late] == [True, True], late

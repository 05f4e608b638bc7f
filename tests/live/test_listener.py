"""One listener: its browser's side, and its end."""

import asyncio
from typing import Any

import pytest

from bff.digests import etag
from bff.live import events
from bff.live.listener import Listener
from bff.server.asgi import WaitingEvents
from bff.sessions.copy import Copy

STAMP = events.stamp(etag(b"one"))


class Registry:
    def __init__(self) -> None:
        self.ends: list[str] = []
        self.asked: list[str] = []
        self.hold: Any = lambda _: None

    def count(self, event: str) -> None:
        pass

    def remove(self, stream: Listener, reason: str) -> None:  # noqa: ARG002
        self.ends.append(reason)

    def show_newest(self, listener: Listener, name: str) -> None:  # noqa: ARG002
        self.asked.append(name)
        self.hold(name)


class Browser:
    def __init__(self) -> None:
        self.paused = False
        self.received = b""
        self.finished = False

    def send_event(self, data: bytes) -> None:
        self.received += data

    def finish_stream(self) -> None:
        self.finished = True


def listener(registry: Registry, *names: str) -> Listener:
    return Listener(
        listeners=registry,
        environment="default",
        caller="ann",
        address="192.0.2.1",
        grounds=None,
        stamps=dict.fromkeys(names or ("chat-1",), 0),
        began=0.0,
        opening=b": first\n\n",
    )


def copy(id_: str, external_id: str | None) -> Copy:
    return Copy("default", id_, external_id, b"{}", closed=False, loaded=0.0)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_changes_before_the_browser_is_attached_follow(registry: Registry) -> None:
    one, browser = listener(registry), Browser()
    assert one.must_wait
    one.postpone("chat-1")
    one.attach(browser)

    assert browser.received == b": first\n\n"
    assert registry.asked == ["chat-1"]


def test_stream_that_ended_before_shows_nothing(registry: Registry) -> None:
    one, browser = listener(registry), Browser()
    one.end("revoked")
    one.attach(browser)

    assert browser.received == events.end("revoked")
    assert browser.finished
    assert registry.ends == ["revoked"]


def test_only_the_first_end_counts(registry: Registry) -> None:
    one, browser = listener(registry), Browser()
    one.attach(browser)
    one.end("expired")
    one.end("revoked")
    one.release("browser")

    assert browser.received.count(b"event: end") == 1
    assert registry.ends == ["expired"]


def test_reader_that_pauses_again_gets_the_rest_later(registry: Registry) -> None:
    one, browser = listener(registry, "a", "b", "c"), Browser()
    one.attach(browser)
    browser.paused = True
    for name in ("a", "b", "c"):
        one.postpone(name)
    registry.hold = lambda _: setattr(browser, "paused", True)
    for _ in range(3):
        browser.paused = False
        one.resume()

    assert sorted(registry.asked) == ["a", "b", "c"]


def test_comment_waits_for_no_slow_reader(registry: Registry) -> None:
    one, browser = listener(registry), Browser()
    one.attach(browser)
    browser.paused = True
    one.comment(events.FRESH)

    assert browser.received == b": first\n\n"


def test_session_has_one_name_of_those_that_the_token_names(registry: Registry) -> None:
    one = listener(registry, "chat-1", "session_2", "chat-2", "session_3")

    assert one.name_of(copy("session_1", "chat-1")) == "chat-1"
    assert one.name_of(copy("session_2", "chat-2")) == "session_2"
    assert one.name_of(copy("session_3", None)) == "session_3"
    assert one.name_of(copy("session_4", "chat-4")) is None
    assert listener(registry, "chat-1").name_of(copy("session_1", "chat-1")) == "chat-1"


async def test_pulled_events_are_bounded(registry: Registry) -> None:
    one = listener(registry)
    pulled = WaitingEvents(one)
    one.attach(pulled)
    assert await pulled.next() == b": first\n\n"

    one.show("chat-1", STAMP, b"x" * 10_000)
    assert one.must_wait
    one.postpone("chat-1")
    assert len(await pulled.next() or b"") > 10_000
    waiting = asyncio.ensure_future(pulled.next())
    await asyncio.sleep(0)

    assert registry.asked == ["chat-1"]
    one.end("shutdown")
    assert await waiting == events.end("shutdown")
    assert await pulled.next() is None
    assert registry.ends == ["shutdown"]


async def test_pulled_events_end_when_the_browser_leaves() -> None:
    """A server without pushed events has a task that waits for the next one."""
    registry = Registry()
    one = listener(registry)
    pulled = WaitingEvents(one)
    one.attach(pulled)
    assert await pulled.next() == b": first\n\n"
    pulling = asyncio.create_task(pulled.next())
    await asyncio.sleep(0)
    one.release("browser")
    await asyncio.wait([pulling], timeout=10)

    assert pulling.done()
    assert await pulling is None
    assert registry.ends == ["browser"]

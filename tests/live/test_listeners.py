"""All listeners: who gets a change, in which order work is done, and that nothing stays."""

import asyncio
import io
from functools import partial

import pytest
from support.world import Clock

from bff.live import events
from bff.live.listener import Listener
from bff.live.listeners import SHOWN_AT_ONCE, Listeners
from bff.sessions.copy import Copy
from bff.telemetry import Telemetry


class Browser:
    paused = False

    def __init__(self) -> None:
        self.received = b""

    def send_event(self, data: bytes) -> None:
        self.received += data

    def finish_stream(self) -> None:
        pass


class Registry(Listeners):
    """Listeners that may see everything."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Telemetry(io.StringIO()), lambda: clock.now)
        self.shown: list[Listener] = []
        self.prepared = lambda copy: partial(self.show_all, copy)
        self.newest = lambda *_: (None, False)

    def show_all(self, copy: Copy | None, listener: Listener, name: str) -> None:
        self.shown.append(listener)
        if copy is not None:
            listener.show(name, events.stamp(copy.etag), copy.body)

    def open(self, *names: str) -> tuple[Listener, Browser]:
        browser = Browser()
        listener = Listener(
            listeners=self, environment="default", caller="ann", address="", grounds=None,
            stamps=dict.fromkeys(names, 0), began=0.0,
        )  # fmt: skip
        self.add(listener)
        listener.attach(browser)
        return listener, browser


def copy(name: str, body: bytes = b"{}") -> Copy:
    return Copy("default", f"session_{name}", name, body, closed=False, loaded=0.0)


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(clock)


async def test_change_costs_its_followers_only(registry: Registry) -> None:
    one, _ = registry.open("a")
    for n in range(300):
        registry.open(f"other-{n}")
    registry.changed(copy("a"))
    registry.changed(copy("unfollowed"))

    assert registry.shown == [one]


async def test_newcomer_alone_is_shown_what_others_know(registry: Registry) -> None:
    registry.open("a")
    registry.changed(copy("a"))
    newcomer, browser = registry.open("a")
    registry.shown.clear()
    registry.changed(copy("a"))
    registry.changed(copy("a"))

    assert registry.shown == [newcomer]
    assert browser.received.count(b"event: session\n") == 1


async def test_many_followers_leave_turns_to_other_work(registry: Registry) -> None:
    for _ in range(2 * SHOWN_AT_ONCE + 10):
        registry.open("a")
    registry.changed(copy("a"))
    at_once = len(registry.shown)
    await asyncio.sleep(0.01)

    assert at_once == SHOWN_AT_ONCE
    assert len(registry.shown) == 2 * SHOWN_AT_ONCE + 10


async def test_newer_change_replaces_one_that_is_being_shown(registry: Registry) -> None:
    browsers = [registry.open("a")[1] for _ in range(SHOWN_AT_ONCE + 10)]
    registry.changed(copy("a", b'"one"'))
    registry.changed(copy("a", b'"two"'))
    await asyncio.sleep(0.01)

    assert browsers[-1].received.count(b"event: session\n") == 1
    assert all(b'"two"' in browser.received for browser in browsers)


async def test_changes_at_once_share_one_turn(registry: Registry) -> None:
    """Each change shows its own document, and together they take no longer than one change."""
    half = SHOWN_AT_ONCE // 2 + 1
    followers = {name: [registry.open(name)[1] for _ in range(half)] for name in ("a", "b", "c")}
    for name in followers:
        registry.changed(copy(name, b'"%b"' % name.encode()))
    at_once = len(registry.shown)
    await asyncio.sleep(0.01)

    assert at_once == SHOWN_AT_ONCE, "the others come after other work"
    for name, browsers in followers.items():
        documents = [browser.received.rpartition(b"data: ")[2] for browser in browsers]
        assert documents == [b'"%b"\n\n' % name.encode()] * half


async def test_change_that_left_memory_reaches_a_slow_reader_later(registry: Registry) -> None:
    listener, browser = registry.open("a")
    browser.paused = True
    registry.changed(copy("a"))
    browser.paused = False
    listener.resume()  # the copy was purged meanwhile
    registry.changed(copy("a"))

    assert browser.received.count(b"event: session\n") == 1


async def test_listener_that_fails_ends_alone(registry: Registry) -> None:
    bad, _ = registry.open("a")
    _, browser = registry.open("a")

    def show(copy: Copy | None, listener: Listener, name: str) -> None:
        if listener is bad:
            raise ValueError
        registry.show_all(copy, listener, name)

    registry.prepared = lambda copy: partial(show, copy)
    registry.changed(copy("a"))

    assert b"event: session\n" in browser.received
    assert len(registry) == 1


async def test_listener_that_leaves_during_a_change_gets_nothing(registry: Registry) -> None:
    opened = [registry.open("a") for _ in range(SHOWN_AT_ONCE + 1)]
    registry.changed(copy("a"))
    opened[-1][0].release("browser")
    await asyncio.sleep(0.01)

    assert opened[-1][1].received == b""


def test_nothing_stays_of_listeners_that_left(registry: Registry, clock: Clock) -> None:
    opened = [registry.open("a", f"b-{n}") for n in range(100)]
    for listener, _ in opened:
        listener.release("browser")
    clock.advance(120)
    for _ in registry.due(clock.now, 1000):
        pytest.fail("nobody follows it")

    assert (len(registry), registry.followed, registry.watched) == (0, 0, 0)
    assert not registry._due
    assert not any(registry._wheel)


def test_heartbeats_are_spread_over_their_time(registry: Registry, clock: Clock) -> None:
    browsers = [registry.open("a")[1] for _ in range(90)]
    counts = []
    for _ in range(30):
        clock.advance(0.5)
        list(registry.heartbeats(clock.now))
        counts.append(sum(bool(browser.received) for browser in browsers))

    assert counts == [3 * n for n in range(1, 31)]


def test_followers_take_turns_to_ask(registry: Registry, clock: Clock) -> None:
    expected = [registry.open("a")[0] for _ in range(3)]
    asked = []
    for _ in range(3):
        asked += [watch.next_follower() for watch in registry.due(clock.now, 10)]
        clock.advance(1)

    assert asked == expected


def test_due_ids_are_bounded_and_lose_no_turn(registry: Registry, clock: Clock) -> None:
    registry.open(*(f"a-{n}" for n in range(50)))
    first = [watch.key for watch in registry.due(clock.now, 30)]
    second = [watch.key for watch in registry.due(clock.now, 30)]

    assert (len(first), len(second)) == (30, 20)
    assert len({*first, *second}) == 50
    due = registry.due(clock.now + 1, 1)
    next(due)
    due.close()  # type: ignore[attr-defined]  # as an error of the loop does
    assert len(registry._due) == 50

"""Open streams: how many there may be, what ends them, and that nothing of them stays."""

import asyncio
import io
import json
from typing import Any

import pytest
from support.virtual_time import run
from support.world import Clock

from bff import metrics
from bff.chat.records import RecordFilter
from bff.chat.streams import LARGE_EVENTS, ROOM_SECONDS, ChatStream, Streams
from bff.errors import Refused, UpstreamUnavailable
from bff.stream_registry import Bounds
from bff.telemetry import Telemetry

EVENT = b'event: batch\ndata: {"records":[{"seq_num":0,"body":"1"}]}\n\n'


class Upstream:
    """Parts that a test sends."""

    def __init__(self) -> None:
        self.reader: Any = None
        self.paused = False
        self.aborted = 0
        self.waiting: list[bytes | None] = []
        """Parts that arrived while the reader had paused; None is the end."""

    def attach(self, reader: Any) -> None:
        self.reader = reader
        self.send()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.send()

    def abort(self) -> None:
        self.aborted += 1

    def send(self, *parts: bytes | None) -> None:
        self.waiting += parts
        while self.waiting and self.reader is not None and not self.paused:
            part = self.waiting.pop(0)
            if part is None:
                self.reader.ended(None)
            else:
                self.reader.receive(part)


class Browser:
    def __init__(self) -> None:
        self.paused = False
        self.received: list[bytes] = []
        self.finished = 0

    def send_event(self, data: bytes) -> None:
        assert not self.finished
        self.received.append(data)

    def finish_stream(self) -> None:
        self.finished += 1


class Registry:
    def __init__(self, clock: Clock) -> None:
        self.log = io.StringIO()
        self.telemetry = Telemetry(self.log)
        self.streams = Streams(self.telemetry, lambda: clock.now)

    def open(self, caller: str = "ann", address: str = "192.0.2.1", **more: Any) -> ChatStream:
        stream = ChatStream(
            streams=self.streams,
            caller=caller,
            address=address,
            session=("default", "chat-1"),
            grounds=caller,
            records=RecordFilter(self.telemetry.counts),
            began=0.0,
            **more,
        )
        self.streams.add(stream)
        return stream

    def ended(self, reason: str) -> float:
        return self.telemetry.counts[metrics.STREAM_ENDS, reason]


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(clock)


def joined(stream: ChatStream) -> tuple[Upstream, Browser]:
    """Give a stream its two sides."""
    upstream, browser = Upstream(), Browser()
    stream.connect(upstream)
    stream.attach(browser)
    return upstream, browser


def test_stream_ends_with_upstream(registry: Registry) -> None:
    upstream, browser = joined(registry.open())
    upstream.send(EVENT[:20])
    assert browser.received == []
    upstream.send(EVENT[20:], None)

    assert browser.received[0].startswith(b"event: batch\nid: 0\n")
    assert browser.finished == 1
    assert registry.ended("upstream") == 1
    assert len(registry.streams) == 0
    assert sum(registry.telemetry.observed[metrics.STREAM_FIRST_SECONDS][1]) == 1


def test_stream_ends_at_once_for_the_first_reason(registry: Registry) -> None:
    stream = registry.open()
    upstream, browser = joined(stream)

    stream.end("revoked")
    stream.end("expired")
    upstream.send(EVENT, None)

    assert (browser.received, browser.finished) == ([], 1)
    assert (registry.ended("revoked"), registry.ended("expired")) == (1, 0)
    assert upstream.aborted
    assert len(registry.streams) == 0


def test_stream_that_ended_before_it_is_joined_passes_nothing(registry: Registry) -> None:
    stream = registry.open()
    stream.end("revoked")
    upstream, browser = joined(stream)
    upstream.send(EVENT)

    assert (browser.received, browser.finished) == ([], 1)
    assert registry.ended("revoked") == 1


def test_stream_that_ends_while_upstream_is_opened_aborts_it(registry: Registry) -> None:
    stream, upstream = registry.open(), Upstream()
    stream.end("shutdown")
    stream.connect(upstream)

    assert upstream.aborted == 1


def test_browser_that_leaves_releases_the_stream(registry: Registry) -> None:
    stream = registry.open()
    upstream, browser = joined(stream)

    stream.release("browser")
    stream.release("failed")
    upstream.send(EVENT, None)

    assert upstream.aborted
    assert browser.received == []
    assert (registry.ended("browser"), registry.ended("failed")) == (1, 0)
    assert len(registry.streams) == 0


def test_failure_of_the_filter_cuts_the_stream_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = registry.open()
    upstream, browser = joined(stream)
    monkeypatch.setattr(RecordFilter, "feed", lambda *_: 1 / 0)
    upstream.send(EVENT)

    assert (browser.finished, stream.cut) == (1, True)
    assert registry.ended("failed") == 1
    assert "stream_failed" in registry.log.getvalue()


def test_stream_reads_no_faster_than_the_browser(registry: Registry) -> None:
    stream = registry.open()
    upstream, browser = joined(stream)
    browser.paused = True
    upstream.send(EVENT)
    assert upstream.paused
    upstream.send(EVENT, None)
    assert len(browser.received) == 1

    browser.paused = False
    stream.resume()

    assert len(browser.received) == 2
    assert browser.finished == 1


def test_event_without_room_in_memory_ends_the_stream(registry: Registry) -> None:
    async def history() -> float:
        stream = registry.open()
        stream.bound(lambda size: size < 500)
        upstream, browser = joined(stream)
        upstream.send(b"x" * 1000)
        while not browser.finished:
            await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time()

    assert run(history) == pytest.approx(ROOM_SECONDS, abs=0.3)
    assert registry.ended("overloaded") == 1


@pytest.mark.parametrize("size", [10, 2 * LARGE_EVENTS])
def test_stream_waits_for_room_and_reads_nothing(registry: Registry, size: int) -> None:
    event = EVENT.replace(b'"1"', json.dumps(json.dumps("x" * size)).encode())
    held: list[int] = []

    async def history() -> bytes:
        loop, stream = asyncio.get_running_loop(), registry.open()

        def hold(size: int) -> bool:
            held.append(size)
            return size == 0 or loop.time() > 3.0

        stream.bound(hold)
        upstream, browser = joined(stream)
        upstream.send(event[:-4], event[-4:], EVENT, None)
        await asyncio.sleep(1.0)
        assert len(upstream.waiting) == 3, "upstream is not read meanwhile"
        stream.resume()
        assert len(upstream.waiting) == 3, "a browser that reads again makes no room"
        while not browser.finished:
            await asyncio.sleep(0.1)
        return b"".join(browser.received)

    assert run(history).count(b"event: batch") == 2
    assert held[-1] == 0, "all of it is released"
    assert max(held) >= size
    assert registry.ended("upstream") == 1


def test_large_event_is_held_until_the_browser_has_read_it(registry: Registry) -> None:
    event = EVENT.replace(b'"1"', json.dumps(json.dumps("x" * LARGE_EVENTS)).encode())
    held: list[int] = []
    stream = registry.open()

    def hold(size: int) -> bool:
        held.append(size)
        return True

    stream.bound(hold)
    upstream, browser = joined(stream)
    browser.paused = True
    upstream.send(event)
    assert held[-1] > LARGE_EVENTS

    browser.paused = False
    stream.resume()
    assert held[-1] == 0


def test_stream_that_leaves_waits_for_no_room(registry: Registry) -> None:
    async def history() -> None:
        stream = registry.open()
        stream.bound(lambda _: False)
        upstream, browser = joined(stream)
        upstream.send(b"x" * 1000)
        stream.end("expired")
        assert browser.finished == 1
        await asyncio.sleep(2 * ROOM_SECONDS)

    run(history)
    assert (registry.ended("expired"), registry.ended("overloaded")) == (1, 0)


def test_stream_tells_a_cut_of_upstream_from_its_own_end(registry: Registry) -> None:
    ended, cut = registry.open(), registry.open()
    joined(ended)
    upstream, _ = joined(cut)
    ended.end("revoked")
    upstream.reader.ended(UpstreamUnavailable())

    assert (ended.cut, cut.cut) == (False, True)


def test_caller_and_address_and_process_have_bounds(registry: Registry) -> None:
    bounds = Bounds(streams=8, streams_per_caller=2)

    def refused(caller: str, address: str, *, is_proxy: bool = False) -> str | None:
        try:
            registry.streams.refuse(bounds, caller, address, is_proxy=is_proxy)
        except Refused as refused:
            return refused.refusal.code
        return None

    first = registry.open("ann", "a")
    registry.open("ann", "b")
    assert refused("ann", "c") == "too_many_streams"
    registry.open("bob", "a")
    assert refused("eve", "a") == "too_many_streams", "a quarter of eight"
    assert refused("eve", "a", is_proxy=True) is None
    first.release("browser")
    assert refused("ann", "a") is None
    for number in range(6):
        registry.open(f"other {number}", f"other {number}")
    assert refused("eve", "z") == "overloaded"


def test_counts_are_back_after_many_opens(registry: Registry) -> None:
    for number in range(10_000):
        registry.open(f"caller {number % 100}", f"address {number % 7}").release("browser")

    assert len(registry.streams) == 0
    assert not registry.streams._by_caller
    assert not registry.streams._by_address


def test_check_ends_the_streams_whose_grounds_are_gone(registry: Registry) -> None:
    ann, bob = registry.open("ann"), registry.open("bob")

    for _ in registry.streams.check(lambda grounds: "revoked" if grounds == "ann" else None):
        pass

    assert (ann._reason, bob._reason) == ("revoked", None)


async def test_drain_spreads_the_ends(registry: Registry) -> None:
    streams = [registry.open(f"caller {number}") for number in range(100)]
    draining = asyncio.create_task(registry.streams.drain(0.5))
    while not any(stream._reason for stream in streams):
        await asyncio.sleep(0)

    assert sum(stream._reason is not None for stream in streams) < 50
    await draining
    assert all(stream._reason == "shutdown" for stream in streams)


async def test_drain_takes_no_time_without_streams(registry: Registry) -> None:
    await asyncio.wait_for(registry.streams.drain(3600.0), 5.0)

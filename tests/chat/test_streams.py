"""Open streams: how many there may be, what ends them, and that nothing of them stays."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
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
        self.parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.aborted = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            part = await self.parts.get()
            if self.aborted:
                raise UpstreamUnavailable
            if part is None:
                return
            yield part

    def abort(self) -> None:
        self.aborted += 1
        self.parts.put_nowait(None)


class Registry:
    def __init__(self, clock: Clock) -> None:
        self.telemetry = Telemetry(io.StringIO())
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


def connected(stream: ChatStream) -> Upstream:
    upstream = Upstream()
    stream.connect(upstream)
    return upstream


async def read(stream: ChatStream) -> bytes:
    async with aclosing(stream.events()) as events:
        return b"".join([event async for event in events])


async def test_stream_ends_with_upstream(registry: Registry) -> None:
    stream = registry.open()
    upstream = connected(stream)
    for part in (EVENT[:20], EVENT[20:], None):
        upstream.parts.put_nowait(part)

    assert (await read(stream)).startswith(b"event: batch\nid: 0\n")
    assert registry.ended("upstream") == 1
    assert len(registry.streams) == 0
    assert sum(registry.telemetry.observed[metrics.STREAM_FIRST_SECONDS][1]) == 1


async def test_stream_ends_while_it_waits(registry: Registry) -> None:
    stream = registry.open()
    upstream = connected(stream)
    reading = asyncio.create_task(read(stream))
    await asyncio.sleep(0)

    stream.end("revoked")
    stream.end("expired")

    assert await reading == b""
    assert registry.ended("revoked") == 1
    assert upstream.aborted
    assert len(registry.streams) == 0


async def test_stream_that_ended_passes_nothing_more(registry: Registry) -> None:
    stream = registry.open()
    upstream = connected(stream)
    upstream.parts.put_nowait(EVENT)

    stream.end("revoked")

    assert await read(stream) == b""


async def test_stream_that_ends_while_upstream_is_opened_aborts_it(registry: Registry) -> None:
    stream = registry.open()
    stream.end("shutdown")

    assert connected(stream).aborted == 1


async def test_cancelled_reader_releases_the_stream(registry: Registry) -> None:
    stream = registry.open()
    upstream = connected(stream)
    reading = asyncio.create_task(read(stream))
    await asyncio.sleep(0)

    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert upstream.aborted
    assert (registry.ended("browser"), len(registry.streams)) == (1, 0)


async def test_release_counts_once(registry: Registry) -> None:
    stream = registry.open()

    stream.release("browser")
    stream.release("failed")

    assert (registry.ended("browser"), registry.ended("failed")) == (1, 0)


def test_event_without_room_in_memory_ends_the_stream(registry: Registry) -> None:
    async def history() -> float:
        stream = registry.open()
        connected(stream).parts.put_nowait(b"x" * 1000)
        stream.bound(lambda size: size < 500)
        await read(stream)
        return asyncio.get_running_loop().time()

    assert run(history) == pytest.approx(ROOM_SECONDS, abs=0.2)
    assert registry.ended("overloaded") == 1


@pytest.mark.parametrize("size", [10, 2 * LARGE_EVENTS])
def test_stream_waits_for_room_and_reads_nothing(registry: Registry, size: int) -> None:
    event = EVENT.replace(b'"1"', json.dumps(json.dumps("x" * size)).encode())
    held: list[int] = []

    async def history() -> bytes:
        loop, stream = asyncio.get_running_loop(), registry.open()
        upstream = connected(stream)

        def hold(size: int) -> bool:
            held.append(size)
            return size == 0 or loop.time() > 3.0

        stream.bound(hold)
        reading = asyncio.create_task(read(stream))
        for part in (event[:-4], event[-4:], EVENT, None):
            upstream.parts.put_nowait(part)
        await asyncio.sleep(1.0)
        assert upstream.parts.qsize() == 3, "upstream is not read meanwhile"
        return await reading

    assert run(history).count(b"event: batch") == 2
    assert held[-1] == 0, "all of it is released"
    assert max(held) >= size
    assert registry.ended("upstream") == 1


async def test_stream_tells_a_cut_of_upstream_from_its_own_end(registry: Registry) -> None:
    ended, cut = registry.open(), registry.open()
    for stream in (ended, cut):
        connected(stream)
    ended.end("revoked")
    assert cut._upstream is not None
    cut._upstream.abort()

    for stream in (ended, cut):
        await read(stream)

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
    assert not registry.streams._waiting_first


def test_check_ends_the_streams_whose_grounds_are_gone(registry: Registry) -> None:
    ann, bob = registry.open("ann"), registry.open("bob")

    for _ in registry.streams.check(lambda grounds: "revoked" if grounds == "ann" else None):
        pass

    assert (ann._reason, bob._reason) == ("revoked", None)


async def test_drain_spreads_the_ends_and_refuses_new_streams(registry: Registry) -> None:
    streams = [registry.open(f"caller {number}") for number in range(100)]
    draining = asyncio.create_task(registry.streams.drain(0.5))
    while not any(stream._reason for stream in streams):
        await asyncio.sleep(0)

    assert sum(stream._reason is not None for stream in streams) < 50
    with pytest.raises(Refused):
        registry.streams.refuse(Bounds(streams=1000, streams_per_caller=10), "new", "address")
    await draining
    assert all(stream._reason == "shutdown" for stream in streams)


async def test_drain_takes_no_time_without_streams(registry: Registry) -> None:
    await asyncio.wait_for(registry.streams.drain(3600.0), 5.0)

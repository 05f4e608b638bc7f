"""Streams of any kind: their bounds, and the order of their ends."""

import asyncio
import io
import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.virtual_time import run
from support.world import Clock

from bff import metrics
from bff.errors import Refusal, Refused
from bff.server.run import DRAIN_SECONDS, SHUTDOWN_SECONDS
from bff.stream_registry import CHECKED_AT_ONCE, Bounds, StreamRegistry
from bff.telemetry import LINES_PER_SECOND, Telemetry


@dataclass(eq=False)
class Stream:
    caller: Hashable = "ann"
    address: str = "192.0.2.1"
    grounds: Any = None
    began: float = 0.0
    ends: list[str] = field(default_factory=list)

    def end(self, reason: str) -> None:
        self.ends.append(reason)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


class Streams(StreamRegistry[Stream]):
    ends, seconds, kind = metrics.LISTENER_ENDS, metrics.LISTENER_SECONDS, "listener"


@pytest.fixture
def streams(clock: Clock, log: io.StringIO) -> StreamRegistry[Stream]:
    return Streams(Telemetry(log), lambda: clock.now)


def refused(streams: StreamRegistry[Stream], **of: Any) -> Refusal | None:
    bounds = Bounds(streams=8, streams_per_caller=2)
    try:
        streams.refuse(bounds, **{"caller": "new", "address": "192.0.2.9"} | of)
    except Refused as refusal:
        return refusal.refusal
    return None


def code(streams: StreamRegistry[Stream], **of: Any) -> str | None:
    refusal = refused(streams, **of)
    return refusal.code if refusal else None


def test_each_bound_refuses(streams: StreamRegistry[Stream]) -> None:
    one, two = Stream(), Stream()
    streams.add(one)
    streams.add(two)

    assert code(streams) is None
    assert code(streams, caller="ann") == "too_many_streams"
    assert code(streams, address="192.0.2.1") == "too_many_streams"
    assert code(streams, address="192.0.2.1", is_proxy=True) is None
    for _ in range(6):
        streams.add(Stream(caller="others", address="192.0.2.2"))
    assert code(streams) == "overloaded"
    streams.remove(one, "browser")
    assert code(streams, caller="ann") is None


def test_check_ends_and_leaves_turns(streams: StreamRegistry[Stream]) -> None:
    opened = [Stream(grounds=n) for n in range(2 * CHECKED_AT_ONCE)]
    for stream in opened:
        streams.add(stream)
    parts = list(streams.check(lambda grounds: "revoked" if grounds % 2 else None))

    assert len(parts) == 2
    assert [stream.ends for stream in opened[:4]] == [[], ["revoked"], [], ["revoked"]]


def test_stream_that_opens_during_a_drain_ends_late(log: io.StringIO) -> None:
    """A proxy that counts connections sends new streams to the process that shuts down."""
    ends: list[float] = []

    class Late(Stream):
        def end(self, reason: str) -> None:
            super().end(reason)
            ends.append(asyncio.get_running_loop().time())

    async def history() -> None:
        streams = Streams(Telemetry(log), asyncio.get_running_loop().time)
        await streams.drain(5.0)
        assert refused(streams) is None
        for _ in range(100):
            streams.add(Late())
        await asyncio.sleep(SHUTDOWN_SECONDS)

    run(history)

    assert len(ends) == 100
    assert min(ends) >= DRAIN_SECONDS, "the listener is closed, so no proxy sends it back"
    assert max(ends) < SHUTDOWN_SECONDS - 2
    assert len(set(ends)) == 50, "spread"


async def test_drain_ends_all(streams: StreamRegistry[Stream]) -> None:
    opened = [Stream() for _ in range(120)]
    for stream in opened:
        streams.add(stream)
    await streams.drain(0.0)

    assert all(stream.ends == ["shutdown"] for stream in opened)


def test_log_tells_the_reason_of_each_end_and_stays_small(
    streams: StreamRegistry[Stream], log: io.StringIO, clock: Clock
) -> None:
    opened = [Stream(began=clock.now) for _ in range(200)]
    for stream in opened:
        streams.add(stream)
    clock.advance(1.5)
    for stream in opened:
        streams.remove(stream, "revoked")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]

    assert len(lines) == LINES_PER_SECOND
    ended = {"event": "stream_ended", "kind": "listener", "reason": "revoked", "seconds": 1.5}
    assert ended.items() <= lines[0].items()

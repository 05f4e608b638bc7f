"""The time and the memory that browsers get which read their answers slowly."""

from dataclasses import replace
from typing import Any

import pytest
from support.differential import (
    GOOD,
    PREFLIGHT,
    FakeLoop,
    FakeTransport,
    Side,
    both_sides,
    request,
)
from support.world import Clock

pytestmark = pytest.mark.anyio

UNREAD_SECONDS = 20.0
"""Another number than the time for which a connection may be idle."""


def connect(side: Side, loop: FakeLoop) -> FakeTransport:
    arguments: Any = side.config.http_protocol_class
    bounds = arguments.keywords["bounds"]
    arguments.keywords["bounds"] = replace(bounds, unread_seconds=UNREAD_SECONDS)
    return side.connect(loop)


async def test_browser_that_reads_nothing_is_cut_after_its_own_time(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        for side in sides:
            loop = FakeLoop()
            transport = connect(side, loop)
            await side.feed(transport, request(GOOD))
            assert loop.seconds == [75], "the connection may be idle for that long"
            transport.protocol.pause_writing()
            assert loop.seconds == [75, UNREAD_SECONDS]
            loop.timers[-1].run()
            assert transport.closed
            counts, _ = side.records()
            assert counts["bff_closed_connections", "unread_answer"] == 1


async def test_browser_that_reads_again_is_not_cut(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        for side in sides:
            loop = FakeLoop()
            transport = connect(side, loop)
            await side.feed(transport, request(GOOD))
            transport.protocol.pause_writing()
            transport.protocol.resume_writing()
            assert loop.seconds == [75]
            assert not transport.closed


async def test_connection_closes_when_its_last_answer_is_not_read(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        for side in sides:
            loop = FakeLoop()
            transport = connect(side, loop)
            transport.close = lambda t=transport: setattr(t, "closed", True)
            await side.feed(transport, PREFLIGHT + b"NOT HTTP\r\n\r\n")
            assert transport.closed
            assert loop.seconds == [UNREAD_SECONDS]
            loop.timers[-1].run()
            counts, _ = side.records()
            assert counts["bff_closed_connections", "unread_answer"] == 1

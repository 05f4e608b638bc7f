"""The bounds of a connection, without the fast path and with it."""

import json
from functools import partial
from typing import Any

import pytest
from support.differential import (
    GOOD,
    PREFLIGHT,
    FakeLoop,
    both_sides,
    connect_both,
    feed_both,
    request,
    statuses,
)
from support.world import OFF, Clock

from bff.server.connection import MAX_PIPELINED, NewestProtocol

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("before", [1, 2, 5])
async def test_invalid_bytes_end_the_connection_after_due_answers(
    clock: Clock, before: int
) -> None:
    async with both_sides(clock) as sides:
        await feed_both(sides, request(GOOD))
        for good in (PREFLIGHT, request(GOOD)):
            transports = connect_both(sides)
            data = good * before + b"NOT HTTP\r\n\r\n" + good
            answer = await feed_both(sides, data, transports=transports)
            assert answer.count(b"HTTP/1.1 20") == answer.count(b"HTTP/1.1") == before
            assert answer.count(b"connection: close") == 1
            assert answer.rindex(b"HTTP/1.1") < answer.index(b"connection: close")
            assert [t.closed for t in transports] == [True, True]
        assert sides[0].records() == sides[1].records()


async def test_new_connection_takes_the_place_of_the_longest_silent(clock: Clock) -> None:
    """Scrapers that read nothing keep no health check out of the ops port."""
    async with both_sides(clock) as (side, _):
        arguments: Any = side.config.http_protocol_class
        make = partial(NewestProtocol, open_={}, most=2, **arguments.keywords)
        side.config.http_protocol_class = make
        first, second = side.connect(FakeLoop()), side.connect(FakeLoop())
        await side.feed(first, request(GOOD))

        third = side.connect(FakeLoop())
        await side.feed(third, request(GOOD))

        assert (first.closed, second.closed, third.closed) == (False, True, False)
        assert statuses(bytes(third.sent)) == [200]


async def test_invalid_bytes_get_one_400_and_nothing_after_it(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        transports = connect_both(sides)
        await feed_both(sides, PREFLIGHT, PREFLIGHT, transports=transports)
        answer = await feed_both(sides, b"NOT HTTP\r\n\r\n" + PREFLIGHT, transports=transports)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
        for transport in transports:
            transport.protocol.data_received(PREFLIGHT)
            assert transport.late_writes == 0, "repeated bytes are not answered either"
            assert transport.ended
        assert sides[0].records() == sides[1].records()


async def test_malformed_body_gets_no_second_answer(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        head = request("transfer-encoding: chunked", method="POST")
        answer = await feed_both(sides, head, b"zz\r\n")
        assert statuses(answer) == [405]
        answer = await feed_both(sides, head + b"zz\r\n")
        assert statuses(answer) == [400]
        answer = await feed_both(sides, PREFLIGHT + head + b"zz\r\n")
        assert statuses(answer) == [204, 405]
        assert sides[0].records() == sides[1].records()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(*["x: y"] * 100), 431),
        (request("x: " + "y" * 66_000), 431),
        (request("x: " + "y" * 66_000)[:-2], 431),
        (request(target="/" + "y" * 66_000), 431),
        (request("content-length: 3") + b"abc", 400),
        (request("transfer-encoding: chunked") + b"0\r\n\r\n", 400),
        (request(version="2.0"), 400),
    ],
    ids=["headers", "head", "half a head", "target", "body", "chunks", "version"],
)
async def test_head_beyond_a_bound_is_refused(clock: Clock, data: bytes, status: int) -> None:
    async with both_sides(clock) as sides:
        first = PREFLIGHT
        for reads in ((data,), (first, data), (data[:50], data[50:]), (first, first, data)):
            answer = await feed_both(sides, *reads)
            assert statuses(answer)[-1] == status
            assert b"connection: close" in answer
        answer = await feed_both(sides, first + data)
        assert statuses(answer) == [204], "the connection closes after the answer that was due"
        assert sides[0].records() == sides[1].records()


@pytest.mark.parametrize(
    "tail",
    [
        b"0\r\n" + b"x: y\r\n" * 12_000,
        b"0\r\nx: " + b"y" * 70_000,
        b"1\r\na\r\n" * 14_000,
        b"1;" + b"x" * 70_000,
    ],
    ids=["trailers", "a trailer", "chunks", "extension"],
)
async def test_framing_of_a_body_is_bounded_like_a_head(clock: Clock, tail: bytes) -> None:
    async with both_sides(clock) as sides:
        head = request("transfer-encoding: chunked", method="POST")
        transports = connect_both(sides)
        pieces = [tail[n : n + 10_000] for n in range(0, len(tail), 10_000)]
        answer = await feed_both(sides, head, *pieces, transports=transports)
        assert statuses(answer) == [405]
        assert [t.ended for t in transports] == [True, True]
        assert [len(t.protocol.headers) for t in transports] == [2, 2], "no trailer is kept"
        answer = await feed_both(sides, head + tail)
        assert statuses(answer) == [431]
        assert sides[0].records() == sides[1].records()


async def test_long_body_is_accepted_and_its_trailers_are_ignored(
    clock: Clock,
) -> None:
    async with both_sides(clock) as sides:
        head = request("transfer-encoding: chunked", method="POST")
        chunk = b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000)
        end = b"0\r\nhost: y\r\nauthorization: x\r\n\r\n"
        answer = await feed_both(sides, head, *[chunk] * 10, end, request(GOOD))
        assert statuses(answer) == [405, 200]


@pytest.mark.parametrize("good", [PREFLIGHT, request(GOOD)], ids=["hit", "load"])
async def test_pipeline_is_answered_up_to_its_bound(clock: Clock, good: bytes) -> None:
    async with both_sides(clock, **OFF) as sides:
        for number in (MAX_PIPELINED, MAX_PIPELINED + 1, MAX_PIPELINED + 2, 200):
            transports = connect_both(sides)
            answer = await feed_both(sides, good * number, transports=transports)
            assert answer.count(b"HTTP/1.1 20") == min(number, MAX_PIPELINED + 1)
            assert transports[1].closed == (number > MAX_PIPELINED + 1)
        assert sides[0].records() == sides[1].records()


async def test_gateway_stops_reading_from_a_slow_reader(clock: Clock) -> None:
    async with both_sides(clock, BFF_IP_RATE_LIMIT="off", BFF_RATE_LIMIT="off") as sides:
        side = sides[1]
        await feed_both(sides, request(GOOD))
        transport = side.connect()
        transport.protocol.pause_writing()  # as the transport does when its buffer is full
        assert await side.feed_unsettled(transport, request(GOOD) * 30) == b""
        assert not transport.reading
        transport.protocol.resume_writing()
        await side.settle()
        assert transport.sent.count(b"HTTP/1.1 200") == 30
        assert transport.reading


async def test_idle_connection_closes_and_a_busy_one_does_not(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        for side in sides:
            loop = FakeLoop()
            transport = side.connect(loop)
            await side.feed(transport, PREFLIGHT)
            assert loop.seconds == [75]
            loop.now += 60
            await side.feed(transport, PREFLIGHT)
            assert loop.seconds == [75], "one timer serves all requests"
            loop.now += 15
            loop.timers[-1].run()
            assert not transport.closed
            assert loop.seconds == [60]
            loop.now += 60
            loop.timers[-1].run()
            assert transport.closed


async def test_connection_is_not_idle_while_a_request_arrives(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        loop = FakeLoop()
        transport = sides[1].connect(loop)
        await sides[1].feed(transport, PREFLIGHT + b"GET / HT")
        assert loop.seconds == [10], "the deadline of the second request"
        await sides[1].feed(transport, b"TP/1.1\r\n")
        await sides[1].feed(transport, b"host: x\r\n\r\n")
        assert transport.sent.startswith(b"HTTP/1.1 200")
        assert loop.seconds == [75]
        await sides[1].feed(transport, b"GET / HT")
        loop.now += 80
        loop.timers[0].run()
        assert not transport.closed
        assert loop.seconds == [10], "the deadline of the third request"
        loop.timers[-1].run()
        assert transport.closed


async def test_empty_lines_do_not_keep_a_connection_open(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        for side in sides:
            loop = FakeLoop()
            transport = side.connect(loop)
            await side.feed(transport, PREFLIGHT)
            for _ in range(15):
                loop.now += 5
                await side.feed(transport, b"\r\n")
            assert loop.seconds == [75]
            loop.timers[-1].run()
            assert transport.closed


async def test_connection_is_not_idle_during_a_load(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        loop = FakeLoop()
        transport = sides[1].connect(loop)
        transport.protocol.data_received(PREFLIGHT + request(GOOD))
        assert transport.sent.startswith(b"HTTP/1.1 204")
        assert loop.seconds == []
        await sides[1].settle()
        assert transport.sent.count(b"HTTP/1.1 200") == 1
        assert loop.seconds == [75]

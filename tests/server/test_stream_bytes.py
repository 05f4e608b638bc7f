"""A chat gets the same bytes with the fast path and without it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest
from support.chats import BOTH, CHAT, ROUTE, Live, batch, message
from support.differential import (
    FakeLoop,
    FakeTransport,
    Side,
    authorization,
    both_sides,
    connect_both,
    feed_both,
    request,
)
from support.world import ORIGIN, Clock

from bff.demo.chat_upstream import PretendChats
from bff.errors import UpstreamUnavailable
from bff.upstream.connection import MAX_UNREAD_BYTES

OUT, APPEND = f"{ROUTE}chat-1/out", f"{ROUTE}chat-1/in/append"
GRANTED = authorization(*BOTH)
LINES = [
    *(["last-event-id: 0"], ["last-event-id: x"], ["last-event-id: 1", "last-event-id: 1"]),
    *([f"origin: {ORIGIN}"], ["x-trigger-stream-start: latest"], ["connection: close"]),
    *(["timeout-seconds: 1"], ["timeout-seconds: x"], ["accept: text/event-stream"]),
]
BODIES = [
    *(json.dumps(message()), json.dumps(message(chatId="chat-2")), '{"kind":"stop"}', "", "[]"),
    *('{"kind":"stop","kind":"stop"}', "x" * 5000),
]


def made_up(chance: random.Random) -> bytes:
    """Make one request of either route: mostly valid, sometimes not."""
    lines = [chance.choice([*[GRANTED] * 6, authorization("read:sessions:chat-1"), "cookie: x"])]
    for more in chance.sample(LINES, chance.choice([0, 0, 1, 2])):
        lines += more
    version = chance.choice(["1.1"] * 6 + ["1.0"])
    if chance.random() < 0.6:
        method = chance.choice(["GET"] * 6 + ["HEAD", "PUT", "OPTIONS", "POST"])
        settled = ["x-peek-settled: 1"]  # the stream ends at once
        return request(*lines, *settled, method=method, target=OUT, version=version)
    body = chance.choice(BODIES)
    lines.append(f"content-length: {len(body)}")
    return request(*lines, method="POST", target=APPEND, version=version) + body.encode()


@pytest.mark.parametrize("seed", range(2))
async def test_chats_get_equal_bytes_on_both_paths(
    clock: Clock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretendChats, "_act", lambda *_: None)  # no agent writes meanwhile
    chance = random.Random(seed)
    settings = CHAT | {"BFF_MAX_MESSAGE_BYTES": "4096", "BFF_MESSAGE_LIMIT": "1/minute"}
    seen = set()
    async with both_sides(clock, **settings) as sides:
        for side in sides:
            channel = side.world.upstream.chats.channel(
                side.world.upstream.environments[0], "chat-1"
            )
            for number in range(3):
                body = json.dumps({"data": {"type": "text-delta", "delta": f"{number} ü"}})
                channel.write(timestamp=1, headers=[], body=body)
            headers = [["trigger-control", "turn-complete"], ["public-access-token", "secret"]]
            channel.write(timestamp=1, headers=headers, body="")
        transports = connect_both(sides)
        for _ in range(150):
            if transports[0].over:
                transports = connect_both(sides)
            answer = await feed_both(sides, made_up(chance), transports=transports)
            seen.add(answer[9:12])
            clock.advance(chance.choice([0, 0, 1, 5]))

    assert {b"200", b"400", b"403", b"429"} <= seen, seen


@pytest.fixture(params=[False, True], ids=["asgi", "fast path"])
async def opened(
    clock: Clock, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Side, FakeTransport, Live]]:
    """A browser's connection with an open stream, whose parts the test sends."""
    async with both_sides(clock, **CHAT) as sides:
        side = sides[request.param]
        live = Live(side.world)
        live.take_over()
        transport = side.connect(FakeLoop())
        await side.feed_unsettled(transport, STREAM)
        assert transport.sent.startswith(b"HTTP/1.1 200 ")
        yield side, transport, live
        live.abort()
        await turns()


STREAM = request(GRANTED, target=OUT)
LAST = b"0\r\n\r\n"


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("error", [None, UpstreamUnavailable()], ids=["end", "cut"])
async def test_cut_of_upstream_is_a_cut_for_the_browser(
    opened: tuple[Side, FakeTransport, Live], error: UpstreamUnavailable | None
) -> None:
    """An old transport takes a clean end for the end of the answer, and resumes after a cut."""
    _, transport, live = opened
    await live.send(batch({"type": "start"}))

    live.upstream.end(error)
    await turns()

    assert transport.closed
    assert b"start" in transport.sent
    assert transport.sent.endswith(LAST) is (error is None)


@pytest.mark.parametrize("error", [None, UpstreamUnavailable()], ids=["end", "cut"])
@pytest.mark.parametrize("fast_path", [False, True], ids=["asgi", "fast path"])
async def test_stream_over_http_1_0_ends_with_its_connection(
    clock: Clock,
    fast_path: bool,
    error: UpstreamUnavailable | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """HTTP/1.0 has no chunks: nginx speaks it to its upstreams by default."""
    async with both_sides(clock, **CHAT) as sides:
        side = sides[fast_path]
        live = Live(side.world)
        live.take_over()
        transport = side.connect(FakeLoop())
        await side.feed_unsettled(transport, request(GRANTED, target=OUT, version="1.0"))
        await live.send(batch({"type": "start"}))

        live.upstream.end(error)
        await turns()

        head, _, body = transport.sent.partition(b"\r\n\r\n")
        assert transport.closed
        assert b"connection: close" in head
        assert b"transfer-encoding" not in head
        assert body.startswith((b"event: ", b"id: ", b"data: ", b": "))
        assert body.endswith(b"\n\n"), "no last chunk"
        assert not caplog.records, "uvicorn logs a body of another length than the head says"


async def test_revoked_stream_has_a_clean_end(opened: tuple[Side, FakeTransport, Live]) -> None:
    side, transport, live = opened

    await side.world.ops.post("/revocations", json={"session": "chat-1"})
    for _ in side.world.service.gateway.stream_checks.check():
        pass
    await turns()

    assert live.closed
    assert transport.sent.endswith(LAST)


async def test_slow_browser_pauses_upstream_and_is_not_cut(
    opened: tuple[Side, FakeTransport, Live],
) -> None:
    side, transport, live = opened
    buffers = side.world.service.connections.buffers
    buffers.change("198.51.100.7", 10**12)  # the memory of all connections is full
    transport.get_write_buffer_size = lambda: 9000
    transport.protocol.pause_writing()  # as the transport does when the browser reads nothing
    sent = len(transport.sent)
    events = [batch({"type": "text-delta", "delta": "x" * 2000}, first=n) for n in range(60)]
    for event in events:
        await live.send(event)

    assert not transport.closed
    assert live.paused
    assert live.upstream._unread > MAX_UNREAD_BYTES
    assert len(transport.sent) - sent < 5000, "one event is on its way"
    transport.protocol.resume_writing()
    await turns()
    await turns()
    assert not live.paused
    assert transport.sent.count(b'"seq_num"') == len(events), "nothing is lost"


async def test_browser_that_reads_nothing_is_cut_in_the_end(
    opened: tuple[Side, FakeTransport, Live],
) -> None:
    _, transport, live = opened
    loop = transport.protocol.loop
    transport.protocol.pause_writing()
    assert loop.timers[-1].seconds == 75, "BFF_IDLE_TIMEOUT"
    assert not transport.closed

    loop.timers[-1].run()
    await turns()

    assert transport.closed
    assert live.closed, "upstream's side too"


async def test_stream_is_refused_while_memory_is_full(
    opened: tuple[Side, FakeTransport, Live],
) -> None:
    side, _, live = opened
    side.world.service.connections.buffers.change("198.51.100.7", 10**12)

    answer = await side.feed_unsettled(side.connect(), STREAM)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"overloaded" in answer
    await turns()
    assert live.opens == 1, "the first stream; upstream was not asked for another one"

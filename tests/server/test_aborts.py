"""Browsers that leave at every byte of a request, and at every step of its answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from support.chats import CHAT, EVENTS, ROUTE, batch, message
from support.differential import FakeLoop, Side, authorization, both_sides, request, statuses
from support.wire import MemoryTransport
from support.world import PATH, Clock, read

from bff.demo.chat_upstream import PretendChats
from bff.demo.upstream import session
from bff.upstream.connection import Connection
from bff.upstream.pool import Pool

SETTINGS = CHAT | {"BFF_STREAM_OPEN_LIMIT": "off", "BFF_MESSAGE_LIMIT": "1000000/minute"}
GRANTED = authorization(*read("chat-1", "chat-2"), "write:sessions:chat-1")
BODY = json.dumps(message()).encode()
LIST = PATH.removesuffix("/") + "?page[size]=2"
LIVE = "accept: text/event-stream"
REQUESTS = {
    "session": request(GRANTED),
    "list": request(GRANTED, target=LIST),
    "listener": request(GRANTED, LIVE),
    "listener of a list": request(GRANTED, LIVE, target=PATH.removesuffix("/")),
    "stream": request(GRANTED, target=f"{ROUTE}chat-1/out"),
    "message": request(
        GRANTED, f"content-length: {len(BODY)}", method="POST", target=f"{ROUTE}chat-1/in/append"
    )
    + BODY,
}
STEPS = 30
"""Turns of the loop within which each of these requests is answered."""


@pytest.fixture(params=[False, True], ids=["asgi", "fast path"])
async def side(
    clock: Clock, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Side]:
    monkeypatch.setattr(PretendChats, "_act", lambda *_: None)  # no agent writes meanwhile
    async with both_sides(clock, **SETTINGS) as sides:
        yield sides[request.param]


def held(side: Side, loop: FakeLoop) -> dict[str, int]:
    """Count all that a request may hold until its end."""
    service = side.world.service
    gateway = service.gateway
    return {
        "tasks": len(asyncio.all_tasks()),
        "connections": service.connections.total,
        "bytes": service.connections.buffers.held,
        "streams": len(gateway.streams),
        "listeners": len(gateway.listeners),
        "followed": gateway.listeners.watched,
        "messages": len(gateway.chats.appends),
        "loads": len(gateway.cache.loads),
        "queued": sum(len(gateway.loader.queue(name)) for name in gateway.config.environments),
        "timers": len(loop.timers),
    }


OUT = batch({"type": "start"}, {"type": "text-delta", "delta": "ü" * 20}, first=5)
LAST = (
    b"event: batch\ndata: %b\n\n"
    % json.dumps(
        {
            "records": [
                {"seq_num": 7, "timestamp": 1, "headers": [["trigger-control", "turn-complete"]]}
            ]
        }
    ).encode()
)


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def answer(body: Any) -> bytes:
    text = json.dumps(body).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(text) + text


EVENT_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n%b\r\n" % b"".join(
    b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in EVENTS.items()
)
ANSWERS = {
    "out": EVENT_HEAD + chunked(OUT, b": ping\n\n", LAST, b""),
    "append": answer({"ok": True, "seq": 3}),
    "chat-1": answer(session(1, "chat-1")),
    "chat-2": answer(session(2, "chat-2")),
}


class RawUpstream:
    """Upstream's side of every connection, below the pool.

    Attributes:
        silent: whether answers wait in `due`.
        requests: what arrived, by the name of its answer.
    """

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        self.silent = False
        self.due: list[Callable[[], None]] = []
        self.requests: list[str] = []
        self.transports: list[_Transport] = []
        pool = Pool("x", 1, context=None, connect_timeout=1, clock=side.world.clock)
        monkeypatch.setattr(pool, "_connect", self._connect)
        api: Any = side.world.service.network.api
        api.send = lambda _, asked: pool.send(asked)
        api.stream = lambda _, asked: pool.stream(asked)
        self.pool = pool

    async def _connect(self) -> Connection:
        await asyncio.sleep(0)
        connection = Connection(ends_at=float("inf"), on_end=self.pool._drop)
        self.transports.append(_Transport(connection, self))
        return connection

    @property
    def open(self) -> int:
        """Connections that the gateway has not closed, apart from idle ones."""
        return sum(not one.aborted for one in self.transports) - len(self.pool._idle)


class _Transport(MemoryTransport):
    def __init__(self, connection: Connection, upstream: RawUpstream) -> None:
        super().__init__(connection)
        self._upstream = upstream

    def write(self, data: Any) -> None:
        target = bytes(data).split(b" ")[1].decode()
        name = next(name for name in ANSWERS if target.endswith(f"/{name}"))
        self._upstream.requests.append(name)
        answer_it = partial(self._answer, ANSWERS[name])
        if self._upstream.silent:
            self._upstream.due.append(answer_it)
        else:
            asyncio.get_running_loop().call_soon(answer_it)

    def _answer(self, data: bytes) -> None:
        self.deliver(data)


async def turns(number: int = STEPS) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def leave(side: Side, loop: FakeLoop, data: bytes, steps: int = 0) -> bytes:
    """Send *data*, and leave after some turns of the loop; returns what was answered."""
    transport = side.connect(loop)
    if data:
        transport.protocol.data_received(data)
    await turns(steps)
    transport.close()
    await turns(4 * STEPS)
    return bytes(transport.sent)


@pytest.mark.parametrize("name", REQUESTS)
async def test_browser_that_leaves_at_any_step_leaves_nothing(
    side: Side, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    upstream, loop, whole = RawUpstream(side, monkeypatch), FakeLoop(), REQUESTS[name]
    cache = side.world.service.gateway.cache
    await turns()
    before = held(side, loop)
    for cut in range(len(whole)):
        assert await leave(side, loop, whole[:cut]) == b"", whole[:cut]
        assert upstream.requests == [], "nothing is sent for a part of a request"
        assert held(side, loop) == before, whole[:cut]

    answered = 0
    for silent in (False, True):
        upstream.silent = silent
        for steps in range(STEPS):
            for id_ in ("chat-1", "chat-2"):
                cache.drop("default", id_)
            upstream.requests.clear()
            sent = await leave(side, loop, whole, steps)
            while upstream.due:  # loads are shared, and a message may be stored: both go on
                upstream.due.pop()()
                await turns()
            assert len(upstream.requests) <= (2 if "list" in name else 1), "none is repeated"
            assert held(side, loop) == before, (silent, steps, loop.timers)
            assert upstream.open == 0, (silent, steps)
            assert statuses(sent) in ([], [200])
            answered += bool(sent)
    assert answered > 0
    upstream.silent = False
    assert (await leave(side, loop, REQUESTS["session"], STEPS)).startswith(b"HTTP/1.1 200 ")

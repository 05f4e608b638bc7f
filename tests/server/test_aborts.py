"""Browsers and upstreams that leave at every byte of what they send, or send nothing more."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support.chats import CHAT, EVENTS, ROUTE, batch, message
from support.differential import FakeLoop, Side, authorization, both_sides, request, statuses
from support.virtual_time import VirtualClock, run
from support.wire import MemoryTransport
from support.world import PATH, Clock, read

from bff.demo.chat_upstream import PretendChats
from bff.demo.upstream import session
from bff.errors import UpstreamError
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
        answers: what it sends, by name.
        ends: how the connection ends after an answer, by name.
    """

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        self.silent = False
        self.due: list[Callable[[], None]] = []
        self.requests: list[str] = []
        self.answers = dict(ANSWERS)
        self.ends: dict[str, Callable[[MemoryTransport], None]] = {}
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
        answer_it = partial(self._answer, name)
        if self._upstream.silent:
            self._upstream.due.append(answer_it)
        else:
            asyncio.get_running_loop().call_soon(answer_it)

    def _answer(self, name: str) -> None:
        self.deliver(self._upstream.answers[name])
        if (end := self._upstream.ends.get(name)) is not None:
            end(self)


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


# -- upstream leaves

ENDS: dict[str, tuple[Callable[[MemoryTransport], None], str]] = {
    "close": (MemoryTransport.end, "upstream_invalid"),
    "reset": (lambda transport: transport.end(ConnectionResetError()), "upstream_unavailable"),
    "silence": (lambda _: None, "upstream_timeout"),
}
"""How upstream leaves, and the code of a load that ends so."""
_RECORDS = re.compile(rb'data: ({"records":.*})\n')


def cuts(end: str, data: bytes) -> Iterator[int]:
    """The bytes after which upstream leaves; fewer for silence, because each costs a timeout."""
    yield from range(0, len(data), 9 if end == "silence" else 1)
    yield len(data)


def records(sent: bytes) -> list[Any]:
    """The records of a stream, as far as the browser got them whole."""
    return [one for found in _RECORDS.findall(sent) for one in json.loads(found)["records"]]


def failed(sent: bytes) -> str:
    return str(json.loads(sent.partition(b"\r\n\r\n")[2])["code"])


class Leaving:
    """A gateway whose upstream leaves in the middle of an answer."""

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
        self.side = side
        self.loop = FakeLoop()
        self.upstream = RawUpstream(side, monkeypatch)
        self._end, self.code = ENDS[end]

    async def request(self, data: bytes, name: str, answer: bytes, *, ends: bool = True) -> bytes:
        """Send *data*; upstream sends the answer *name* as far as *answer*, and leaves."""
        upstream = self.upstream
        upstream.answers[name] = answer
        upstream.ends = {name: self._end} if ends else {}
        upstream.requests.clear()
        for id_ in ("chat-1", "chat-2"):
            self.side.world.service.gateway.cache.drop("default", id_)
        transport = self.side.connect(self.loop)
        transport.protocol.data_received(data)
        await turns()
        if not transport.sent:
            await asyncio.sleep(1)  # the timeout of upstream
        sent = bytes(transport.sent)
        transport.close()
        await turns()
        return sent


async def session_or_list(it: Leaving, name: str, cut: int) -> None:
    whole = ANSWERS["chat-1"]
    if cut % 2:  # a connection is kept, and the load uses it
        await it.request(REQUESTS["session"], "chat-1", whole, ends=False)
    sent = await it.request(REQUESTS[name], "chat-1", whole[:cut])

    calls, complete = it.upstream.requests, cut == len(whole)
    again = cut == 0 and it.code != "upstream_timeout"
    assert 1 <= calls.count("chat-1") <= (2 if again else 1), "a GET without an answer may repeat"
    if name == "session":
        assert statuses(sent) == ([200] if complete else [504 if "time" in it.code else 502])
        assert complete or failed(sent) == it.code
        return
    body = json.loads(sent.partition(b"\r\n\r\n")[2])
    shown = [one["externalId"] for one in body["data"]]
    late = [(one["id"], one["code"]) for one in body.get("unavailable", ())]
    assert "chat-2" in shown
    assert ("chat-1" in shown) is complete
    assert late == ([] if complete else [("chat-1", it.code)])


async def sent_message(it: Leaving, _: str, cut: int) -> None:
    whole = ANSWERS["append"]
    sent = await it.request(REQUESTS["message"], "append", whole[:cut])

    assert it.upstream.requests == ["append"], "a message is sent once"
    assert statuses(sent) == [200 if cut == len(whole) else 502]
    assert cut == len(whole) or failed(sent) == "message_unconfirmed"


async def resumed_stream(it: Leaving, _: str, cut: int) -> None:
    whole = ANSWERS["out"]
    expected = [5, 6, 7]
    sent = await it.request(REQUESTS["stream"], "out", whole[:cut])

    assert it.upstream.requests == ["out"]
    if cut < len(EVENT_HEAD):
        assert failed(sent) == it.code
        return
    assert statuses(sent) == [200]
    assert sent.endswith(b"\r\n0\r\n\r\n") is (cut == len(whole)), "a cut answer looks cut"
    got = [one["seq_num"] for one in records(sent)]
    assert got == expected[: len(got)]
    cursor = got[-1] if got else 0
    rest = {0: OUT + LAST, 6: LAST, 7: b": ping\n\n"}[cursor]
    line = f"last-event-id: {cursor}"
    again = request(GRANTED, line, target=f"{ROUTE}chat-1/out")
    sent = await it.request(again, "out", EVENT_HEAD + chunked(rest, b""), ends=False)
    assert got + [one["seq_num"] for one in records(sent)] == expected


async def peeked(it: Leaving, _: str, cut: int) -> None:
    it.upstream.answers["out"] = ANSWERS["out"][:cut]
    it.upstream.ends = {"out": it._end}
    chat = it.side.world.service.gateway.config.environments["default"].chat
    record = ANSWERS["out"].index(b'"seq_num"') + len(b'"seq_num"')
    for has_record, known in ((True, len(EVENT_HEAD)), (False, record)):
        if cut >= known:
            assert await chat.peek("chat-1", has_record=has_record) is False
            continue
        with pytest.raises(UpstreamError) as raised:
            await chat.peek("chat-1", has_record=has_record)
        assert raised.value.code == it.code


LEFT = {
    "session": ("chat-1", session_or_list),
    "list": ("chat-1", session_or_list),
    "message": ("append", sent_message),
    "stream": ("out", resumed_stream),
    "peek": ("out", peeked),
}
"""By request: the answer of upstream that ends too early, and what must then be true."""


@pytest.mark.parametrize("fast", [False, True], ids=["asgi", "fast path"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", LEFT)
def test_upstream_that_leaves_at_any_byte_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, end: str, fast: bool
) -> None:
    async def history() -> None:
        settings = SETTINGS | {"BFF_UPSTREAM_TIMEOUT": "0.5"}
        async with both_sides(VirtualClock(), **settings) as sides:  # type: ignore[arg-type]
            for one in sides:
                await one.world.service.background.stop()
            it = Leaving(sides[fast], monkeypatch, end)
            await turns()
            before = held(it.side, it.loop)
            answer, check = LEFT[name]
            for cut in cuts(end, ANSWERS[answer]):
                await check(it, name, cut)
                await turns()
                assert held(it.side, it.loop) == before, (cut, it.loop.timers)
                assert it.upstream.open == 0, cut

    run(history)

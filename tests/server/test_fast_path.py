"""The fast lane says what the ordinary way says: the same bytes, the same counts, the same logs.

The ordinary way is `wire.BoundedProtocol` and the application behind it.

Two services, alike but for the lane, are fed the same bytes by the parser's own calls; every
answer, every count and every log line of the one is compared with the other's.
"""

import asyncio
import gc
import json
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from support.world import (
    FRIENDLY,
    OFF,
    ORIGIN,
    PATH,
    SECRET_KEY,
    Clock,
    World,
    claims,
    environ,
    read,
    sign,
)
from uvicorn.server import ServerState

from bff.cli import main
from bff.demo.upstream import session
from bff.gateway.decide import PendingLoad
from bff.request import HeaderFields, RequestHead
from bff.server import fast_path, uvicorn_adapter
from bff.server import run as server
from bff.server.connection import MAX_PIPELINED, BoundedProtocol
from bff.server.fast_path import FastPathProtocol

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """What a connection writes, and whether it closed or held back what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.sent = bytearray()
        self.closed = False
        self.ended = False
        self.reading = True
        self.late = 0

    @property
    def over(self) -> bool:
        return self.closed or self.ended

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        ends = {"peername": ("192.0.2.1", 40000), "sockname": ("127.0.0.1", 8787)}
        return ends.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed or self.ended:
            self.late += 1
        else:
            self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def write_eof(self) -> None:
        """The end of what is written; the protocol throws away what still comes."""
        self.ended = True

    def abort(self) -> None:
        self.close()

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Side:
    """One service and its server's state."""

    def __init__(self, world: World, *, fast: bool) -> None:
        self.world = world
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"Mon, 23 Nov 2026 22:00:00 GMT")]
        made = world.service.protocol if fast else world.service.bounded_protocol
        assert made.func is (FastPathProtocol if fast else BoundedProtocol)
        self.config = server.config(world.service.browser_app, lifespan=False, protocol=made)
        self.config.load()

    def connect(self, **changes: Any) -> Wire:
        for name, value in changes.items():
            setattr(self.config, name, value)
        wire = Wire()
        wire.protocol = self.config.http_protocol_class(
            config=self.config, server_state=self.state, app_state={}
        )
        wire.protocol.connection_made(wire)
        return wire

    async def settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            while self.state.tasks or len(self.world.service.gateway.cache.loads):
                await asyncio.sleep(0)

    async def feed(self, wire: Wire, *chunks: bytes) -> bytes:
        """What came back to *chunks*, each of which arrives when all before was answered."""
        del wire.sent[:]
        for chunk in chunks:
            if not wire.over:
                wire.protocol.data_received(chunk)
            await self.settle()
        return bytes(wire.sent)

    async def feed_unsettled(self, wire: Wire, data: bytes) -> bytes:
        wire.protocol.data_received(data)
        for _ in range(10):
            await asyncio.sleep(0)
        return bytes(wire.sent)

    def told(self) -> tuple[dict[Any, float], list[dict[str, Any]]]:
        lines = self.world.logged()
        for line in lines:
            line.pop("timestamp", None)
            line.pop("request_id", None)
            line.pop("seconds", None)
        counts = self.world.telemetry.counts
        # By which lane they were answered is the one thing in which the sides differ.
        told: Counter[Any] = Counter()
        for key, n in counts.items():
            told[key[:-1] if key[0] == "bff_requests" else key] += n
        return {k: n for k, n in told.items() if k[0] != "bff_load_seconds"}, lines


@asynccontextmanager
async def both(clock: Clock, **changes: str) -> AsyncIterator[tuple[Side, Side]]:
    # Some connections linger for seconds: how many are open at once is a matter of time.
    plenty = ("BFF_MAX_CONNECTIONS", "BFF_MAX_CONNECTIONS_PER_ADDRESS")
    changes = dict.fromkeys(plenty, "1000000") | changes
    async with World(clock, **changes) as slow, World(clock, **changes) as fast:
        yield Side(slow, fast=False), Side(fast, fast=True)


def masked(answers: bytes) -> bytes:
    return re.sub(rb"x-request-id: [0-9a-f-]+", b"x-request-id: *", answers)


async def same(sides: tuple[Side, Side], *chunks: bytes, wires: Any = None) -> bytes:
    """Feed both sides; the answer, which is the same."""
    wires = wires or [side.connect() for side in sides]
    slow, fast = [
        masked(await side.feed(wire, *chunks)) for side, wire in zip(sides, wires, strict=True)
    ]
    assert fast == slow, chunks
    assert [w.closed for w in wires] == [wires[0].closed] * 2, chunks
    assert [w.ended for w in wires] == [wires[0].ended] * 2, chunks
    assert [w.late for w in wires] == [0, 0], chunks
    return fast


def request(
    *lines: str, method: str = "GET", target: str = PATH + "chat-1", v: str = "1.1"
) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{v}", "host: x", *lines, "", ""]).encode("latin-1")


def authorization(*scopes: str, key: str | None = None, **changes: Any) -> str:
    arguments = [key] if key else []
    return "authorization: Bearer " + sign(
        claims(Clock().wall, *scopes, act={"sub": "u"}, **changes), *arguments
    )


GOOD = authorization(*read("chat-1"))
TYPE_WIDE = authorization("read:sessions")

METHODS = ["GET"] * 8 + ["HEAD", "OPTIONS", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "FOO"]
TARGETS = [
    *[PATH + "chat-1"] * 6,
    *(PATH + FRIENDLY["chat-1"], PATH + "chat-2", PATH + "chat-closed", PATH + "nope"),
    *(PATH + part for part in (".", "..", "%2e", "a%2fb", "%", "%zz", "", "x" * 257, "a?b", "a#b")),
    *("/", "/healthz", "/healthz?x", "/metrics", "/api/v1/runs", "/realtime/x", "//", "/\x7f", "*"),
    *("http://h/api/v1/sessions/chat-1", "/api/v1/sessions", "/API/v1/sessions/chat-1", "/é", "a"),
]
AUTHORIZATIONS = [
    *[[GOOD]] * 6,
    *([TYPE_WIDE], [authorization(*read(FRIENDLY["chat-1"]))], [authorization(*read("chat-2"))]),
    *([authorization(*read("chat-1"), exp=int(Clock().wall) - 1)], [authorization(key="k" * 40)]),
    *([], ["authorization:"], ["authorization: Bearer"], ["authorization: Bearer a.b.c"]),
    *([GOOD, GOOD], [f"authorization: Bearer {SECRET_KEY}"], [GOOD.replace("Bearer", "bearer")]),
    *([GOOD.replace("authorization", "AUTHORIZATION")], [GOOD + "\t"], ["authorization: é"]),
]
OTHERS = [
    *[f"origin: {ORIGIN}"] * 4,
    *("origin: https://evil.example", "origin: null", 'if-none-match: "x"', "if-none-match: *"),
    *("connection: keep-alive", "x-forwarded-for: 198.51.100.7", "x-forwarded-for: ,é, ::1"),
    *("user-agent: Mozilla/5.0", "accept: */*", "X-Trigger-Source: sdk", "cookie: a=b"),
]
ODD = [
    *("connection: close", "Connection: Upgrade", "upgrade: websocket", "expect: 100-continue"),
    *("content-length: 0", "content-length: 3", "transfer-encoding: chunked", "content-length: x"),
    *("transfer-encoding: gzip", "content-length: 0\r\ncontent-length: 0", "x y: z", "x: a\x00b"),
    *(" folded: x", "connection: close, x", "proxy-connection: close", "http2-settings: x"),
]
BODIES = [
    "",
    "",
    "abc",
    "0\r\n\r\n",
    "3\r\nabc\r\n0\r\n\r\n",
    "3\r\nabc\r\n0\r\nx: y\r\n\r\n",
    "zz\r\n",
]


def made_up(chance: random.Random) -> bytes:
    """One request: mostly good, now and then odd."""
    lines = [*chance.choice(AUTHORIZATIONS), *chance.sample(OTHERS, chance.randrange(4))]
    body = ""
    if chance.random() < 0.15:
        lines.append(chance.choice(ODD))
        body = chance.choice(BODIES)
    chance.shuffle(lines)
    version = chance.choice(["1.1"] * 20 + ["1.0", "2.0", "0.9"])
    method, target = chance.choice(METHODS), chance.choice(TARGETS)
    made = request(*lines, method=method, target=target, v=version) + body.encode()
    return made.replace(b"\r\n", b"\n") if chance.random() < 0.01 else made


@pytest.mark.parametrize("seed", range(4))
async def test_thousands_of_requests_one_by_one(clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    async with both(clock, BFF_TRUSTED_PROXIES="192.0.2.0/24") as sides:
        wires = [side.connect() for side in sides]
        statuses: dict[bytes, int] = {}
        for _ in range(1000):
            if wires[0].over or chance.random() < 0.05:
                wires = [side.connect() for side in sides]
            answer = await same(sides, made_up(chance), wires=wires)
            for status in re.findall(rb"HTTP/1.1 (\d+)", answer):
                statuses[status] = statuses.get(status, 0) + 1
            clock.advance(chance.choice([*[0] * 8, 0.25, 0.5, 3]))
        assert sides[0].told() == sides[1].told()
        assert {b"200", b"204", b"304", b"400", b"401", b"403", b"404", b"405"} <= set(statuses)


async def test_pipelines_in_one_packet_and_in_several(clock: Clock) -> None:
    """The answers are the same, whatever comes in how many pieces, and so is what is counted."""
    chance = random.Random(5)
    # Nothing is refreshed behind: uvicorn gives a refresh time to end within a pipeline.
    changes = {"BFF_CACHE_STALE_WHILE_REVALIDATE": "0"} | OFF
    async with both(clock, **changes) as sides:
        ends = set()
        for _ in range(2000):
            data = b"".join(made_up(chance) for _ in range(chance.randrange(2, 7)))
            cuts = sorted(chance.sample(range(len(data)), chance.choice([0, 0, 1, 3])))
            chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            answer = await same(sides, *chunks)
            ends |= set(re.findall(rb"HTTP/1.1 (\d+)(?=.*\nconnection: close)", answer, re.DOTALL))
            clock.advance(chance.choice([0, 0, 1]))
        assert {b"200", b"204", b"400"} <= ends
        assert sides[0].told() == sides[1].told()


async def test_what_is_counted_of_good_pipelines(clock: Clock) -> None:
    async with both(clock) as sides:
        pipeline = [request(GOOD), request(TYPE_WIDE, target=PATH + "chat-2"), request()] * 5
        answer = await same(sides, b"".join(pipeline))
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"401"] * 5
        assert sides[0].told() == sides[1].told()


@pytest.mark.parametrize(
    "data",
    [
        request(GOOD),
        request(GOOD, "if-none-match: *") + request(method="OPTIONS"),
        request(GOOD, "connection: close") + request(GOOD),
        request(GOOD, "content-length: 3") + b"abc" + request(GOOD),
        request(GOOD, "transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n" + request(GOOD),
        request(GOOD) + b"\r\n\r\nNOT HTTP\r\n\r\n",
    ],
    ids=["one", "two", "close", "length", "chunked", "malformed"],
)
async def test_split_at_every_byte(clock: Clock, data: bytes) -> None:
    async with both(clock) as sides:
        await same(sides, request(GOOD))  # a copy is there
        for cut in range(1, len(data)):
            await same(sides, data[:cut], data[cut:])
            clock.advance(0.1)
        assert sides[0].told() == sides[1].told()


async def test_the_same_bytes_again_are_answered_as_they_would_be_parsed(clock: Clock) -> None:
    """Polls: fresh, stale, loaded anew, limited, and when the token ends."""
    async with both(clock, BFF_RATE_LIMIT="5/minute") as sides:
        wires = [side.connect() for side in sides]
        parsed = _count_parsing(wires[1].protocol)
        for n in range(160):
            await same(sides, request(GOOD), wires=wires)
            clock.advance([0.5, 4, 0.1, 20][n % 4])
        assert sides[0].told() == sides[1].told()
        codes = {k[2:] for k in sides[1].told()[0] if k[0] == "bff_requests"}
        assert codes == {(200, ""), (429, "rate_limited"), (401, "token_expired")}
        assert 0 < parsed() < 160, "what is known is not parsed again, loads apart"


def _count_parsing(protocol: Any) -> Callable[[], int]:
    count = 0
    begin = protocol.on_message_begin

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(protocol.inner, name)

        def feed_data(self, data: bytes) -> None:
            nonlocal count
            count += 1
            protocol.inner.feed_data(data)

    protocol.inner, protocol.parser = protocol.parser, Counting()
    assert begin == protocol.on_message_begin
    return lambda: count


# What may stand before the header lines; "*" is a good path.
REQUEST_LINES = [
    *(f"{method} {PATH}{id_} HTTP/1.1" for method in ("GET", "HEAD", "OPTIONS")
      for id_ in ("chat-1", "chat-2", "nope", "chat:1~_-")),
    *(f"GET {PATH}{id_} HTTP/1.1" for id_ in
      ("", ".", "..", "%2e", "chat-1?x", "chat-1#x", "chat-1/", "a" * 256, "a" * 257, "\xe9")),
    "GET  * HTTP/1.1", "GET * HTTP/1.1 ", "GET\t* HTTP/1.1", " GET * HTTP/1.1", "get * HTTP/1.1",
    "GET * HTTP/1.0", "GET * HTTP/1.1x", "GET * http/1.1", "GET * HTTP/1.1\r", "GET *", "",
    "\r\nGET * HTTP/1.1", "\nGET * HTTP/1.1", "POST * HTTP/1.1", "CONNECT * HTTP/1.1",
    "GET http://x* HTTP/1.1", "GET * HTTP/1.1\r\nx: y", "GET * HTTP/1.1\r\n y", "GET * HTTP/1.1\n",
]  # fmt: skip


async def test_known_header_lines_are_read_as_they_would_be_parsed(clock: Clock) -> None:
    """Whatever stands before them, on whichever connection."""
    chance = random.Random(3)
    lines = [
        request(*some).partition(b"\r\n")[2]
        for some in ([GOOD], [TYPE_WIDE, f"origin: {ORIGIN}"], [GOOD, "if-none-match: *"], [])
    ]
    odd = [
        b"\r\n",
        lines[0].replace(b"host: x\r\n", b""),
        lines[0] + lines[0],
        *(request(GOOD, one).partition(b"\r\n")[2] for one in ODD),
    ]
    async with both(clock, **OFF) as sides:
        wires = [side.connect() for side in sides]
        parsed, asked, saved = _count_parsing(wires[1].protocol), 0, 0
        for _ in range(1500):
            if wires[0].over or chance.random() < 0.05:
                saved += asked - parsed()
                wires = [side.connect() for side in sides]
                parsed, asked = _count_parsing(wires[1].protocol), 0
            block = chance.choice(odd) if chance.random() < 0.2 else chance.choice(lines)
            first = chance.choice(REQUEST_LINES[: chance.choice([12, 12, 12, 99])])
            first = first.replace("*", PATH + "chat-1")
            asked += 1
            await same(sides, first.encode("latin-1") + b"\r\n" + block, wires=wires)
            clock.advance(chance.choice([0, 0, 0.25]))
        assert sides[0].told() == sides[1].told()
        assert saved > 300


async def test_of_header_lines_so_many_are_known_and_none_that_were_refused(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_path, "_MAX_HEADER_BYTES", 5_000)
    async with both(clock, **OFF) as sides:
        wires = [side.connect() for side in sides]
        parsed = _count_parsing(wires[1].protocol)

        async def asked(*lines: str, method: str = "OPTIONS", target: str = "chat-1") -> int:
            before = parsed()
            await same(sides, request(*lines, method=method, target=PATH + target), wires=wires)
            return parsed() - before

        await asked()
        assert await asked("x: 0", target="a") == 1
        assert await asked("x: 0", target="b") == 0
        for n in range(1, 50):
            await asked(f"x: {n}", target="a")
        assert await asked("x: 49", target="b") == 0
        assert await asked("x: 0", target="b") == 1, "it was the oldest"
        bad = authorization(key="k" * 40)
        assert await asked(bad, method="GET", target="a") == 1
        assert await asked(bad, method="GET", target="b") == 1
        assert await asked() == 1
        assert await asked(TYPE_WIDE, method="GET", target="nope") == 1
        assert await asked(TYPE_WIDE, method="HEAD", target="nope") == 1, "what is loaded may be"


@pytest.mark.parametrize("name", [b"cookie", b"x-forwarded-for", b"x"])
def test_what_header_lines_cost_is_no_less_than_what_they_take(name: bytes) -> None:
    """Whoever asks, with the shortest values and as many as may be."""
    values = [b"%02x" % n for n in range(98)]
    lines = b"".join(b"%b:%b\r\n" % (name, value) for value in values)
    known = fast_path.HeaderCache()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(200):
            fields = HeaderFields.read([(name, bytes(bytearray(value))) for value in values])
            known.keep(b"GET %bx HTTP/1.1\r\nhost:%d\r\n" % (PATH.encode(), n) + lines, fields)
        assert tracemalloc.get_traced_memory()[0] - before < known.bytes
    finally:
        tracemalloc.stop()


async def test_bytes_that_are_known_mean_nothing_within_a_request(clock: Clock) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        known = request(GOOD)
        await same(sides, known, known, wires=wires)
        opened = request(GOOD, f"content-length: {len(known)}", method="POST")
        answer = await same(sides, opened, known, known, wires=wires)
        statuses = re.findall(rb"HTTP/1.1 (\d+)", answer)
        assert statuses == [b"405", b"200"], "one of the three was a body"


async def test_known_header_lines_mean_nothing_within_a_request(clock: Clock) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        known = request(method="OPTIONS")
        await same(sides, known, known, wires=wires)
        other = request(method="OPTIONS", target=PATH + "chat-2")
        opened = request(f"content-length: {len(other)}", method="POST")
        answer = await same(sides, opened, other, other, wires=wires)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"405", b"204"], "one was a body"


async def test_two_requests_that_came_at_once_are_two_when_they_come_again(clock: Clock) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        data = request(method="OPTIONS") + request(TYPE_WIDE)
        for _ in range(3):
            answer = await same(sides, data, wires=wires)
            assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"204", b"200"]


async def test_the_end_of_one_request_and_a_whole_one_are_not_known_as_one(clock: Clock) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        whole = request(method="OPTIONS")
        await same(sides, whole[:20], whole[20:] + whole, wires=wires)
        answer = await same(sides, whole[20:] + whole, wires=wires)
        assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("before", [1, 2, 5])
async def test_what_is_not_http_ends_the_connection_and_no_answer_before_it(
    clock: Clock, before: int
) -> None:
    async with both(clock) as sides:
        await same(sides, request(GOOD))
        for good in (request(method="OPTIONS"), request(GOOD)):
            wires = [side.connect() for side in sides]
            answer = await same(sides, good * before + b"NOT HTTP\r\n\r\n" + good, wires=wires)
            assert answer.count(b"HTTP/1.1 20") == answer.count(b"HTTP/1.1") == before
            assert answer.count(b"connection: close") == 1
            assert answer.rindex(b"HTTP/1.1") < answer.index(b"connection: close")
            assert [wire.closed for wire in wires] == [True, True]
        assert sides[0].told() == sides[1].told()


async def test_there_is_one_400_and_nothing_after_it(clock: Clock) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        known = request(method="OPTIONS")
        await same(sides, known, known, wires=wires)
        answer = await same(sides, b"NOT HTTP\r\n\r\n" + known, wires=wires)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_request"
        for wire in wires:
            wire.protocol.data_received(known)
            assert wire.late == 0, "what is known is not answered either"
            assert wire.ended
        assert sides[0].told() == sides[1].told()


async def test_a_body_that_turns_out_malformed_is_not_answered_again(clock: Clock) -> None:
    async with both(clock) as sides:
        head = request("transfer-encoding: chunked", method="POST")
        answer = await same(sides, head, b"zz\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"405"]
        answer = await same(sides, head + b"zz\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]
        answer = await same(sides, request(method="OPTIONS") + head + b"zz\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"204", b"405"]
        assert sides[0].told() == sides[1].told()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(*["x: y"] * 100), b"431"),
        (request("x: " + "y" * 66_000), b"431"),
        (request("x: " + "y" * 66_000)[:-2], b"431"),
        (request(target="/" + "y" * 66_000), b"431"),
        (request("content-length: 3") + b"abc", b"400"),
        (request("transfer-encoding: chunked") + b"0\r\n\r\n", b"400"),
        (request(v="2.0"), b"400"),
    ],
    ids=["headers", "head", "half a head", "target", "body", "chunks", "version"],
)
async def test_the_bounds_of_a_head_hold(clock: Clock, data: bytes, status: bytes) -> None:
    async with both(clock) as sides:
        first = request(method="OPTIONS")
        for chunks in ((data,), (first, data), (data[:50], data[50:]), (first, first, data)):
            answer = await same(sides, *chunks)
            assert re.findall(rb"HTTP/1.1 (\d+)", answer)[-1] == status
            assert b"connection: close" in answer
        answer = await same(sides, first + data)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"204"], "closed after what was due"
        assert sides[0].told() == sides[1].told()


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
async def test_what_frames_a_body_is_bounded_as_a_head_is(clock: Clock, tail: bytes) -> None:
    async with both(clock) as sides:
        head = request("transfer-encoding: chunked", method="POST")
        wires = [side.connect() for side in sides]
        pieces = [tail[n : n + 10_000] for n in range(0, len(tail), 10_000)]
        answer = await same(sides, head, *pieces, wires=wires)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"405"]
        assert [wire.ended for wire in wires] == [True, True]
        assert [len(wire.protocol.headers) for wire in wires] == [2, 2], "no trailer is kept"
        answer = await same(sides, head + tail)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"431"]
        assert sides[0].told() == sides[1].told()


async def test_a_body_may_be_longer_than_its_frame_and_its_trailers_say_nothing(
    clock: Clock,
) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        head = request("transfer-encoding: chunked", method="POST")
        chunk = b"%x\r\n%b\r\n" % (50_000, b"x" * 50_000)
        end = b"0\r\nhost: y\r\nauthorization: x\r\n\r\n"
        answer = await same(sides, head, *[chunk] * 10, end, request(GOOD), wires=wires)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"405", b"200"]


@pytest.mark.parametrize("good", [request(method="OPTIONS"), request(GOOD)], ids=["hit", "load"])
async def test_so_many_requests_are_answered_of_a_pipeline_and_no_more(
    clock: Clock, good: bytes
) -> None:
    async with both(clock, **OFF) as sides:
        for number in (MAX_PIPELINED, MAX_PIPELINED + 1, MAX_PIPELINED + 2, 200):
            wires = [side.connect() for side in sides]
            answer = await same(sides, good * number, wires=wires)
            assert answer.count(b"HTTP/1.1 20") == min(number, MAX_PIPELINED + 1)
            assert wires[1].closed == (number > MAX_PIPELINED + 1)
        assert sides[0].told() == sides[1].told()


async def test_the_date_is_the_servers(clock: Clock) -> None:
    async with both(clock) as sides:
        wires = [side.connect() for side in sides]
        for date in (b"one", b"two"):
            for side in sides:
                side.state.default_headers = [(b"date", date), (b"server", b"x")]
            answer = await same(sides, request(method="OPTIONS"), wires=wires)
            assert b"date: %b\r\nserver: x\r\n" % date in answer


async def test_a_known_request_does_not_take_the_load_of_another(clock: Clock) -> None:
    async with both(clock, BFF_CACHE_TTL="0", BFF_CACHE_STALE_WHILE_REVALIDATE="0") as sides:
        wires = [side.connect() for side in sides]
        one, other = request(GOOD), request(TYPE_WIDE, target=PATH + "chat-2")
        for data in (one, one, other, one, other, other, one + other, other, one):
            clock.advance(1)
            answer = await same(sides, data, wires=wires)
            ids = re.findall(rb'"externalId":"([^"]+)"', answer)
            assert ids == [t for t in (b"chat-1", b"chat-2") if PATH.encode() + t in data]
        assert sides[0].told() == sides[1].told()


# -- what protects the server


async def test_a_browser_that_does_not_read_is_not_read_from(clock: Clock) -> None:
    async with both(clock, BFF_IP_RATE_LIMIT="off", BFF_RATE_LIMIT="off") as sides:
        side = sides[1]
        await same(sides, request(GOOD))
        wire = side.connect()
        wire.protocol.pause_writing()  # as the transport does when its buffer is full
        assert await side.feed_unsettled(wire, request(GOOD) * 30) == b""
        assert not wire.reading
        wire.protocol.resume_writing()
        await side.settle()
        assert wire.sent.count(b"HTTP/1.1 200") == 30
        assert wire.reading


async def test_a_flood_in_one_packet_is_held_to_the_high_water_mark(clock: Clock) -> None:
    async with both(clock, BFF_EXPOSE_METADATA="pad", **OFF) as sides:
        for side in sides:
            environment = side.world.upstream.environments[0]
            environment.add(session(1, "chat-1") | {"metadata": {"pad": "x" * 10_000}})
        await same(sides, request(GOOD))
        wire = sides[1].connect()
        wire.protocol.data_received(request(GOOD) * 30)
        assert 60_000 < len(wire.sent) < 66_000 + 11_000, (
            "no more is answered before what was answered is written"
        )
        assert not wire.reading
        await sides[1].settle()
        assert wire.sent.count(b"HTTP/1.1 200") == 30


async def test_idle_connections_close_and_busy_ones_do_not(
    clock: Clock,
) -> None:
    async with both(clock) as sides:
        side = sides[1]
        wire = side.connect()
        timers: list[tuple[float, Any]] = []
        loop = _Loop(timers)
        wire.protocol.loop = loop
        await side.feed(wire, request(method="OPTIONS"))
        assert [seconds for seconds, _ in timers] == [75]
        loop.now += 60
        await side.feed(wire, request(method="OPTIONS"))
        assert len(timers) == 1, "one timer serves all requests"
        loop.now += 15
        timers.pop()[1]()
        assert not wire.closed
        assert [seconds for seconds, _ in timers] == [60]
        loop.now += 60
        timers.pop()[1]()
        assert wire.closed

        half = side.connect()
        half.protocol.loop = loop
        await side.feed(half, request(method="OPTIONS") + b"GET / HT")
        assert [seconds for seconds, _ in timers] == [10], "that one's deadline"
        await side.feed(half, b"TP/1.1\r\n")
        await side.feed(half, b"host: x\r\n\r\n")
        assert half.sent.startswith(b"HTTP/1.1 200")
        assert [seconds for seconds, _ in timers] == [10, 75]
        await side.feed(half, b"GET / HT")
        loop.now += 80
        timers.pop(1)[1]()
        assert not half.closed, "a request is on its way"
        assert [seconds for seconds, _ in timers] == [10, 10], "which has its own deadline"
        timers.pop()[1]()
        assert half.closed


async def test_empty_lines_keep_no_connection_and_requests_do(clock: Clock) -> None:
    async with both(clock, **OFF) as sides:
        side = sides[1]
        wire = side.connect()
        timers: list[tuple[float, Any]] = []
        wire.protocol.loop = loop = _Loop(timers)
        await side.feed(wire, request(method="OPTIONS"))
        for _ in range(15):
            loop.now += 5
            await side.feed(wire, b"\r\n")
        assert [seconds for seconds, _ in timers] == [75]
        timers.pop()[1]()
        assert wire.closed

        wire = side.connect()
        wire.protocol.loop = loop
        await side.feed(wire, request(GOOD))
        await side.feed(wire, request(GOOD))
        clock.advance(600)
        await side.feed(wire, request(GOOD))
        assert wire.protocol._idle_timer is not None, "set when a load was answered"
        await side.feed(wire, request(GOOD))
        assert b"bff; hit" in wire.sent


async def test_a_load_is_not_idle(clock: Clock) -> None:
    async with both(clock) as sides:
        wire = sides[1].connect()
        wire.protocol.data_received(request(method="OPTIONS") + request(GOOD))
        assert wire.sent.startswith(b"HTTP/1.1 204")
        assert wire.protocol._idle_timer is None
        await sides[1].settle()
        assert wire.sent.count(b"HTTP/1.1 200") == 1
        assert wire.protocol._idle_timer is not None


async def test_who_does_not_read_the_last_answer_is_not_waited_for(clock: Clock) -> None:
    async with both(clock) as sides:
        for side in sides:
            wire = side.connect()
            timers: list[tuple[float, Any]] = []
            wire.protocol.loop = _Loop(timers)
            wire.close = lambda w=wire: setattr(w, "closed", True)  # type: ignore[method-assign]
            await side.feed(wire, request(method="OPTIONS") + b"NOT HTTP\r\n\r\n")
            assert wire.closed
            assert [seconds for seconds, _ in timers] == [75]
            timers.pop()[1]()
            counts, _ = side.told()
            assert counts["bff_closed_connections", "unread_answer"] == 1


class _Loop:
    def __init__(self, timers: list[tuple[float, Any]]) -> None:
        self.now = 0.0
        self._timers = timers

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Any) -> Any:
        self._timers.append((seconds, callback))
        return asyncio.get_running_loop().call_later(3600, lambda: None)

    def create_task(self, coroutine: Any) -> Any:
        return asyncio.get_running_loop().create_task(coroutine)


async def test_shutting_down_closes_idle_connections_and_finishes_loads(clock: Clock) -> None:
    async with both(clock) as sides:
        side = sides[1]
        idle, loading = side.connect(), side.connect()
        await side.feed(idle, request(method="OPTIONS"))
        loading.protocol.data_received(request(GOOD))
        for wire in (idle, loading):
            wire.protocol.shutdown()
        assert idle.closed
        assert not loading.closed
        await side.settle()
        assert b"HTTP/1.1 200" in loading.sent
        assert b"connection: close" in loading.sent
        assert loading.closed


async def test_a_browser_that_left_is_no_failure_of_ours(clock: Clock) -> None:
    async with both(clock) as sides:
        for side in sides:
            wire = side.connect()

            def write(data: Any, wire: Wire = wire) -> None:  # as uvloop's does: reset, then closed
                if wire.closed:
                    raise RuntimeError("the handler is closed")
                wire.sent += data
                wire.close()

            wire.write = write  # type: ignore[method-assign]
            await side.feed(wire, request(GOOD))
            counts, lines = side.told()
            assert wire.sent.startswith(b"HTTP/1.1 200")
            assert [key for key in counts if key[0] == "bff_requests" and key[2] == 500] == []
            assert [line["event"] for line in lines if line["event"] == "request_failed"] == []


async def test_what_nobody_foresaw_is_told_as_json(clock: Clock) -> None:
    async with both(clock) as sides:
        for side in sides:
            side.world.service.gateway.config.verifier = None  # type: ignore[assignment]
        answer = await same(sides, request(GOOD, f"origin: {ORIGIN}"))
        assert b"HTTP/1.1 500" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "internal"
        assert b"access-control-allow-origin: " + ORIGIN.encode() in answer
        assert sides[1].told()[0] == sides[0].told()[0]


async def test_another_uvicorn_turns_it_off(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert uvicorn_adapter.why_untested() is None, (
        "check the adapter against this uvicorn, then add its digest"
    )
    monkeypatch.setattr(uvicorn_adapter, "_TESTED", frozenset())
    async with World(clock) as world:
        assert world.service.protocol is world.service.bounded_protocol
        assert world.service.protocol.func is BoundedProtocol
        assert [line["event"] for line in world.logged()] == ["fast_path_off"]


@pytest.mark.parametrize(
    ("setting", "expected"), [("true", FastPathProtocol), ("false", BoundedProtocol)]
)
def test_the_setting_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, setting: str, expected: type
) -> None:
    seen: list[Any] = []

    async def run(servers: Any, _: Any) -> None:
        seen.extend(config.http for config, sock in servers if not sock.close())
        assert gc.get_freeze_count() > 10_000, "what was imported is no work for the collector"
        gc.unfreeze()

    monkeypatch.setattr(server, "run", run)
    told = environ(BFF_FAST_PATH=setting, BFF_PORT="0", BFF_OPS_PORT="0")
    result = CliRunner().invoke(main, ["serve"], env=told, catch_exceptions=False)
    assert result.exit_code == 0
    browser, ops = seen
    assert browser.func is expected
    assert ops == "httptools"


@hypothesis(max_examples=60, deadline=None)
@given(
    origin=st.binary(max_size=40),
    inm=st.binary(max_size=40),
    path=st.binary(max_size=40),
    forwarded=st.binary(max_size=40),
)
async def test_no_answer_can_be_split(
    origin: bytes, inm: bytes, path: bytes, forwarded: bytes
) -> None:
    """The lane writes a reply's head as it is, so no byte of a browser's may get into it."""
    clock = Clock()
    async with World(clock, BFF_ALLOWED_ORIGINS="*", BFF_TRUSTED_PROXIES="192.0.2.1") as world:
        await world.get("chat-1")
        headers = [
            (b"authorization", GOOD.partition(": ")[2].encode()),
            (b"origin", origin),
            (b"if-none-match", inm),
            (b"x-forwarded-for", forwarded),
        ]
        for asked in (PATH.encode() + b"chat-1", b"/" + path, PATH.encode() + path):
            head = RequestHead.read("GET", asked, b"", headers, "192.0.2.1")
            response = world.service.gateway.decide(head, *clock())
            if isinstance(response, PendingLoad):
                response = await world.service.gateway.finish(response)
            assert response.head.endswith(b"\r\n")
            for line in response.head[:-2].split(b"\r\n"):
                assert re.fullmatch(rb"[a-z-]+: [\x20-\x7e]*", line)


async def test_the_lane_of_each_answer_is_counted(clock: Clock) -> None:
    """A load goes by ASGI, the hits on it do not, and what is no request took neither."""
    async with both(clock) as sides:
        for data in (*[request(GOOD)] * 3, request(target="/healthz"), b"NOT HTTP\r\n\r\n"):
            await same(sides, data)
        wires = [side.connect() for side in sides]
        await same(sides, request(target="/healthz"), wires=wires)
        clock.advance(60)
        for _ in range(3):
            await same(sides, request(GOOD), wires=wires)
        counted = [
            {k[1:]: n for k, n in side.world.telemetry.counts.items() if k[0] == "bff_requests"}
            for side in sides
        ]
    refused = {("other", 400, "bad_request", "none"): 1}
    assert (
        counted[0]
        == {
            ("session", 200, "", "asgi"): 6,
            ("page", 200, "", "asgi"): 2,
        }
        | refused
    )
    assert (
        counted[1]
        == {
            ("session", 200, "", "asgi"): 2,
            ("session", 200, "", "fast"): 4,
            ("page", 200, "", "fast"): 2,
        }
        | refused
    )

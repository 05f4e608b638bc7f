"""Two gateways that differ in the fast path only, fed with the same bytes in this process.

One has `BoundedProtocol` and the application behind it, the other `FastPathProtocol`. Tests
call the protocols as the event loop does, and compare answers, counts and log lines.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from support.world import PATH, Clock, World, claims, read, sign
from uvicorn.server import ServerState

from bff.server import run
from bff.server.connection import BoundedProtocol
from bff.server.fast_path import FastPathProtocol


class FakeTransport(asyncio.Transport):
    """Records what a connection writes, and whether it closes or stops reading."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.sent = bytearray()
        self.closed = False
        self.ended = False
        self.reading = True
        self.late_writes = 0

    @property
    def over(self) -> bool:
        return self.closed or self.ended

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        ends = {"peername": ("192.0.2.1", 40000), "sockname": ("127.0.0.1", 8787)}
        return ends.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.over:
            self.late_writes += 1
        else:
            self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def write_eof(self) -> None:
        """End the writing side; the protocol discards what still arrives."""
        self.ended = True

    def abort(self) -> None:
        self.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore the limits: a test calls `pause_writing`."""

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


@dataclass(eq=False)
class FakeTimer:
    loop: "FakeLoop"
    seconds: float
    callback: Callable[[], None]

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)

    def run(self) -> None:
        self.cancel()
        self.callback()


class FakeLoop:
    """A loop whose time tests move, and whose timers they run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[FakeTimer] = []

    @property
    def seconds(self) -> list[float]:
        return [timer.seconds for timer in self.timers]

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Any) -> Any:
        self.timers.append(FakeTimer(self, seconds, callback))
        return self.timers[-1]

    def create_task(self, coroutine: Any) -> Any:
        return asyncio.get_running_loop().create_task(coroutine)


class Side:
    """One gateway and its server's state."""

    def __init__(self, world: World, *, fast: bool) -> None:
        self.world = world
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"Mon, 23 Nov 2026 22:00:00 GMT")]
        protocol = world.service.protocol if fast else world.service.bounded_protocol
        assert protocol.func is (FastPathProtocol if fast else BoundedProtocol)
        self.config = run.config(world.service.browser_app, lifespan=False, protocol=protocol)
        self.config.load()

    def connect(self, loop: FakeLoop | None = None) -> FakeTransport:
        transport = FakeTransport()
        make: Any = self.config.http_protocol_class
        transport.protocol = make(
            config=self.config, server_state=self.state, app_state={}, _loop=loop or FakeLoop()
        )
        transport.protocol.connection_made(transport)
        return transport

    async def settle(self) -> None:
        """Wait for every answer and every load."""
        for _ in range(3):
            await asyncio.sleep(0)
            while self.state.tasks or len(self.world.service.gateway.cache.loads):
                await asyncio.sleep(0)

    async def feed(self, transport: FakeTransport, *reads: bytes) -> bytes:
        """Return the answer to *reads*. Each arrives when all before are answered."""
        del transport.sent[:]
        for data in reads:
            if not transport.over:
                transport.protocol.data_received(data)
            await self.settle()
        return bytes(transport.sent)

    async def feed_unsettled(self, transport: FakeTransport, data: bytes) -> bytes:
        """Return what is written to *data* within a few turns of the loop."""
        transport.protocol.data_received(data)
        for _ in range(10):
            await asyncio.sleep(0)
        return bytes(transport.sent)

    def records(self) -> tuple[dict[Any, float], list[dict[str, Any]]]:
        """Return the counts and log lines in which both sides must agree."""
        lines = self.world.logged()
        for line in lines:
            for name in ("timestamp", "request_id", "seconds"):
                line.pop(name, None)
        # The fourth label of bff_requests says which way served the answer.
        counts: defaultdict[Any, float] = defaultdict(float)
        for key, n in self.world.telemetry.counts.items():
            counts[key[:4] + key[5:] if key[0] == "bff_requests" else key] += n
        return {k: n for k, n in counts.items() if k[0] != "bff_load_seconds"}, lines


Sides = tuple[Side, Side]
"""Without and with the fast path."""


@asynccontextmanager
async def both_sides(clock: Clock, **changes: str) -> AsyncIterator[Sides]:
    # Some connections linger for seconds, so the number of open ones depends on time.
    plenty = ("BFF_MAX_CONNECTIONS", "BFF_MAX_CONNECTIONS_PER_ADDRESS")
    changes = dict.fromkeys(plenty, "1000000") | changes
    async with World(clock, **changes) as slow, World(clock, **changes) as fast:
        yield Side(slow, fast=False), Side(fast, fast=True)


async def feed_both(
    sides: Sides, *reads: bytes, transports: list[FakeTransport] | None = None
) -> bytes:
    """Feed both sides, check that they answer the same bytes, and return them."""
    transports = transports or connect_both(sides)
    slow, fast = [
        re.sub(rb"x-request-id: [0-9a-f-]+", b"x-request-id: *", await side.feed(one, *reads))
        for side, one in zip(sides, transports, strict=True)
    ]
    assert fast == slow, reads
    assert [t.closed for t in transports] == [transports[0].closed] * 2, reads
    assert [t.ended for t in transports] == [transports[0].ended] * 2, reads
    assert [t.late_writes for t in transports] == [0, 0], reads
    return fast


def connect_both(sides: Sides) -> list[FakeTransport]:
    return [side.connect() for side in sides]


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answers)]


def request(
    *lines: str, method: str = "GET", target: str = PATH + "chat-1", version: str = "1.1"
) -> bytes:
    first = f"{method} {target} HTTP/{version}"
    return "\r\n".join([first, "host: x", *lines, "", ""]).encode("latin-1")


def authorization(*scopes: str, key: str | None = None, **changes: Any) -> str:
    """Return the header line with a token of these scopes."""
    arguments = [key] if key else []
    return "authorization: Bearer " + sign(
        claims(Clock().wall, *scopes, act={"sub": "u"}, **changes), *arguments
    )


GOOD = authorization(*read("chat-1"))
"""Names chat-1."""
TYPE_WIDE = authorization("read:sessions")
"""Covers all sessions."""

PREFLIGHT = request(method="OPTIONS")
UNUSUAL_LINES = [
    *("connection: close", "Connection: Upgrade", "upgrade: websocket", "expect: 100-continue"),
    *("content-length: 0", "content-length: 3", "transfer-encoding: chunked", "content-length: x"),
    *("transfer-encoding: gzip", "content-length: 0\r\ncontent-length: 0", "x y: z", "x: a\x00b"),
    *(" folded: x", "connection: close, x", "proxy-connection: close", "http2-settings: x"),
]
"""Header lines that change how a request is framed, or are invalid."""

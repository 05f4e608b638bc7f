"""Measures chat streams of several servers in turns, for `make bench`: reads thousands of them.

The upstream of the benchmark writes into each event the time at which it sends it (`origin.py`), so
the latency of an event needs no second clock.
"""

import asyncio
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import uvloop

_SENT = re.compile(rb"@(\d+)@")
_EVENT = b"event: "
_AT_ONCE = 100
"""Streams that are opened together."""
_PAUSE = 0.02
"""Seconds between two streams whose first event is measured."""
_HITS_AHEAD = 20
_ANSWER = b"HTTP/1.1 200 "
ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)
Row = dict[str, float]
"""The figures of one server; `KEYS` names them."""
KEYS = {
    "cpu": "CPU µs an event",
    "rate": "events/s",
    "first": "first delta, p50 ms",
    "first99": "p99 ms",
    "kib": "KiB a stream",
    "hits": "hits beside",
}


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Args:
        hits: whether it answers sessions from memory, so that hits beside streams are measured.
        stat: CPU seconds and MiB of its processes so far.
    """

    name: str
    port: int
    hits: bool
    stat: Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Load:
    """The streams of a round, and the seconds of each of its parts."""

    busy: int
    quiet: int
    seconds: float
    rounds: int


def measure(servers: Sequence[Server], token: Callable[[str], str], load: Load) -> dict[str, Row]:
    """Return the median figures of each server; *token* makes that of a session."""
    return uvloop.run(_rounds(servers, token, load))


async def _rounds(
    servers: Sequence[Server], token: Callable[[str], str], load: Load
) -> dict[str, Row]:
    runs: dict[str, list[Row]] = {server.name: [] for server in servers}
    for _ in range(load.rounds):
        for server in servers:
            runs[server.name].append(await _round(server, token, load))
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in runs.items()
    }


async def _round(server: Server, token: Callable[[str], str], load: Load) -> Row:
    streams = _Streams(server, token)
    without = await streams.hits(load.seconds) if server.hits else 0.0
    _, before = server.stat()
    await streams.open("quiet", load.quiet)
    kib = max(0.0, server.stat()[1] - before) * 1024 / load.quiet
    await streams.open("busy", load.busy)
    rate, cpu = await streams.cost(load.seconds)
    firsts = sorted(await streams.firsts(load.seconds))
    row = {"cpu": cpu, "rate": rate, "kib": kib, "first": statistics.median(firsts)}
    row["first99"] = firsts[int(len(firsts) * 0.99)]
    if server.hits:
        row["hits"] = await streams.hits(load.seconds) / without
    await streams.close()
    return row


class _Browser(asyncio.Protocol):
    """Reads one stream, and notes how late its first event is."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""
        self.events = 0
        self.first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    # uvloop's transports are not instances of asyncio's classes.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._head = self._head or data[:15]
        self.events += data.count(_EVENT)
        if not self.first.done() and (sent := _SENT.search(data)):
            self.first.set_result((time.monotonic_ns() - int(sent[1])) / 1e6)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        if not self.first.done():
            self.first.set_exception(exc or EOFError(f"no stream: {self._head!r}"))


class _Hits(asyncio.Protocol):
    """Asks for one session again and again, with some requests under way at a time."""

    def __init__(self, request: bytes) -> None:
        self._request, self._rest = request, b""
        self.answered = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self._request * _HITS_AHEAD)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        answers = data.count(_ANSWER)
        self._rest = data[1 - len(_ANSWER) :]  # the next read may bring the rest of a start
        self.answered += answers
        self.transport.write(self._request * answers)


@dataclass
class _Streams:
    """The open streams of one server."""

    server: Server
    token: Callable[[str], str]
    _open: list[_Browser] = field(default_factory=list)
    _numbers: int = 0

    async def open(self, kind: str, streams: int) -> None:
        """Open streams, and wait until each has its first event."""
        for start in range(0, streams, _AT_ONCE):
            some = [self._stream(kind) for _ in range(min(_AT_ONCE, streams - start))]
            opened = await asyncio.gather(*some)
            await asyncio.gather(*(one.first for one in opened))
            self._open += opened

    async def _stream(self, kind: str) -> _Browser:
        self._numbers += 1
        session = f"{kind}-{self._numbers}"
        request = self._request(f"/realtime/v1/sessions/{session}/out", session)
        request = request[:-2] + b"accept: text/event-stream\r\n\r\n"
        return await self._connect(lambda: _Browser(request))

    def _request(self, path: str, session: str) -> bytes:
        authorization = f"authorization: Bearer {self.token(session)}"
        return f"GET {path} HTTP/1.1\r\nhost: gateway\r\n{authorization}\r\n\r\n".encode()

    async def _connect(self, make: Callable[[], ProtocolT]) -> ProtocolT:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(make, "127.0.0.1", self.server.port)
        return protocol

    async def cost(self, seconds: float) -> tuple[float, float]:
        """Read for some *seconds*; returns events a second, and microseconds of CPU for each."""
        events, (cpu, _), began = self._events(), self.server.stat(), time.monotonic()
        await asyncio.sleep(seconds)
        events = self._events() - events
        cpu = (self.server.stat()[0] - cpu) / max(1, events) * 1e6
        return events / (time.monotonic() - began), cpu

    async def firsts(self, seconds: float) -> list[float]:
        """Open one stream after the other; returns how late their first events are, in ms."""
        ends, firsts = time.monotonic() + seconds, list[float]()
        while not firsts or time.monotonic() < ends:
            browser = await self._stream("first")
            firsts.append(await browser.first)
            browser.transport.abort()
            await asyncio.sleep(_PAUSE)
        return firsts

    async def hits(self, seconds: float) -> float:
        """Ask for one session for some *seconds*; returns hits of a second of CPU."""
        request = self._request("/api/v1/sessions/chat-1", "chat-1")
        (cpu, _), asking = self.server.stat(), await self._connect(lambda: _Hits(request))
        await asyncio.sleep(seconds)
        asking.transport.abort()
        return asking.answered / max(0.01, self.server.stat()[0] - cpu)

    def _events(self) -> int:
        return sum(one.events for one in self._open)

    async def close(self) -> None:
        for one in self._open:
            one.transport.abort()
        await asyncio.gather(*(one.lost for one in self._open))


def table(results: dict[str, Row]) -> list[str]:
    """Format the results as a Markdown table; empty without any."""
    if not results:
        return []
    shown = [key for key in KEYS if any(key in row for row in results.values())]
    lines = [
        f"| chat streams | {' | '.join(KEYS[key] for key in shown)} |",
        "|---|" + "---:|" * len(shown),
    ]
    for name, row in sorted(results.items(), key=lambda one: one[1]["cpu"]):
        cells = [_cell(key, row[key]) if key in row else "—" for key in shown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(key: str, value: float) -> str:
    if key == "hits":
        return f"{value:.0%}"
    return f"{value:,.0f}" if key == "rate" else f"{value:.1f}"

"""Measures quiet listeners of one worker: memory, the spread of one change, CPU while quiet.

    python tests/bench/listeners.py [LISTENERS]

Both ends of each connection are on this machine, so LISTENERS needs as many open files (ulimit -n).
"""

import asyncio
import os
import select
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from support.world import OFF, PATH, Gateway, read, running_upstream, until

AT_ONCE = 200
QUIET_SECONDS = 5.0
CHANGES = 3
"""Changes that are measured; the quickest one counts, because the machine has other work."""


@dataclass(frozen=True)
class Measured:
    """The figures of one run.

    Attributes:
        kib: memory of a listener.
        spread: seconds between the first and the last listener that got a change.
        cost: microseconds of CPU that a change takes for each listener, the kernel's part included.
            It is without the cost of quiet listeners until the change is loaded.
        bare_spread: the spread of a server that writes as much to as many connections, and decides
            nothing.
        bare_cost: the cost of that server.
        cpu: share of a core while nothing changes.
        hits: hits that a second of CPU answers beside the quiet listeners, as a part of those that it
            answers without them.
    """

    kib: float
    spread: float
    cost: float
    bare_spread: float
    bare_cost: float
    cpu: float
    hits: float


async def measure(listeners: int, quiet: float = QUIET_SECONDS) -> Measured:
    bounds = ("MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS", "MAX_LISTENERS_PER_CALLER")
    settings = {f"BFF_{name}": str(2 * listeners + 100) for name in bounds}
    settings |= {"BFF_MAX_LISTENERS": str(8 * listeners)}
    with running_upstream() as upstream, Gateway(upstream.port, **OFF, **settings) as gateway:
        without = _hits(gateway, quiet)
        before = _memory(gateway)
        pages: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for start in range(0, listeners, AT_ONCE):
            numbers = range(start, min(listeners, start + AT_ONCE))
            pages += await asyncio.gather(*(_open(gateway, number) for number in numbers))
        kib = (_memory(gateway) - before) / listeners
        cpu = _cpu(gateway.process.pid)
        await asyncio.to_thread(sleep, quiet)
        cpu = (_cpu(gateway.process.pid) - cpu) / quiet
        hits = _hits(gateway, quiet) / without
        document = upstream.app.environments[0].find("chat-1")
        assert document is not None
        writers = [writer for _, writer in pages]
        costs, spreads = [], []
        for number in range(CHANGES):
            used, began = _cpu(gateway.process.pid), perf_counter()
            document["taskIdentifier"] = f"task-{number}"
            spreads.append(_spread(writers))
            used = _cpu(gateway.process.pid) - used - cpu * (perf_counter() - began)
            costs.append(used / listeners * 1e6)
        _leave(writers)
    bare_spread, bare_cost = await _bare(listeners)
    return Measured(kib, min(spreads), min(costs), bare_spread, bare_cost, cpu, hits)


async def _bare(listeners: int) -> tuple[float, float]:
    """Measure the server that writes to all connections and decides nothing: its spread and cost."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = _start_bare(port)
    try:
        until(lambda: _listens(port))
        writers: list[asyncio.StreamWriter] = []
        while len(writers) < listeners:
            some = min(AT_ONCE, listeners - len(writers))
            opened = [asyncio.open_connection("127.0.0.1", port) for _ in range(some)]
            writers += [writer for _, writer in await asyncio.gather(*opened)]
        costs, spreads = [], []
        with socket.create_connection(("127.0.0.1", port)) as trigger:
            for _ in range(CHANGES):
                used = _cpu(server.pid)
                trigger.sendall(b"x")
                spreads.append(_spread(writers))
                costs.append((_cpu(server.pid) - used) / listeners * 1e6)
        _leave(writers)
        return min(spreads), min(costs)
    finally:
        server.kill()
        server.wait()


def _start_bare(port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("loops.py")), "push", str(port)]
    )


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return not asked.connect_ex(("127.0.0.1", port))


def _leave(pages: list[asyncio.StreamWriter]) -> None:
    for writer in pages:
        writer.transport.abort()


async def _open(gateway: Gateway, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    token = gateway.token(*read("chat-1"), act={"sub": f"person-{number}"})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        f"GET {PATH}chat-1 HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    await reader.readuntil(b"event: sessions\n")
    await reader.readuntil(b"\n\n\r\n")
    return reader, writer


def _hits(gateway: Gateway, seconds: float) -> float:
    """Measure the hits that a second of the gateway's CPU answers: the machine has other work.

    They come on one connection, which has 20 requests under way at a time.
    """
    request = (
        f"GET {PATH}chat-1 HTTP/1.1\r\nHost: gateway\r\n"
        f"Authorization: Bearer {gateway.token(*read('chat-1'))}\r\n\r\n"
    ).encode()
    answered, began, used = 0, perf_counter(), _cpu(gateway.process.pid)
    with socket.create_connection(("127.0.0.1", gateway.port)) as page:
        while perf_counter() - began < seconds:
            page.sendall(request * 20)
            received = b""
            while received.count(b"HTTP/1.1 200") < 20 or not received.endswith(b"}"):
                received += page.recv(262_144)
            answered += 20
    return answered / max(_cpu(gateway.process.pid) - used, 0.01)


def _spread(pages: list[asyncio.StreamWriter]) -> float:
    """Wait for a change at all *pages*, with little work for each.

    It blocks the event loop, which would read too.
    """
    waiting = {writer.get_extra_info("socket").fileno() for writer in pages}
    times = []
    with select.epoll() as poll:
        for number in waiting:
            poll.register(number, select.EPOLLIN)
        while waiting:
            ready = poll.poll(30, len(pages))
            assert ready, f"{len(waiting)} pages got no change"
            for number, _ in ready:
                if b"event: session\n" in os.read(number, 65536):
                    waiting.discard(number)
                    times.append(perf_counter())
    return max(times) - min(times)


def _memory(gateway: Gateway) -> int:
    """Read the KiB of memory that the process has."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _cpu(pid: int) -> float:
    """Read the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    figures = asyncio.run(measure(number))
    print(
        f"{number} listeners: {figures.kib:.1f} KiB each, {figures.cpu:.1%} of a core while quiet"
    )
    print(f"hits keep {figures.hits:.0%} of their rate beside them")
    print(
        f"a change: {figures.cost:.0f} µs of CPU each, {figures.spread * 1000:.0f} ms to read all"
    )
    print(
        f"a server that only writes: {figures.bare_cost:.0f} µs of CPU each, "
        f"{figures.bare_spread * 1000:.0f} ms to read all"
    )
    if figures.bare_cost:  # CPU is counted in hundredths of a second: too coarse for few listeners
        times = figures.cost / figures.bare_cost
        print(f"so a change costs {times:.1f} times what writing it costs")

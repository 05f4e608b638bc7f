"""Measures CPU microseconds of a load, and of the HTTP client alone, in one process.

    python tests/bench/load.py

A fast upstream has the other core, with one warm connection and one load at a time. The two take
turns, so that a busy moment hurts both. The least of many rounds counts; the median is shown too.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import httpx2
import uvloop

from bff.app import Service
from bff.clock import system_clock
from bff.config import reader
from bff.request import RequestHead
from bff.response import Response
from bff.telemetry import Telemetry
from bff.tokens.mint import mint

ORIGIN = Path(__file__).with_name("origin.py")
KEY = "benchmark-signing-key-0123456789abcdef"
LOADS = 100
"""Loads in a round."""
IN_A_ROW = 10_000
"""Sessions that are loaded one after another."""


def measure(rounds: int, row: int = IN_A_ROW) -> dict[str, dict[str, float]]:
    """Return the least and the median of the microseconds of each; *row* loads are in a row."""
    port = _free_port()
    origin = subprocess.Popen(["taskset", "-c", "1", sys.executable, str(ORIGIN), str(port)])
    os.sched_setaffinity(0, {0})
    try:
        _listens(port)
        with (
            Path(os.devnull).open("w") as nowhere,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_rounds(rounds, row, f"http://127.0.0.1:{port}", Telemetry(nowhere)))
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        origin.kill()
        origin.wait()


async def _rounds(
    rounds: int, row: int, url: str, telemetry: Telemetry
) -> dict[str, dict[str, float]]:
    service, load = _loading(url, telemetry)
    numbers = count()
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=10)
    async with httpx2.AsyncClient(trust_env=False, limits=limits) as client:

        async def call() -> None:
            path = f"{url}/api/v1/sessions/call-{next(numbers)}"
            answer = await client.get(path, headers={"authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200

        took = await _in_turns({"bare client call": call, "load": load}, rounds)
    await service.network.aclose()
    return took | await _in_a_row(row, url, telemetry)


def _loading(url: str, telemetry: Telemetry) -> tuple[Service, Callable[[], Awaitable[None]]]:
    """Make a service, and a function that lets it load another session each time."""
    told = reader.load(
        {
            "TRIGGER_SECRET_KEY": "tr_dev_sk_bench",
            "TRIGGER_API_URL": url,
            "BFF_SIGNING_KEYS": KEY,
            "BFF_UPSTREAM_BUDGET": "off",
            "BFF_RATE_LIMIT": "999999999/minute",
            "BFF_IP_RATE_LIMIT": "999999999/minute",
        }
    )
    bearer = mint(
        KEY, environment_id="env", scopes=["read:sessions"], issued=int(time.time()), ttl=7200,
        actor="u",
    )  # fmt: skip
    service = Service(told, telemetry)
    gateway, numbers = service.gateway, count()
    headers = [(b"authorization", b"Bearer " + bearer.encode())]

    async def load() -> None:
        path = b"/api/v1/sessions/load-%d" % next(numbers)
        head = RequestHead.read("GET", path, b"", headers, "127.0.0.1")
        answer = gateway.decide(head, *system_clock())
        assert not isinstance(answer, Response)
        assert (await gateway.finish(answer)).status == 200

    return service, load


async def _in_turns(
    works: dict[str, Callable[[], Awaitable[None]]], rounds: int
) -> dict[str, dict[str, float]]:
    took: dict[str, list[float]] = {name: [] for name in works}
    for n in range(rounds + 2):
        for name, work in works.items():
            began = time.process_time()
            for _ in range(LOADS):
                await work()
            if n >= 2:  # the first two warm up
                took[name].append((time.process_time() - began) / LOADS * 1e6)
    return {
        name: {"least": min(times), "median": statistics.median(times)}
        for name, times in took.items()
    }


async def _in_a_row(row: int, url: str, telemetry: Telemetry) -> dict[str, dict[str, float]]:
    """Load *row* sessions, one after another; the last must cost no more than the first.

    The last of them take turns with the first of another service, so a busy moment hurts both.
    """
    (old, load), (young, load_first) = _loading(url, telemetry), _loading(url, telemetry)
    rounds = max(1, row // 10 // LOADS)
    for _ in range(row - rounds * LOADS):
        await load()
    took = await _in_turns(
        {
            f"load, one of the first of {row:,}": load_first,
            f"load, one of the last of {row:,}": load,
        },
        rounds,
    )
    await old.network.aclose()
    await young.network.aclose()
    return took


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _listens(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.025)
        else:
            return
    raise RuntimeError("the upstream does not listen")


def table(cold: dict[str, dict[str, float]]) -> list[str]:
    """Format the result as a Markdown table."""
    call = cold["bare client call"]
    return [
        "| CPU of one process | least µs | median µs | ratio (least) | ratio (median) |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {took['least']:,.0f} | {took['median']:,.0f} | "
            f"{took['least'] / call['least']:.2f} | {took['median'] / call['median']:.2f} |"
            for name, took in cold.items()
        ),
    ]


if __name__ == "__main__":
    print("\n".join(table(measure(rounds=30))))

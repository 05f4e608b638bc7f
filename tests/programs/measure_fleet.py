"""Measure what replicas cost: the CPU and the commands of a load, and the loads of processes.

    python tests/programs/measure_fleet.py

On a real store. `tests/replicas/test_fleet_page.py` holds the numbers of docs/FLEET.md to bounds.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from replicas.test_processes import Traffic, wait_until_counted
from support.engines import Engine
from support.replicas import RealClock, Replicas
from support.world import OFF, Gateway, World, running_upstream

from bff.demo.upstream import session

LOADS = 1000


async def loads(world: World, number: int) -> float:
    """Measure the CPU seconds of this process for each load, the pretend upstream included."""
    token = world.token("read:sessions")
    began = time.process_time()
    for n in range(number):
        assert (await world.get(f"many-{n}", token=token)).status_code == 200
    return (time.process_time() - began) / number


async def costs(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        replicas = Replicas(engine, stack)
        alone = await stack.enter_async_context(World(RealClock(), **OFF, BFF_CACHE_TTL="60"))
        replicas.upstream = alone.upstream
        for n in range(LOADS):
            alone.upstream.environments[0].add(session(n + 100, f"many-{n}"))
        one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
        for world in (alone, one, two):
            await world.get("chat-1")
        print(f"a load without a store: {await loads(alone, LOADS) * 1e6:.0f} µs of CPU")
        with engine.client() as client:
            client.config_resetstat()
            print(f"with a store: {await loads(one, LOADS) * 1e6:.0f} µs")
            await asyncio.sleep(0.2)
            calls = {k: v["calls"] / LOADS for k, v in client.info("commandstats").items()}
            print("commands for each load, those in scripts included:", calls)
            client.config_resetstat()
            print(f"a copy of another replica: {await loads(two, LOADS) * 1e6:.0f} µs")
            calls = {k: v["calls"] / LOADS for k, v in client.info("commandstats").items()}
            print("commands for each copy:", calls)
        print(f"a hit, through the same test client: {await loads(two, LOADS) * 1e6:.0f} µs")


def loads_of_processes(engine: Engine, number: int, sessions: int, budget: str, ttl: float) -> None:
    """Print how often gateway processes together load a session."""
    engine.empty()
    changes = OFF | {
        "BFF_STORE_URL": engine.url,
        "BFF_STORE_TIMEOUT": "2",
        "BFF_CACHE_TTL": str(ttl),
        "BFF_UPSTREAM_BUDGET": budget,
    }
    ids = [f"many-{n}" for n in range(sessions)]
    with running_upstream() as upstream, ExitStack() as stack:
        for n, id_ in enumerate(ids, start=100):
            upstream.app.environments[0].add(session(n, id_))
        gateways = [stack.enter_context(Gateway(upstream.port, **changes)) for _ in range(number)]
        wait_until_counted(gateways)
        with Traffic(gateways, ids, threads=4, pause=0.0) as traffic:
            time.sleep(10)  # until each of them counts the hot sessions
            before, began, polls = len(upstream.seen), time.monotonic(), len(traffic.responses)
            time.sleep(20)
            loads, took = len(upstream.seen) - before, time.monotonic() - began
            polls = len(traffic.responses) - polls
    rate = None if budget == "off" else int(budget.partition("/")[0])
    fresh = max(ttl, sessions / rate if rate else 0)
    print(
        f"{number} processes, {sessions} sessions, budget {budget}: effective TTL {fresh:g} s, "
        f"{polls / took:.0f} polls/s, {loads / took:.2f} loads/s: "
        f"{loads * fresh / took / sessions:.3f} a session and TTL; {dict(traffic.statuses)}"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Engine("valkey", Path(folder)) as engine:
        asyncio.run(costs(engine))
        for number in (2, 4):
            loads_of_processes(engine, number, 1, "off", 1.0)
            loads_of_processes(engine, number, 40, "20/second", 0.5)


if __name__ == "__main__":
    main()

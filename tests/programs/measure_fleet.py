"""What sharing costs, and how much of a limit it can leave unused.

    python tests/programs/measure_fleet.py

On a real store; the figures in docs/FLEET.md are this program's.
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from support.engines import Engine
from support.replicas import RealClock, Replicas
from support.world import OFF, Gateway, World, read, running_upstream
from test_replicas import Traffic, together

from bff.demo.upstream import session

LOADS = 1000


async def loads(world: World, number: int, first: int) -> float:
    """Seconds of CPU of this process for each of *number* loads, the pretend upstream included."""
    token = world.token("read:sessions")
    began = time.process_time()
    for n in range(first, first + number):
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
        print(f"a load without a store: {await loads(alone, LOADS, 0) * 1e6:.0f} µs of CPU")
        with engine.client() as client:
            client.config_resetstat()
            used = client.info("memory")["used_memory_dataset"]
            print(f"with one: {await loads(one, LOADS, 0) * 1e6:.0f} µs")
            await asyncio.sleep(0.2)
            calls = {k: v["calls"] / LOADS for k, v in client.info("commandstats").items()}
            print("commands a load (those in scripts too):", calls)
            kept = client.info("memory")["used_memory_dataset"] - used
            print(f"bytes in the store for each session, under two ids: {kept / LOADS:.0f}")
            client.config_resetstat()
            print(f"another replica's copy: {await loads(two, LOADS, 0) * 1e6:.0f} µs")
            calls = {k: v["calls"] / LOADS for k, v in client.info("commandstats").items()}
            print("commands a copy:", calls)
        print(f"a hit, through this test's client: {await loads(two, LOADS, 0) * 1e6:.0f} µs")


async def unused(engine: Engine, number: int, limit: int, *, spread: bool) -> tuple[int, int]:
    """How much of a limit is left unused by a caller that asks all replicas in turn, or each once
    in a while and one most of the time; and how many leases that took."""
    engine.execute("FLUSHALL")
    async with AsyncExitStack() as stack:
        replicas = Replicas(engine, stack)
        worlds = await replicas.several(
            number, **OFF | {"BFF_RATE_LIMIT": f"{limit}/minute"}, BFF_CACHE_TTL="60"
        )
        token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
        for world in worlds:
            await world.get("chat-1", token=world.token(*read("chat-1"), act={"sub": "other"}))
        before = sum(w.telemetry.counts["bff_leases", "caller"] for w in worlds)
        allowed = 0
        for n in range(limit + 100):
            world = worlds[n % number if spread or n < number else 0]
            allowed += (await world.get("chat-1", token=token)).status_code == 200
        leases = sum(w.telemetry.counts["bff_leases", "caller"] for w in worlds) - before
        return limit - allowed, int(leases)


def loads_of_processes(engine: Engine, number: int, sessions: int, budget: str, ttl: float) -> None:
    """How often real gateway processes ask upstream, all of them together."""
    with engine.client() as client:
        client.flushall()
    told = OFF | {
        "BFF_STORE_URL": engine.url,
        "BFF_STORE_TIMEOUT": "2",
        "BFF_CACHE_TTL": str(ttl),
        "BFF_UPSTREAM_BUDGET": budget,
    }
    ids = [f"many-{n}" for n in range(sessions)]
    with running_upstream() as upstream, ExitStack() as stack:
        for n, id_ in enumerate(ids, start=100):
            upstream.app.environments[0].add(session(n, id_))
        gateways = [stack.enter_context(Gateway(upstream.port, **told)) for _ in range(number)]
        together(gateways, number)
        with Traffic(gateways, ids, threads=4, pause=0.0) as traffic:
            time.sleep(10)  # until all of them know how many sessions are hot
            before, began, polls = len(upstream.seen), time.monotonic(), len(traffic.responses)
            time.sleep(20)
            loads, took = len(upstream.seen) - before, time.monotonic() - began
            polls = len(traffic.responses) - polls
    rate = budget if budget == "off" else int(budget.partition("/")[0])
    fresh = max(ttl, 0 if rate == "off" else sessions / rate)
    print(
        f"{number} processes, {sessions} sessions, budget {budget}: effective TTL {fresh:g} s, "
        f"{polls / took:.0f} polls/s, {loads / took:.2f} loads/s: "
        f"{loads * fresh / took / sessions:.3f} a session and TTL; {dict(traffic.statuses)}"
    )


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Engine("valkey", Path(folder)) as engine:
        await costs(engine)
        for number in (1, 2, 4, 8):
            for limit in (10, 60, 300, 3000):
                even = await unused(engine, number, limit, spread=True)
                odd = await unused(engine, number, limit, spread=False)
                print(number, "replicas, limit", limit, "unused, leases: even", even, "uneven", odd)


def processes() -> None:
    with tempfile.TemporaryDirectory() as folder, Engine("valkey", Path(folder)) as engine:
        for number in (2, 4):
            loads_of_processes(engine, number, 1, "off", 1.0)
            loads_of_processes(engine, number, 40, "20/second", 0.5)


if __name__ == "__main__":
    processes()
    asyncio.run(main())

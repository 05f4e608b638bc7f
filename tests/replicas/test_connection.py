"""A replica's connection: batches, timeouts, and a store that is down, slow, frozen or full."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.engines import ENGINES, Engine
from support.replicas import (
    QUICK,
    Relay,
    Replicas,
    WrongClock,
    copy_key,
    events,
    purge,
    until,
    written,
)
from support.world import OFF, Clock, read

from bff.demo.upstream import session
from bff.replicas import connection, exchanges, heartbeat

UNLIMITED = OFF | {"BFF_IP_RATE_LIMIT": "1000/minute", "BFF_UPSTREAM_BUDGET": "999/second"}


ATTEMPTS = 40


async def fastest(attempt, prepare, bound: float) -> float:
    """Measure the fastest of several attempts: a busy machine delays some, but hardly all."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        await prepare()
        began = time.perf_counter()
        await attempt()
        best = min(best, time.perf_counter() - began)
        if best < bound:
            break
    return best


async def test_optional_store_is_used_once_it_answers(tmp_path: Path) -> None:
    engine = Engine("valkey", tmp_path)
    async with AsyncExitStack() as stack:
        replicas = Replicas(engine, stack)
        world = await replicas.add(BFF_STORE_OPTIONAL="true")
        assert (await world.get("chat-1")).status_code == 200
        assert "1 in 4" in (await world.ops.get("/readyz")).json()["store"]
        assert len(events(world, "store_away")) == 1
        with engine:
            await until(lambda: world.service.sharing.up)
            assert len(events(world, "store_there")) == 1


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
async def test_all_commands_of_a_request_share_one_timeout(
    replicas: Replicas, clock: Clock, part: float
) -> None:
    """A request waits for a lease and for its load; each is answered in time."""
    world = await replicas.add(clock, **UNLIMITED)
    store, sent = world.service.sharing.store, []
    execute, join = store.connection.execute, store.connection.join

    async def slowly(*commands, timeout: float):
        if timeout < store.timeout:  # else no request waits for it
            sent.append(commands)
            clock.advance(part * timeout)
        return await execute(*commands, timeout=2.0)

    def join_slowly(kind, *arguments, timeout: float, wait: bool):
        if wait:
            sent.append(kind)
            clock.advance(part * timeout)
        return join(kind, *arguments, timeout=2.0, wait=wait)

    store.connection.execute, store.connection.join = slowly, join_slowly
    began = clock.now
    assert (await world.get("chat-1")).status_code == 200

    assert len(sent) >= 2
    assert clock.now - began <= store.timeout


@pytest.mark.parametrize("delay", [0.01, 0.02, 1.0])
async def test_slow_store_delays_a_request_by_the_timeout_at_most(
    replicas: Replicas, delay: float
) -> None:
    """In real time."""
    async with Relay(replicas.engine.port) as relay:
        (world,) = await replicas.several(1, **UNLIMITED | QUICK, BFF_STORE_URL=relay.url)
        statuses: list[int] = []
        for n in range(ATTEMPTS):
            replicas.upstream.environments[0].add(session(100 + n, f"many-{n}"))

        async def prepare() -> None:
            relay.delay = 0.0
            await until(lambda: world.service.sharing.up)
            world.service.gateway.config.limits.address._windows.clear()
            relay.delay = delay

        async def attempt() -> None:
            statuses.append((await world.get(f"many-{len(statuses)}")).status_code)

        bound = 0.05 + 0.02  # the timeout, and the request itself
        assert await fastest(attempt, prepare, bound) < bound
        assert set(statuses) == {200}


async def test_one_request_finds_out_that_the_store_is_frozen(
    own_replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It causes the heartbeat that decides. Few others wait for the store until then."""
    monkeypatch.setattr(connection, "HEARTBEAT_SECONDS", 600.0)  # no other heartbeat decides
    (world,) = await own_replicas.several(1, **QUICK)
    store = world.service.sharing.store
    for turn in range(3):
        own_replicas.engine.freeze()
        token = world.token(*read("chat-1"), act={"sub": f"someone {turn}"})
        assert (await world.get("chat-1", token=token)).status_code == 200
        await until(lambda: not store.up)
        queued = len(store.connection._outbox)
        for n in range(20):
            token = world.token(*read("chat-1"), act={"sub": f"another {turn} {n}"})
            assert (await world.get("chat-1", token=token)).status_code == 200
        assert len(store.connection._outbox) <= queued, "a request that does not wait sends nothing"
        own_replicas.engine.thaw()
        await until(lambda: store.up)

    assert len(events(world, "store_away")) == 3


async def test_slow_store_stays_down_until_it_is_fast_enough(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would come up with each heartbeat and go down with the next request."""
    monkeypatch.setattr(heartbeat, "_MAX_BUSY_SECONDS", 0.1)  # less than the store's delay
    async with Relay(replicas.engine.port) as relay:
        (world,) = await replicas.several(1, **OFF | QUICK, BFF_STORE_URL=relay.url)
        relay.delay = 1.0  # longer than a busy machine pauses a test
        await until(lambda: not world.service.sharing.up)
        away, began = len(events(world, "store_away")), time.monotonic()
        while time.monotonic() - began < 1.3:  # two heartbeats
            world.service.gateway.cache.drop("default", "chat-1")
            assert (await world.get("chat-1")).status_code == 200
            await asyncio.sleep(0.02)
        assert len(events(world, "store_away")) == away
        relay.delay = 0.0
        await until(lambda: world.service.sharing.up)


async def test_heartbeats_are_rarer_while_the_store_flaps(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    store = world.service.sharing.store
    pauses = []
    for _ in range(6):
        await store.connection.heartbeat(2.0)
        assert store.up
        store.connection.mark_down("slow")
        pauses.append(store.connection._retry_seconds)
    for _ in range(5):
        await store.connection.heartbeat(2.0)
    store.connection.mark_down("slow")

    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert store.connection._retry_seconds == 0.25, "it was stable before"


async def test_full_store_counts_as_down(own_replicas: Replicas) -> None:
    (world,) = await own_replicas.several(1)
    with own_replicas.engine.client() as client:
        client.config_set("maxmemory", "1")
        for id_ in ("chat-1", "chat-2"):
            assert (await world.get(id_)).status_code == 200
        await until(lambda: not world.service.sharing.up)
        assert events(world, "store_away")[0]["reason"] == "OutOfMemoryError"
        client.config_set("maxmemory", "0")
    await until(lambda: world.service.sharing.up)


@pytest.mark.parametrize("kind", ENGINES)
async def test_connection_follows_a_failover_behind_one_address(tmp_path: Path, kind: str) -> None:
    """Open connections still lead to the former primary, which is read-only."""
    async with AsyncExitStack() as stack:
        former = stack.enter_context(Engine(kind, tmp_path))
        next_ = stack.enter_context(
            Engine(kind, tmp_path, "--replicaof", f"127.0.0.1 {former.port}")
        )
        relay = await stack.enter_async_context(Relay(former.port))
        replicas = Replicas(former, stack)
        changes = OFF | {"BFF_CACHE_TTL": "60", "BFF_STORE_URL": relay.url}
        one, two = await replicas.several(2, **changes)
        with former.client() as old, next_.client() as new:
            await until(lambda: new.info("replication")["master_link_status"] == "up")
            await one.get("chat-1")
            await until(lambda: new.exists(copy_key(one, "chat-1")) == 1)
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", next_.port)
            relay.target = next_.port
            await until(lambda: not one.service.sharing.up or events(one, "store_away"))
            assert (await one.get("chat-2")).status_code == 200
            await until(lambda: one.service.sharing.up and two.service.sharing.up)
            assert events(one, "store_away")[0]["reason"] == "ReadOnlyError"
            # The former primary replicates no more, so no replica may still listen to it.
            old.replicaof("NO", "ONE")
            await two.get("chat-1")  # the copy from before the failover may have been purged
            await two.get("chat-closed")
            await written(two)
            calls = len(replicas.upstream.seen)
            await one.get("chat-closed")
            assert len(replicas.upstream.seen) == calls, "the new primary has the copy"
            for id_ in ("chat-1", "chat-closed"):
                await purge(one, id_)
            await until(lambda: not two.service.gateway.cache._entries)


async def test_replicas_with_different_clocks_count_each_other(replicas: Replicas) -> None:
    ahead = await replicas.add(WrongClock(3600.0))
    others = [await replicas.add(), ahead, await replicas.add(), ahead]

    for world in others:
        await world.service.sharing.store.connection.heartbeat(2.0)

    assert [world.service.sharing.replicas for world in others[1:]] == [3, 3, 3]


async def test_closed_connection_sends_nothing_that_waited(replicas: Replicas) -> None:
    """The store went down meanwhile; sending would open a connection that nobody closes."""
    (world,) = await replicas.several(1, **OFF)
    closed, submitted = world.service.sharing.store.connection, []
    closed.execute_nowait(("PING",))
    closed.mark_down("slow")
    await closed.close()

    closed._requests.submit = submitted.append
    await asyncio.sleep(2 * exchanges.LINGER_SECONDS)

    assert submitted == []


async def test_answered_command_is_not_late_afterwards(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    connection, counted = world.service.sharing.store.connection, []
    connection._count = lambda outcome, _: counted.append(outcome)

    await connection.execute(("PING",), timeout=0.2)
    await asyncio.sleep(0.4)

    assert "ok" in counted
    assert "late" not in counted

"""What replicas do while the store is away, slow, hung, full, empty again, or another."""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.engines import ENGINES, Engine
from support.hostile import ask
from support.replicas import RealClock, Relay, Replicas, events, heartbeat, purge, until
from support.world import FRIENDLY, OFF, Clock, World, read

from bff.demo.upstream import session

QUICK = {"BFF_STORE_TIMEOUT": "0.05"}
"""The default: for tests of who waits how long."""
PURGES = "bff1:{told}:purges"


async def test_without_the_store_a_replica_takes_its_share_and_comes_back_by_itself(
    own_replicas: Replicas,
) -> None:
    one, two = await own_replicas.several(2, BFF_RATE_LIMIT="100/minute", BFF_CACHE_TTL="60")
    await one.get("chat-1")
    own_replicas.engine.kill()

    token = two.token(*read("chat-2"), act={"sub": "newcomer"})
    statuses = [(await two.get("chat-2", token=token)).status_code for _ in range(120)]

    assert statuses == [200] * 50 + [429] * 70, "half of the limit, for there were two"
    assert (await one.get("chat-1")).status_code == 200
    assert len(events(two, "store_away")) == 1
    metrics = (await two.ops.get("/metrics")).text
    assert "bff_store_up 0.0" in metrics
    readiness = await two.ops.get("/readyz")
    assert readiness.status_code == 200
    assert "1 in 2" in readiness.json()["store"]

    own_replicas.engine.start()
    await until(lambda: one.service.sharing.up and two.service.sharing.up)
    await until(lambda: one.service.sharing.replicas == two.service.sharing.replicas == 2)

    assert (await two.get("chat-2", token=token)).status_code == 200
    assert len(events(two, "store_there")) == 2
    left = int((await one.get("chat-2", token=token)).headers["x-ratelimit-remaining"])
    assert left <= 50, "what was spent alone was counted afterwards"


async def test_the_budget_without_the_store_is_a_share(own_replicas: Replicas) -> None:
    one, two = await own_replicas.several(2, **OFF | {"BFF_UPSTREAM_BUDGET": "4/minute"})
    own_replicas.engine.kill()
    await heartbeat(one, two)

    ids = ("chat-1", "chat-2", "chat-closed")
    statuses = [[(await world.get(id_)).status_code for id_ in ids] for world in (one, two)]

    assert statuses == [[200, 200, 503]] * 2
    assert len(own_replicas.upstream.seen) == 4


@pytest.mark.parametrize("own_engine", ["valkey"], indirect=True)
@pytest.mark.parametrize("budget", [36, 12], ids=["enough", "too little"])
async def test_a_herd_loads_each_session_once_when_the_store_comes_back(
    own_replicas: Replicas, budget: int
) -> None:
    """Empty, while browsers at every replica go on asking for what they did not get meanwhile."""
    told = OFF | {"BFF_UPSTREAM_BUDGET": f"{budget}/minute", "BFF_CACHE_TTL": "60"}
    worlds = await own_replicas.several(4, **told)
    ids = [f"many-{n}" for n in range(24)]
    for n, id_ in enumerate(ids, start=100):
        own_replicas.upstream.environments[0].add(session(n, id_))
    token = worlds[0].token("read:sessions")
    rounds, statuses, ends = [0] * 8, Counter(), False

    async def slowly(_):
        await asyncio.sleep(0.02)

    async def browse(world: World, number: int) -> None:
        first = number % 4 * 6  # so that no session is in the memory of all
        mine = ids[first:] + ids[:first]
        while not ends:
            responses = await asyncio.gather(*(ask(world, id_, token) for id_ in mine))
            statuses.update(response.status for response in responses)
            rounds[number] += 1
            await asyncio.sleep(0.01)

    async def go_round() -> None:
        """Let every browser ask for everything once more, and everything under way end."""
        begun = list(rounds)
        await until(lambda: all(n > b + 1 for n, b in zip(rounds, begun, strict=True)), 30)

    own_replicas.upstream.override = slowly
    seen = own_replicas.upstream.seen
    own_replicas.engine.kill()
    await heartbeat(*worlds)
    assert not any(world.service.sharing.up for world in worlds)
    browsers = [asyncio.create_task(browse(worlds[n % 4], n)) for n in range(8)]
    await go_round()
    assert len(seen) == budget, "each its share"
    assert statuses[503]

    seen.clear()
    own_replicas.engine.start()
    await until(lambda: all(world.service.sharing.up for world in worlds))
    await go_round()
    statuses.clear()
    await go_round()
    ends = True
    await asyncio.gather(*browsers)

    assert len(seen) == min(budget, len(ids))
    assert set(Counter(one.raw_path for one in seen).values()) == {1}
    assert set(statuses) == ({200} if budget > len(ids) else {200, 503})


ASKING = OFF | {"BFF_IP_RATE_LIMIT": "1000/minute", "BFF_UPSTREAM_BUDGET": "999/second"}


async def fastest(attempt, prepare, bound: float) -> float:
    """The shortest of several: a machine that is busy makes some longer, but hardly all."""
    best = float("inf")
    for _ in range(8):
        await prepare()
        began = time.perf_counter()
        await attempt()
        best = min(best, time.perf_counter() - began)
        if best < bound:
            break
    return best


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
async def test_no_request_waits_longer_than_the_timeout_for_all_its_questions(
    replicas: Replicas, clock: Clock, part: float
) -> None:
    """A lease, a copy, a claim and the budget are four questions, each of them answered in time."""
    world = await replicas.add(clock, **ASKING)
    store, asked = world.service.sharing.store, []
    execute = store.connection.execute

    async def slowly(*commands, timeout: float):
        if timeout < store.timeout:  # else it is for nobody who waits
            asked.append(commands)
            clock.advance(part * timeout)
        return await execute(*commands, timeout=2.0)

    store.connection.execute = slowly
    began = clock.now
    assert (await world.get("chat-1")).status_code == 200

    assert len(asked) >= 4
    assert clock.now - began <= store.timeout


@pytest.mark.parametrize("delay", [0.01, 0.02, 1.0])
async def test_a_slow_store_keeps_a_request_no_longer_than_the_timeout(
    replicas: Replicas, delay: float
) -> None:
    """The same in real time."""
    async with Relay(replicas.engine.port) as relay:
        (world,) = await replicas.several(1, **ASKING | QUICK, BFF_STORE_URL=relay.url)
        statuses: list[int] = []
        for n in range(8):
            replicas.upstream.environments[0].add(session(100 + n, f"many-{n}"))

        async def prepare() -> None:
            relay.delay = 0.0
            await until(lambda: world.service.sharing.up)
            world.service.gateway.config.limits.address._windows.clear()
            relay.delay = delay

        async def attempt() -> None:
            statuses.append((await world.get(f"many-{len(statuses)}")).status_code)

        bound = 0.05 + 0.02  # what is more is the request itself
        assert await fastest(attempt, prepare, bound) < bound
        assert set(statuses) == {200}


async def test_a_store_that_hangs_is_waited_for_once(own_replicas: Replicas) -> None:
    (world,) = await own_replicas.several(1, **QUICK)
    store = world.service.sharing.store
    for turn in range(3):
        own_replicas.engine.freeze()
        for n in range(20):
            token = world.token(*read("chat-1"), act={"sub": f"someone {turn} {n}"})
            assert (await world.get("chat-1", token=token)).status_code == 200
            assert not store.up
            assert len(store.connection._queue) <= 4, "who does not wait asks nothing"
        own_replicas.engine.thaw()
        await until(lambda: store.up)

    assert len(events(world, "store_away")) == 3


async def test_a_store_too_slow_for_requests_is_away_for_good_until_it_is_quicker(
    replicas: Replicas,
) -> None:
    """Not there for each heartbeat, which may wait, and away for the next request."""
    async with Relay(replicas.engine.port) as relay:
        (world,) = await replicas.several(1, **OFF | QUICK, BFF_STORE_URL=relay.url)
        relay.delay = 0.035
        began = time.monotonic()
        while time.monotonic() - began < 1.3:  # a heartbeat, and one more soon after
            world.service.gateway.cache.drop("default", "chat-1")
            assert (await world.get("chat-1")).status_code == 200
            await asyncio.sleep(0.02)
        assert len(events(world, "store_away")) == 1
        relay.delay = 0.0
        await until(lambda: world.service.sharing.up)


async def test_a_store_that_comes_and_goes_is_asked_more_and_more_rarely(
    replicas: Replicas,
) -> None:
    (world,) = await replicas.several(1, **OFF)
    store = world.service.sharing.store
    pauses = []
    for _ in range(6):
        await store.connection.heartbeat(2.0)
        assert store.up
        store.mark_down()
        pauses.append(store.connection._retry_seconds)
    for _ in range(5):
        await store.connection.heartbeat(2.0)
    store.mark_down()

    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert store.connection._retry_seconds == 0.25, "it had come to stay"


async def test_a_full_store_is_an_absent_one(own_replicas: Replicas) -> None:
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
async def test_a_failover_behind_one_address(tmp_path: Path, kind: str) -> None:
    """Connections that are open lead to the former primary still, which may only be read."""
    async with AsyncExitStack() as stack:
        former = stack.enter_context(Engine(kind, tmp_path))
        next_ = stack.enter_context(
            Engine(kind, tmp_path, "--replicaof", f"127.0.0.1 {former.port}")
        )
        relay = await stack.enter_async_context(Relay(former.port))
        replicas = Replicas(former, stack)
        told = OFF | {"BFF_CACHE_TTL": "60", "BFF_STORE_URL": relay.url}
        one, two = await replicas.several(2, **told)
        with former.client() as old, next_.client() as new:
            await until(lambda: new.info("replication")["master_link_status"] == "up")
            await one.get("chat-1")
            await until(lambda: len(new.keys("*chat-1}")) == 1)
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", next_.port)
            relay.target = next_.port
            await until(lambda: not one.service.sharing.up or events(one, "store_away"))
            assert (await one.get("chat-2")).status_code == 200
            await until(lambda: one.service.sharing.up and two.service.sharing.up)
            assert events(one, "store_away")[0]["reason"] == "ReadOnlyError"
            # The former primary falls silent, and nobody hangs on its words.
            old.replicaof("NO", "ONE")
            await two.get("chat-1")
            assert len(replicas.upstream.seen) == 2, "the copy came along"
            await purge(one, "chat-1")
            await until(lambda: not two.service.gateway.cache._entries)


async def test_a_store_that_was_restarted_begins_anew_and_so_does_what_is_heard(
    own_replicas: Replicas,
) -> None:
    """Also where its clock is behind: a message is new though its number is lower."""
    one, two = await own_replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    await purge(one, "chat-closed")  # so that both have heard something
    for world in (one, two):
        await world.get("chat-1")
    cache = two.service.gateway.cache
    known = cache.find("default", "chat-1", 0)
    own_replicas.engine.kill()
    await heartbeat(one, two)
    assert not one.service.sharing.up
    assert not two.service.sharing.up
    own_replicas.engine.start()
    namespace = one.service.sharing.namespaces["default"]
    with own_replicas.engine.client() as client:
        client.xadd(
            PURGES,
            {"place": namespace.origin, "rules": namespace.projection, "id": "chat-1"},
            id="1-1",
        )
    await until(lambda: one.service.sharing.up and two.service.sharing.up)

    await until(lambda: cache.find("default", "chat-1", 0) is not known)


async def test_a_load_that_outlives_the_stores_memory_is_kept_by_nobody(
    own_replicas: Replicas,
) -> None:
    """It was purged meanwhile for all that the store knows: it has forgotten."""
    (world,) = await own_replicas.several(1, **OFF, BFF_CACHE_TTL="60")
    go_on = asyncio.Event()

    async def hold(_):
        await go_on.wait()

    own_replicas.upstream.override = hold
    under_way = asyncio.create_task(world.get("chat-1"))
    await until(lambda: own_replicas.upstream.seen)
    with own_replicas.engine.client() as client:
        client.flushall()
        go_on.set()
        assert (await under_way).status_code == 200
        await until(lambda: world.telemetry.counts["bff_shared_copies", "superseded"] == 1)
        assert client.keys("*chat-1}") == []


async def test_a_purge_that_cannot_reach_the_others_says_so(own_replicas: Replicas) -> None:
    one, _ = await own_replicas.several(2)
    own_replicas.engine.kill()
    await heartbeat(one)

    response = await one.ops.delete("/cache/sessions/chat-1")

    assert (response.status_code, response.json()["code"]) == (503, "not_ready")


# -- clocks


class OffClock(RealClock):
    """Its wall clock is off."""

    def __init__(self, by: float) -> None:
        self._by = by

    def __call__(self) -> tuple[float, float]:
        now, wall = super().__call__()
        return now, wall + self._by

    @property
    def wall(self) -> float:
        return time.time() + self._by


async def test_replicas_whose_clocks_disagree_see_one_another(replicas: Replicas) -> None:
    ahead = await replicas.add(OffClock(3600.0))
    others = [await replicas.add(), ahead, await replicas.add(), ahead]

    for world in others:
        await world.service.sharing.store.connection.heartbeat(2.0)

    assert [world.service.sharing.replicas for world in others[1:]] == [3, 3, 3]


@pytest.mark.parametrize("by", [3600.0, -3600.0])
async def test_clocks_that_disagree_make_no_copy_younger(replicas: Replicas, by: float) -> None:
    told = OFF | {"BFF_CACHE_TTL": "5", "BFF_CACHE_STALE_IF_ERROR": "0"}
    one = await replicas.add(OffClock(by), **told)
    two = await replicas.add(**told)
    await until(lambda: one.service.sharing.replicas == two.service.sharing.replicas == 2)
    await one.get("chat-1")
    loaded = time.monotonic()
    await asyncio.sleep(0.3)

    assert (await two.get(FRIENDLY["chat-1"])).status_code == 200

    if by < 0:
        assert len(replicas.upstream.seen) == 2, "what may be old is loaded again"
    else:
        shared = two.service.gateway.cache.find("default", "chat-1", time.monotonic())
        assert shared.loaded <= loaded, "as old as it is, or older"
        assert len(replicas.upstream.seen) == 1


async def test_the_stores_clock_may_be_set_back(replicas: Replicas) -> None:
    """Everything that it had set to end at some time would last for so much longer."""
    told = {"BFF_UPSTREAM_BUDGET": "2/minute", "BFF_RATE_LIMIT": "10/minute"}
    (world,) = await replicas.several(1, **told)
    token = world.token(*read("chat-1"), act={"sub": "someone"})
    for id_ in ("chat-1", "chat-2"):
        await world.get(id_)
    await world.get("chat-1", token=token)
    hour = 3_600_000
    with replicas.engine.client() as client:
        (spent,) = client.keys("*:spent")
        for n in range(client.llen(spent)):
            client.lset(spent, n, int(client.lindex(spent, n)) + 1000 * hour)
        for key in client.keys("*"):
            client.pexpire(key, hour + 60_000)
    for limiter in (
        world.service.gateway.config.limits.caller,
        world.service.gateway.config.limits.address,
    ):
        limiter._windows.clear()

    assert (await world.get("chat-closed")).status_code == 200, "the budget is spent by nobody"
    response = await world.get("chat-1", token=token)
    assert int(response.headers["ratelimit"].rpartition("t=")[2]) <= 60


# -- commands that are late


async def test_a_load_that_lost_its_claim_writes_over_nothing_that_is_newer(
    replicas: Replicas,
) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_):
        if not asked.is_set():
            asked.set()
            await go_on.wait()

    replicas.upstream.override = hold
    slow = asyncio.create_task(one.get("chat-1"))
    await asked.wait()
    assert (await two.get(FRIENDLY["chat-1"])).status_code == 200  # by its other id: a second load
    await asyncio.sleep(0.05)
    with replicas.engine.client() as client:
        (key,) = client.keys("*chat-1}")
        newer = client.get(key)
        go_on.set()
        await slow
        await until(lambda: one.telemetry.counts["bff_shared_copies", "superseded"] == 1)
        assert client.get(key) == newer


async def test_a_copy_that_arrives_late_is_no_younger_for_it(own_replicas: Replicas) -> None:
    """Not even where the clock that says when it was loaded is ahead."""
    told = OFF | {"BFF_CACHE_TTL": "5", "BFF_CACHE_STALE_IF_ERROR": "0"}
    one = await own_replicas.add(OffClock(3600.0), **told, BFF_CACHE_STALE_WHILE_REVALIDATE="0")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_):
        asked.set()
        await go_on.wait()

    own_replicas.upstream.override = hold
    began = time.monotonic()
    load = asyncio.create_task(one.get("chat-1"))
    await asked.wait()
    own_replicas.engine.freeze()
    go_on.set()
    await load
    await asyncio.sleep(0.5)
    own_replicas.engine.thaw()
    with own_replicas.engine.client() as client:
        await until(lambda: client.keys("*chat-1}"))
        ends = time.monotonic() + client.pttl(client.keys("*chat-1}")[0]) / 1000
    assert ends <= began + 5.2

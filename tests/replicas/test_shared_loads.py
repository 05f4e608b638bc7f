"""Replicas make one load of a session, and store only results that are still valid."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.hostile import ask
from support.replicas import (
    Replicas,
    WrongClock,
    copy_key,
    heard,
    heartbeat,
    purge,
    until,
    written,
)
from support.world import FRIENDLY, OFF, World

from bff.clock import system_clock
from bff.demo.upstream import Answer, session
from bff.replicas import scripts, shared_loads
from bff.replicas.joint_commands import JointLoad, StoredLoad
from bff.replicas.shared_budget import Denials, SharedBudget
from bff.replicas.shared_loads import SharedLoads


async def test_replicas_make_one_load_for_all_requests(replicas: Replicas) -> None:
    worlds = await replicas.several(4, **OFF, BFF_CACHE_TTL="30")

    async def slowly(_):
        await asyncio.sleep(0.3)

    replicas.upstream.override = slowly
    responses = await asyncio.gather(*(w.get("chat-1") for w in worlds for _ in range(25)))

    assert {response.status_code for response in responses} == {200}
    assert len(replicas.upstream.seen) == 1


async def test_next_replica_loads_when_a_load_fails(replicas: Replicas) -> None:
    worlds = await replicas.several(2, **OFF)

    async def slowly_fail_once(_):
        await asyncio.sleep(0.1)
        return Answer(500, "trouble") if len(replicas.upstream.seen) == 1 else None

    replicas.upstream.override = slowly_fail_once
    responses = await asyncio.gather(*(world.get("chat-1") for world in worlds))

    assert sorted(response.status_code for response in responses) == [200, 502]
    assert len(replicas.upstream.seen) == 2


@pytest.mark.parametrize("purged", ["chat-1", FRIENDLY["chat-1"]])
async def test_purge_wins_over_a_load_of_another_replica(replicas: Replicas, purged: str) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    started, release = asyncio.Event(), asyncio.Event()

    async def hold(_):
        document = replicas.upstream.environments[0].find("chat-1")
        answer = Answer(200, dict(document or {}))
        started.set()
        await release.wait()
        return answer

    replicas.upstream.override = hold
    load = asyncio.create_task(one.get("chat-1"))
    await started.wait()
    replicas.upstream.override = None
    await purge(two, purged)
    replicas.upstream.environments[0].find("chat-1")["taskIdentifier"] = "renamed"
    release.set()
    assert (await load).json()["taskIdentifier"] == "renamed", "what it loaded is purged"
    await written(one)
    await heard(replicas.engine, two)

    for id_ in ("chat-1", FRIENDLY["chat-1"]):
        response = await two.get(id_)
        assert response.json()["taskIdentifier"] == "renamed", id_


async def test_load_without_its_claim_replaces_nothing_newer(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    started, release = asyncio.Event(), asyncio.Event()

    async def hold(_):
        if not started.is_set():
            started.set()
            await release.wait()

    replicas.upstream.override = hold
    slow = asyncio.create_task(one.get("chat-1"))
    await started.wait()
    assert (await two.get(FRIENDLY["chat-1"])).status_code == 200  # a second load, by its other id
    await written(two)
    with replicas.engine.client() as client:
        key = copy_key(two, "chat-1")
        newer = client.get(key)
        release.set()
        await slow
        await until(lambda: one.telemetry.counts["bff_shared_copies", "superseded"] == 1)
        assert client.get(key) == newer


async def test_load_is_not_stored_after_the_store_lost_its_data(own_replicas: Replicas) -> None:
    """The store lost its purges too: the session may have been purged meanwhile."""
    (world,) = await own_replicas.several(1, **OFF, BFF_CACHE_TTL="60")
    release = asyncio.Event()

    async def hold(_):
        await release.wait()

    own_replicas.upstream.override = hold
    load = asyncio.create_task(world.get("chat-1"))
    await until(lambda: own_replicas.upstream.seen)
    with own_replicas.engine.client() as client:
        client.flushall()
        release.set()
        assert (await load).status_code == 200
        await until(lambda: world.telemetry.counts["bff_shared_copies", "superseded"] == 1)
        assert not client.exists(copy_key(world, "chat-1"))


async def test_late_write_makes_no_copy_younger(own_replicas: Replicas) -> None:
    """Also if the clock of the replica that loaded it is ahead."""
    changes = OFF | {"BFF_CACHE_TTL": "5", "BFF_CACHE_STALE_IF_ERROR": "0"}
    one = await own_replicas.add(
        WrongClock(3600.0), **changes, BFF_CACHE_STALE_WHILE_REVALIDATE="0"
    )
    started, release = asyncio.Event(), asyncio.Event()

    async def hold(_):
        started.set()
        await release.wait()

    own_replicas.upstream.override = hold
    load = asyncio.create_task(one.get("chat-1"))
    await started.wait()
    claimed = time.monotonic()
    own_replicas.engine.freeze()
    release.set()
    await load
    await asyncio.sleep(0.5)
    own_replicas.engine.thaw()
    with own_replicas.engine.client() as client:
        key = copy_key(one, "chat-1")
        await until(lambda: client.exists(key))
        ends = time.monotonic() + client.pttl(key) / 1000
    assert ends <= claimed + 5.1


@pytest.mark.parametrize("error", [3600.0, -3600.0])
async def test_wrong_clock_makes_no_copy_younger(replicas: Replicas, error: float) -> None:
    changes = OFF | {"BFF_CACHE_TTL": "5", "BFF_CACHE_STALE_IF_ERROR": "0"}
    one = await replicas.add(WrongClock(error), **changes)
    two = await replicas.add(**changes)
    await until(lambda: one.service.sharing.replicas == two.service.sharing.replicas == 2)
    await one.get("chat-1")
    loaded = time.monotonic()
    await written(one)
    await asyncio.sleep(0.3)

    assert (await two.get(FRIENDLY["chat-1"])).status_code == 200

    if error < 0:
        assert len(replicas.upstream.seen) == 2, "a copy that may be old is loaded again"
    else:
        shared = two.service.gateway.cache.find("default", "chat-1", time.monotonic())
        assert shared.loaded <= loaded, "its real age, or more"
        assert len(replicas.upstream.seen) == 1


@pytest.mark.parametrize("own_engine", ["valkey"], indirect=True)
@pytest.mark.parametrize("budget", [36, 12], ids=["enough", "too little"])
async def test_herd_loads_each_session_once_after_an_outage(
    own_replicas: Replicas, budget: int
) -> None:
    """The store returns empty, while browsers at every replica repeat their requests."""
    changes = OFF | {"BFF_UPSTREAM_BUDGET": f"{budget}/minute", "BFF_CACHE_TTL": "60"}
    worlds = await own_replicas.several(4, **changes)
    ids = [f"many-{n}" for n in range(24)]
    for n, id_ in enumerate(ids, start=100):
        own_replicas.upstream.environments[0].add(session(n, id_))
    token = worlds[0].token("read:sessions")
    rounds, statuses, ends = [0] * 8, Counter(), False

    async def slowly(_):
        await asyncio.sleep(0.02)

    async def browse(world: World, number: int) -> None:
        first = number % 4 * 6  # so that no session is in every replica
        order = ids[first:] + ids[:first]
        while not ends:
            responses = await asyncio.gather(*(ask(world, id_, token) for id_ in order))
            statuses.update(response.status for response in responses)
            rounds[number] += 1
            await asyncio.sleep(0.01)

    async def go_round() -> None:
        """Let every browser request every session once more."""
        begun = list(rounds)
        await until(lambda: all(n > b + 1 for n, b in zip(rounds, begun, strict=True)))

    own_replicas.upstream.override = slowly
    seen = own_replicas.upstream.seen
    own_replicas.engine.kill()
    await heartbeat(*worlds)
    assert not any(world.service.sharing.up for world in worlds)
    browsers = [asyncio.create_task(browse(worlds[n % 4], n)) for n in range(8)]
    await go_round()
    assert len(seen) == budget, "each replica its share"
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


async def test_miss_waits_for_one_round_trip_to_the_store(replicas: Replicas) -> None:
    """A second one stores the copy and releases the claim, and nobody waits for it."""
    (world,) = await replicas.several(1, **OFF, BFF_CACHE_TTL="60")
    replicas.upstream.environments[0].bucket.limit = 1000  # its report needs no round trip
    await world.get("chat-2")
    await until(lambda: world.telemetry.counts["bff_shared_copies", "kept"] == 1)
    connection = world.service.sharing.store.connection
    batches: list[Any] = []
    waited: list[Any] = []
    submit, join, execute = connection._requests.submit, connection.join, connection.execute

    def submitted(batch):
        batches.append([command[:2] for command, _ in batch])
        submit(batch)

    def note(kind, *arguments, timeout, wait):
        waited.extend([kind] if wait else [])
        return join(kind, *arguments, timeout=timeout, wait=wait)

    async def executed(*commands, timeout):
        waited.append([command[:2] for command in commands])
        return await execute(*commands, timeout=timeout)

    connection._requests.submit, connection.join, connection.execute = submitted, note, executed
    assert (await world.get("chat-1")).status_code == 200
    await until(lambda: world.telemetry.counts["bff_shared_copies", "kept"] == 2)

    assert waited == [JointLoad]
    assert len(batches) == 2
    assert batches[0] == [("EVAL", scripts.LOAD)]
    assert ("EVAL", scripts.KEEP) in batches[1]
    with replicas.engine.client() as client:
        assert not client.exists(copy_key(world, "chat-1") + ":load"), "the claim is released"


async def test_fresh_copy_of_another_replica_spends_nothing(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF | {"BFF_UPSTREAM_BUDGET": "5/minute"})
    await one.get("chat-1")
    await until(lambda: one.telemetry.counts["bff_shared_copies", "kept"] == 1)

    assert (await two.get("chat-1")).status_code == 200

    with replicas.engine.client() as client:
        (spent,) = client.keys("*:spent")
        assert client.llen(spent) == 1
        assert not client.exists(copy_key(two, "chat-1") + ":load"), "no load is claimed"


async def test_denied_load_leaves_no_claim(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF | {"BFF_UPSTREAM_BUDGET": "1/minute"})
    await world.get("chat-1")

    assert (await world.get("chat-2")).status_code == 503

    with replicas.engine.client() as client:
        assert not client.exists(copy_key(world, "chat-2") + ":load")


async def test_long_load_renews_its_claim(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_loads, "CLAIM_SECONDS", 9.0)  # renewed after three
    changes = OFF | {"BFF_CACHE_TTL": "600", "BFF_UPSTREAM_TIMEOUT": "60"}
    one, two = await replicas.several(2, **changes)
    release = asyncio.Event()

    async def hold(_):
        await release.wait()

    replicas.upstream.override = hold
    load = asyncio.create_task(one.get("chat-1"))
    await until(lambda: replicas.upstream.seen)
    other = asyncio.create_task(two.get("chat-1"))
    with replicas.engine.client() as client:
        left = client.pttl(claim := copy_key(one, "chat-1") + ":load")
        await until(lambda: client.pttl(claim) > left)
    release.set()

    assert [(await one_).status_code for one_ in (load, other)] == [200, 200]
    assert len(replicas.upstream.seen) == 1


async def test_old_value_is_not_looked_up_for_ever_if_the_clock_stands() -> None:
    """A store whose clock stands still tells the same age again: that must not be for ever."""
    asked: list[float] = []

    class Stopped:
        turns = contextlib.nullcontext()

        async def load(self, *_: object, fresh: float, **__: object) -> StoredLoad:
            asked.append(fresh)
            assert len(asked) < 10, "it asks for ever, and nothing else runs"
            claimed = fresh < 3.0
            return StoredLoad(claimed, 0.0, b"value", 60.0, time=1, age=3.0)

        def __getattr__(self, _: str) -> Callable[..., None]:
            return lambda *_, **__: None

    class Lookup:
        name, metric, budget, fresh_for = "n", "m", SharedBudget("o", 1, 1.0), 9.0
        decode = staticmethod(lambda *_: "old")
        is_answer = staticmethod(lambda _: False)
        is_current = staticmethod(lambda: False)

    store: Any = Stopped()
    lookup: Any = Lookup()
    loads = SharedLoads(
        store, denials=Denials(), timeout=1.0, deadline=1.0, clock=system_clock,
        tokens=lambda: "t", count=lambda *_: None,
    )  # fmt: skip

    async def load(*_: object) -> str:
        return "new"

    assert await loads.get(lookup, load) == ("new", "old", True)
    assert asked == [9.0, pytest.approx(3.0, abs=0.001)]

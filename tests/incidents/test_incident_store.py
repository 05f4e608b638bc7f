"""Incidents 15 and 30 with a shared store: cancelled reads, and a store that flaps."""

import asyncio
import json
import random

import pytest
from support.engines import Engine
from support.hostile import NOTHING_KEPT, WIDE_OPEN, ask, descriptors, idle
from support.replicas import Relay, Replicas, copy_key, until

from bff.demo.upstream import session
from bff.replicas import keys, shared_loads
from bff.replicas.connection import Connection
from bff.replicas.valkey import StoreUnavailable

PREFIX = "test:copies"


def times(engine: Engine) -> int:
    """Three thousand on Valkey; a thousand on Redis, which only has to behave the same."""
    return 3_000 if engine.kind == "valkey" else 1_000


async def test_15_thousands_of_cancelled_reads_mix_up_no_answers(
    replicas: Replicas,
) -> None:
    changes = WIDE_OPEN | NOTHING_KEPT | {"BFF_CACHE_NEGATIVE_TTL": "0"}
    worlds = await replicas.several(2, **changes)
    stores = [world.service.sharing.store for world in worlds]
    ids = [f"many-{n}" for n in range(50)]
    for n, id_ in enumerate(ids, start=100):
        replicas.upstream.environments[0].add(session(n, id_))
    tokens = [worlds[0].token("read:sessions:" + id_) for id_ in ids]
    with replicas.engine.client() as client:
        for id_ in ids:
            client.set(keys.value(PREFIX, id_), b"copy of " + id_.encode())
    dice, left, wrong = random.Random(15), 0, []

    async def read_one(number: int) -> None:
        index, world = dice.randrange(len(ids)), number % 2
        id_ = ids[index]
        if number % 4:  # a read of the store in this task, which may be cancelled
            value, _ = await stores[world].read(keys.value(PREFIX, id_), timeout=5.0)
            right = value == b"copy of " + id_.encode()
        else:
            response = await ask(worlds[world], id_, tokens[index])
            right = response.status == 200 and json.loads(response.body)["externalId"] == id_
        if not right:
            wrong.append(id_)

    for batch in range(times(replicas.engine) // 50):
        tasks = [asyncio.create_task(read_one(batch + n)) for n in range(60)]
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        left += sum(task.cancel() for task in tasks[:50])
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
    for world in worlds:
        await idle(world)

    assert left > times(replicas.engine) * 0.8
    assert wrong == []
    for world, store in zip(worlds, stores, strict=True):
        assert world.telemetry.counts["bff_mismatched_copies",] == 0
        assert world.telemetry.counts["bff_shared_copies", "dropped"] == 0
        assert store.up
        await until(lambda store=store: not store.connection._outbox)


async def test_15_stored_copy_under_a_wrong_key_is_dropped(
    replicas: Replicas,
) -> None:
    (world,) = await replicas.several(1, BFF_CACHE_TTL="60")
    await world.get("chat-1")
    with replicas.engine.client() as client:
        key = copy_key(world, "chat-1")
        await until(lambda: client.exists(key))
        client.set(copy_key(world, "chat-2"), client.get(key), px=60_000)

    response = await world.get("chat-2", "read:sessions")

    assert response.json()["externalId"] == "chat-2"
    assert world.telemetry.counts["bff_shared_copies", "dropped"] == 1


def ping(connection: Connection, number: int, unanswered: set[int]) -> None:
    """Send a command without waiting; *unanswered* has its number until it ends."""
    if connection.up:
        unanswered.add(number)
        connection.execute_nowait(("PING",), ended=lambda _: unanswered.discard(number))


async def test_30_flapping_store_leaves_nothing_behind(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The end of a claim may be lost, and the next request waits until the claim expires.
    monkeypatch.setattr(shared_loads, "CLAIM_SECONDS", 0.1)
    async with Relay(replicas.engine.port) as relay:
        (world,) = await replicas.several(1, **WIDE_OPEN, **NOTHING_KEPT, BFF_STORE_URL=relay.url)
        sharing = world.service.sharing
        store, token, statuses = sharing.store, world.token("read:sessions"), set()
        unanswered: set[int] = set()

        async def back() -> None:
            while not store.up:
                try:
                    await store.connection.heartbeat(5.0)
                except StoreUnavailable:
                    await asyncio.sleep(0)

        async def flap(number: int) -> None:
            if number % 100 == 0:
                relay.cut()
            elif number % 100 == 50:  # the server refuses writes
                replicas.engine.execute("REPLICAOF", "127.0.0.1", "1")
                statuses.add((await ask(world, "chat-1", token)).status)
                replicas.engine.execute("REPLICAOF", "NO", "ONE")
            elif number % 10 == 0:
                statuses.add((await ask(world, "chat-2", token)).status)
            ping(store.connection, number, unanswered)
            store.connection.mark_down("slow")
            await back()

        for number in range(200):
            await flap(number)
        await idle(world)
        await until(lambda: not unanswered)
        tasks, files = len(asyncio.all_tasks()), descriptors()

        for number in range(min(times(replicas.engine), 3_000)):
            await flap(number)
        await idle(world)
        await until(lambda: not unanswered)

        assert statuses == {200}
        assert len(asyncio.all_tasks()) <= tasks + 4, "those of the relay's connections"
        assert descriptors() <= files + 4
        assert len(store.connection._outbox) == 0
        assert (await ask(world, "chat-1", token)).status == 200
        assert store.up

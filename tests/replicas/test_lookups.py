"""Shared copies and absences: their age, their policy, and values that are corrupt."""

import asyncio

from support.replicas import Replicas, ShiftedClock, copy_key, until, written
from support.world import OFF

from bff.demo.upstream import session


async def test_shared_copy_keeps_its_age(replicas: Replicas) -> None:
    changes = OFF | {"BFF_CACHE_TTL": "60", "BFF_CACHE_STALE_WHILE_REVALIDATE": "0"}
    one, two = [await replicas.add(ShiftedClock(), **changes) for _ in range(2)]
    await one.get("chat-1")
    await written(one)
    two.clock.advance(30)
    await two.get("chat-1")
    assert len(replicas.upstream.seen) == 1
    two.clock.advance(30)

    await two.get("chat-1")

    assert len(replicas.upstream.seen) == 2, (
        "it was a minute old, though the second replica had it for half of that"
    )


async def test_absence_is_shared_until_its_ttl_ends(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_NEGATIVE_TTL="3")
    assert (await one.get("nobody")).status_code == 404
    await written(one)
    assert (await two.get("nobody")).status_code == 404
    assert len(replicas.upstream.seen) == 1
    replicas.upstream.environments[0].add(session(9, "nobody"))

    while (await two.get("nobody")).status_code == 404:
        await asyncio.sleep(0.05)

    assert len(replicas.upstream.seen) == 2


async def test_stale_shared_copy_is_served_when_upstream_fails(replicas: Replicas) -> None:
    one, two = await replicas.several(
        2, **OFF, BFF_CACHE_TTL="0.1", BFF_CACHE_STALE_WHILE_REVALIDATE="0"
    )
    await one.get("chat-1")
    await written(one)
    await asyncio.sleep(0.2)  # at least as long as it is fresh
    one.answer(500, {"error": "down"})

    response = await two.get("chat-1")

    assert response.status_code == 200


async def test_replicas_with_different_policies_share_no_copy(replicas: Replicas) -> None:
    (one,) = await replicas.several(1, **OFF, BFF_CACHE_TTL="30", BFF_EXPOSE_METADATA="plan")
    two = await replicas.add(**OFF, BFF_CACHE_TTL="30")

    shown = [(await world.get("chat-1")).json()["metadata"] for world in (one, two, one, two)]

    assert shown == [{"plan": "enterprise"}, None] * 2
    assert len(replicas.upstream.seen) == 2


async def test_reload_during_a_load_applies_to_its_outcome(replicas: Replicas) -> None:
    """Also if another replica with the earlier policy makes the load."""
    changes = OFF | {"BFF_CACHE_TTL": "60", "BFF_EXPOSE_METADATA": "plan"}
    one, two = await replicas.several(2, **changes)
    started, release = asyncio.Event(), asyncio.Event()

    async def hold(_):
        started.set()
        await release.wait()

    replicas.upstream.override = hold
    loads = [asyncio.create_task(one.get("chat-1"))]
    await started.wait()
    loads.append(asyncio.create_task(two.get("chat-1")))
    await until(lambda: len(two.service.gateway.cache.loads))
    await asyncio.sleep(0.05)
    two.reload(**two.told | {"BFF_EXPOSE_METADATA": None})
    loads.append(asyncio.create_task(two.get("chat-1")))
    await asyncio.sleep(0.05)
    release.set()

    shown = [(await load).json()["metadata"] for load in loads]

    assert shown == [{"plan": "enterprise"}, None, None]
    assert (await two.get("chat-1")).json()["metadata"] is None


async def test_corrupt_copies_are_dropped_and_counted(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, BFF_CACHE_TTL="60")
    await world.get("chat-1")
    await written(world)
    with replicas.engine.client() as client:
        value = client.get(copy_key(world, "chat-1"))
        other = copy_key(world, "chat-2")
        corrupt = {
            "another session's": value,
            "cut off": value[:-1],
            "one byte changed": value.replace(b"my-chat", b"my-chaT"),
            "not a copy": b"hello",
            "empty": b"",
        }
        for number, data in enumerate(corrupt.values(), start=1):
            client.set(other, data, px=60_000)
            world.service.gateway.cache.drop("default", "chat-2")

            response = await world.get("chat-2")

            assert response.json()["externalId"] == "chat-2"
            await written(world)
            counts = world.telemetry.counts
            assert counts["bff_shared_copies", "dropped"] == number
            assert client.get(other) not in corrupt.values()
            client.delete(other)

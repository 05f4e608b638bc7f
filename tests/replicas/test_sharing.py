"""Replicas behave as one: copies and purges; and each alone without the store."""

from support.replicas import Replicas, heard, heartbeat, purge, written
from support.world import FRIENDLY, OFF


async def test_all_replicas_use_a_copy_that_one_loaded(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="30")
    first = await one.get("chat-1")
    await written(one)

    second = await two.get(FRIENDLY["chat-1"])

    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["etag"] == first.headers["etag"]
    assert len(replicas.upstream.seen) == 1


# -- purges


async def test_purge_reaches_every_replica_under_both_ids(replicas: Replicas) -> None:
    worlds = await replicas.several(3, **OFF, BFF_CACHE_TTL="60")
    for world in worlds:
        await world.get("chat-1")
        await world.get(FRIENDLY["chat-1"])
    assert len(replicas.upstream.seen) == 1
    await written(*worlds)

    await purge(worlds[0], FRIENDLY["chat-1"])
    document = replicas.upstream.environments[0].find("chat-1")
    document["taskIdentifier"] = "renamed"
    await heard(replicas.engine, *worlds)

    responses = [await w.get(id_) for w in worlds for id_ in ("chat-1", FRIENDLY["chat-1"])]
    assert {response.json()["taskIdentifier"] for response in responses} == {"renamed"}
    assert len(replicas.upstream.seen) == 2


async def test_purge_fails_while_the_store_is_down(own_replicas: Replicas) -> None:
    one, _ = await own_replicas.several(2)
    own_replicas.engine.kill()
    await heartbeat(one)

    response = await one.ops.delete("/cache/sessions/chat-1")

    assert (response.status_code, response.json()["code"]) == (503, "not_ready")

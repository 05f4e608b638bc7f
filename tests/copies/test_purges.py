"""Purges, also those that meet a load in flight."""

import asyncio

import pytest
from support.world import (
    FRIENDLY,
    World,
)

from bff.demo.upstream import Seen


async def purge(world: World, id_: str) -> int:
    return (await world.ops.delete(f"/cache/sessions/{id_}")).status_code


@pytest.mark.parametrize("id_", ["chat-1", FRIENDLY["chat-1"]])
async def test_purge_drops_both_ids(world: World, id_: str) -> None:
    await world.get("chat-1")
    await world.get("chat-2")

    assert await purge(world, id_) == 204

    await world.get("chat-1")
    await world.get(FRIENDLY["chat-1"])
    await world.get("chat-2")
    assert world.calls == 3


@pytest.mark.parametrize("id_", ["chat-1", FRIENDLY["chat-1"]])
async def test_purge_discards_the_load_in_flight(world: World, id_: str) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Seen) -> None:
        asked.set()
        await release.wait()

    world.upstream.override = slow
    waiting = asyncio.create_task(world.get("chat-1"))
    await asked.wait()
    await purge(world, id_)
    release.set()
    assert (await waiting).status_code == 200

    await world.get("chat-1")
    assert world.calls == 2
    await world.get("chat-1")
    assert world.calls == 2


@pytest.mark.parametrize("old_ends_first", [True, False])
async def test_request_after_purge_does_not_join_older_load(
    world: World,
    old_ends_first: bool,
) -> None:
    release = [asyncio.Event(), asyncio.Event()]

    async def slow(_: Seen) -> None:
        await release[world.calls - 1].wait()

    world.upstream.override = slow
    before = asyncio.create_task(world.get("chat-1"))
    while world.calls < 1:
        await asyncio.sleep(0)
    await purge(world, "chat-1")
    after = asyncio.create_task(world.get("chat-1"))
    async with asyncio.timeout(5):
        while world.calls < 2:
            await asyncio.sleep(0)
    if old_ends_first:
        release[0].set()
        await asyncio.sleep(0.01)
        assert not before.done(), "what the older load brought is purged"
        third = asyncio.create_task(world.get("chat-1"))
        await asyncio.sleep(0.01)
        assert world.calls == 2, "all of them wait for the newer load"
        release[1].set()
        for joined in (before, third):
            assert (await joined).headers["cache-status"] == "bff; fwd=miss; collapsed"
    release[1].set()
    assert (await after).headers["cache-status"] == "bff; fwd=miss; stored"
    release[0].set()
    await before

    assert (await world.get("chat-1")).headers["cache-status"] == "bff; hit"
    assert world.calls == 2


async def test_purge_takes_an_encoded_id_and_refuses_none(world: World) -> None:
    await world.get("a/b: c%?#ü")

    assert await purge(world, "a%2Fb%3A%20c%25%3F%23%C3%BC") == 204
    assert await purge(world, "a/b") == 400

    await world.get("a/b: c%?#ü")
    assert world.calls == 2

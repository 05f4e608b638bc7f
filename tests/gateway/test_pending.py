"""Requests that wait, and what changes during the wait."""

import asyncio

from support.world import (
    NEW_KEY,
    OWN_KEY,
    World,
)

from bff.demo.upstream import Seen


async def test_load_continues_when_its_browser_leaves(world: World) -> None:
    gate = asyncio.Event()

    async def slow(_):
        await gate.wait()

    world.upstream.override = slow
    leaver = asyncio.create_task(world.get("chat-1"))
    await asyncio.sleep(0.01)
    stayer = asyncio.create_task(world.get("chat-1"))
    await asyncio.sleep(0.01)
    leaver.cancel()
    await asyncio.sleep(0.01)
    gate.set()

    assert (await stayer).status_code == 200
    assert leaver.cancelled()
    assert world.calls == 1
    assert len(world.service.gateway.cache.loads) == 0


async def test_request_with_fallback_waits_one_second_at_most(world: World) -> None:
    first = await world.get("chat-1")
    world.clock.advance(20)

    async def sleepy(_):
        await asyncio.sleep(2)

    world.upstream.override = sleepy
    started = asyncio.get_running_loop().time()
    stale = await world.get("chat-1")
    waited = asyncio.get_running_loop().time() - started
    await asyncio.sleep(2.2 - waited)
    late = await world.get("chat-1")

    assert (stale.status_code, stale.content) == (200, first.content)
    assert 0.9 < waited < 1.8
    assert (late.headers["cache-status"], world.calls) == ("bff; hit", 2), "the load went on"


async def test_waiting_request_is_decided_by_new_settings(world: World) -> None:
    release = asyncio.Event()

    async def slow(_: Seen) -> None:
        await release.wait()

    world.upstream.override = slow
    tokens = [world.signed_with(key, "chat-1") for key in (OWN_KEY, NEW_KEY)]
    world.reload(BFF_SIGNING_KEYS=f"{NEW_KEY},{OWN_KEY}", BFF_EXPOSE_METADATA="plan")
    waiting = [asyncio.create_task(world.get("chat-1", token=token)) for token in tokens]
    while world.calls == 0:
        await asyncio.sleep(0)

    world.reload(BFF_SIGNING_KEYS=NEW_KEY, BFF_EXPOSE_METADATA="progress")
    release.set()
    removed, kept = await asyncio.gather(*waiting)

    assert removed.status_code == 401
    assert kept.json()["metadata"] == {"progress": 0}
    assert world.calls == 1  # loaded once, projected by the policy that was in force then

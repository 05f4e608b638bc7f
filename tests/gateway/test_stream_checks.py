"""Open streams: one loop ends them, and one loop asks for their loads."""

import asyncio

from support.listening import change, listen, settle
from support.world import OFF, World

from bff import metrics


async def test_check_ends_a_stream_whose_token_has_expired(world: World) -> None:
    await world.start(**OFF)
    streams = world.service.gateway.stream_checks
    token = world.token("read:sessions:chat-1", exp=int(world.clock.wall) + 60)
    listening = await listen(world, "chat-1", token=token)

    list(streams.check())
    assert not listening.finished
    world.clock.advance(61)
    list(streams.check())

    assert listening.finished
    assert world.telemetry.counts[metrics.LISTENER_ENDS, "expired"] == 1


async def test_check_uses_the_settings_of_a_reload(world: World) -> None:
    await world.start(**OFF)
    listening = await listen(world, "chat-1")

    world.reload(BFF_EXPOSE_TAGS="public:*")
    list(world.service.gateway.stream_checks.check())

    assert listening.finished
    assert world.telemetry.counts[metrics.LISTENER_ENDS, "policy"] == 1


async def test_look_asks_for_the_load_of_a_copy_that_is_not_fresh(world: World) -> None:
    await world.start(**OFF)
    listening = await listen(world, "chat-1")
    listening.events()
    change(world, "chat-1", taskIdentifier="another")
    world.clock.advance(60)

    list(world.service.gateway.stream_checks.look())
    await settle(world)

    assert [one.data["taskIdentifier"] for one in listening.events()] == ["another"]


async def test_loops_beat_in_every_round(world: World) -> None:
    streams, beats = world.service.gateway.stream_checks, list[str]()
    loops = [
        asyncio.create_task(streams.watch_streams(lambda: beats.append("streams"))),
        asyncio.create_task(streams.watch_listeners(lambda: beats.append("listeners"))),
    ]

    await asyncio.sleep(0)

    assert beats == ["streams", "listeners"]
    for loop in loops:
        loop.cancel()

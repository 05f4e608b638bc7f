"""Which loads listeners ask for, and when."""

import pytest
from support.listening import change, listen, look
from support.world import OFF, World, read

from bff.gateway import live_loads


async def test_each_follower_asks_in_its_turn(world: World) -> None:
    await world.start(**OFF)
    for who in ("ann", "ben"):
        await listen(world, "chat-1", token=world.token(*read("chat-1"), act={"sub": who}))
    for _ in range(4):
        await look(world, 2.1)

    assert world.calls == 5


async def test_one_look_asks_for_a_bounded_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_loads, "LOOKED_UP_AT_ONCE", 100)
    await world.start(**OFF)
    await listen(world, None, *read(*(f"c{n}" for n in range(250))))
    parts = len(list(world.service.gateway.stream_checks.look()))

    assert world.service.gateway.listeners.watched == 250
    assert parts == 1, "a hundred in each part"


async def test_closed_session_is_loaded_less_often(world: World) -> None:
    await world.start(**OFF)
    change(world, "chat-1", closedAt="2026-02-01T00:00:00.500Z")
    await listen(world, "chat-1")
    for _ in range(10):
        await look(world, 2.1)

    assert world.calls == 1, "21 seconds; a closed session is fresh for 30"

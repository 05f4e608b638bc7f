"""The parts that the composition root connects."""

from support.world import (
    NEW_KEY,
    OWN_KEY,
    World,
)


async def test_new_trusted_proxies_count_for_connections(
    world: World,
) -> None:
    await world.start(BFF_MAX_CONNECTIONS_PER_ADDRESS="1")
    doors = world.service.connections
    assert [doors.enter("192.0.2.9"), doors.enter("192.0.2.9")] == [True, False]

    world.reload(BFF_TRUSTED_PROXIES="192.0.2.0/24")
    assert doors.enter("192.0.2.9")
    world.reload(BFF_TRUSTED_PROXIES=None)
    assert not doors.enter("192.0.2.9")


async def test_gauge_shows_when_each_key_was_used(world: World) -> None:
    await world.start(BFF_SIGNING_KEYS=f"{NEW_KEY},{OWN_KEY}")
    await world.get("chat-1", token=world.signed_with(OWN_KEY, "chat-1"))
    world.clock.advance(5)
    token = world.signed_with(NEW_KEY, "chat-1")
    await world.get("chat-1", token=token)
    world.clock.advance(60)
    await world.get("chat-1", token=token)  # remembered as verified, and used all the same

    def used() -> dict[int, float]:
        return {use.number: use.last for use in world.service.gateway.config.verifier.uses}

    assert used() == {1: 1_800_000_065.0, 2: 1_800_000_000.0}

    world.reload(BFF_SIGNING_KEYS=f"{'x' * 40},{NEW_KEY},{OWN_KEY}")
    assert used() == {1: 0.0, 2: 1_800_000_065.0, 3: 1_800_000_000.0}

"""Changes of a running gateway: every part gets the settings in force, or none does."""

from support.world import World

from bff import metrics
from bff.ops.changes import report_key


async def test_new_trusted_proxies_count_for_connections(world: World) -> None:
    await world.start(BFF_MAX_CONNECTIONS_PER_ADDRESS="1")
    doors = world.service.connections
    assert [doors.enter("192.0.2.9"), doors.enter("192.0.2.9")] == [True, False]

    world.reload(BFF_TRUSTED_PROXIES="192.0.2.0/24")
    assert doors.enter("192.0.2.9")
    world.reload(BFF_TRUSTED_PROXIES=None)
    assert not doors.enter("192.0.2.9")


async def test_settings_that_cannot_be_built_change_nothing(world: World) -> None:
    changes, gateway = world.service.changes, world.service.gateway
    settings, config = changes.settings, gateway.config

    world.reload(BFF_SIGNING_KEYS="short")

    assert changes.settings is settings
    assert gateway.config is config
    assert (await world.get("chat-1")).status_code == 200


async def test_change_of_a_key_is_counted_and_logged(world: World) -> None:
    report_key(world.telemetry, world.clock, "default", 2)

    assert world.telemetry.counts[metrics.SECRET_KEY_CHANGES, "default"] == 1
    (line,) = [line for line in world.logged() if line["event"] == "secret_key_rejected"]
    assert line["now_used"] == 2

"""New settings keep the unchanged parts of the former configuration."""

from dataclasses import fields

from support.world import World

from bff.config.runtime import Limits
from bff.config.settings import SETTINGS


async def test_copies_of_another_upstream_are_dropped(world: World) -> None:
    await world.get("chat-1")

    world.reload(TRIGGER_API_URL="http://127.0.0.2:1")
    await world.get("chat-1")

    assert [seen.header("host") for seen in world.upstream.seen] == ["127.0.0.1:1", "127.0.0.2:1"]


async def test_builder_makes_every_limit(world: World) -> None:
    await world.start(**{name: "7/minute" for name in SETTINGS if name.endswith("_LIMIT")})

    limits = world.service.gateway.config.limits
    for field in fields(Limits):
        assert getattr(limits, field.name).limit == 7, field.name


async def test_unchanged_limits_keep_their_counts(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="2/minute")
    await world.get("chat-1")

    world.reload(BFF_IP_RATE_LIMIT="100/minute")
    assert (await world.get("chat-1")).headers["x-ratelimit-remaining"] == "0"

    world.reload(BFF_RATE_LIMIT="5/minute")
    assert (await world.get("chat-1")).headers["x-ratelimit-remaining"] == "4"

"""New settings keep the unchanged parts of the former configuration."""

from support.world import (
    World,
)


async def test_copies_of_another_upstream_are_dropped(world: World) -> None:
    await world.get("chat-1")

    world.reload(TRIGGER_API_URL="http://127.0.0.2:1")
    await world.get("chat-1")

    assert [seen.header("host") for seen in world.upstream.seen] == ["127.0.0.1:1", "127.0.0.2:1"]


async def test_unchanged_limits_keep_their_counts(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="2/minute")
    await world.get("chat-1")

    world.reload(BFF_IP_RATE_LIMIT="100/minute")
    assert (await world.get("chat-1")).headers["x-ratelimit-remaining"] == "0"

    world.reload(BFF_RATE_LIMIT="5/minute")
    assert (await world.get("chat-1")).headers["x-ratelimit-remaining"] == "4"

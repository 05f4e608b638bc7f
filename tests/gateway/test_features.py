"""A change of the settings keeps some parts and makes the others anew."""

from support.world import World


async def test_reload_keeps_the_lasting_parts(world: World) -> None:
    gateway = world.service.gateway
    loader, cache, features = gateway.loader, gateway.cache, (gateway.answers, gateway.chats)

    world.reload(BFF_RATE_LIMIT="5/minute")

    assert gateway.loader is loader
    assert gateway.cache is cache
    assert gateway.answers is not features[0]
    assert gateway.chats is not features[1]


async def test_pause_of_messages_outlives_a_reload(world: World) -> None:
    gateway = world.service.gateway
    gateway.chats.pauses["default"] = 100.0

    world.reload(BFF_RATE_LIMIT="5/minute")

    assert gateway.chats.pauses == {"default": 100.0}


async def test_every_feature_uses_the_settings_of_a_reload(world: World) -> None:
    await world.get("chat-1")

    world.reload(BFF_ALLOWED_ORIGINS="https://other.example", BFF_RATE_LIMIT="9/minute")
    response = await world.get("chat-1", origin="https://other.example")

    assert response.headers["access-control-allow-origin"] == "https://other.example"
    assert response.headers["x-ratelimit-limit"] == "9"
    assert world.calls == 1, "the copy is kept"

"""Readiness of environments."""

from support.world import (
    PATH,
    World,
)


async def test_readiness_check_calls_upstream_once(world: World) -> None:
    first = await world.ops.get("/readyz")
    again = await world.ops.get("/readyz")

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["environments"]["default"]["ready"] is True
    assert [seen.raw_path for seen in world.upstream.seen] == [PATH + "session_readiness_probe"]


async def test_rejected_secret_key_is_not_ready(world: World) -> None:
    world.answer(401, {"error": "Invalid API key"})

    response = await world.ops.get("/readyz")

    assert response.status_code == 503
    assert response.json()["code"] == "not_ready"
    assert "TRIGGER_SECRET_KEY" in response.json()["environments"]["default"]["reason"]
    events = [line["event"] for line in world.logged() if line["level"] == "error"]
    assert events == ["upstream_rejects_our_key"]
    world.answer(0)
    world.clock.advance(2)
    assert (await world.ops.get("/readyz")).status_code == 200


async def test_environment_with_copies_is_ready_without_upstream(world: World) -> None:
    await world.get("chat-1")
    world.answer(500, {})
    world.clock.advance(10)
    await world.get("chat-1")

    ready = await world.ops.get("/readyz")
    world.clock.advance(60)
    lost = await world.ops.get("/readyz")

    assert ready.status_code == 200
    assert "copies" in ready.json()["environments"]["default"]["reason"]
    assert lost.status_code == 503

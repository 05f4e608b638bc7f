"""The configuration at run time: what it derives from its parts."""

from pathlib import Path

from support.world import World

REQUIRED = "id,type,taskIdentifier,createdAt,updatedAt"
POLICIES = f"""
[policies."chat.support"]
BFF_EXPOSE_FIELDS = "{REQUIRED},expiresAt"
"""


async def test_visible_fields_are_those_of_any_policy(world: World, tmp_path: Path) -> None:
    config = tmp_path / "bff.toml"
    config.write_text(POLICIES)
    await world.start(BFF_CONFIG=str(config), BFF_EXPOSE_FIELDS=f"{REQUIRED},closedAt")

    visible = world.service.gateway.config.visible

    assert {"closedAt", "expiresAt"} <= visible
    assert "currentRunId" not in visible


async def test_projection_differs_when_a_policy_differs(world: World) -> None:
    before = world.service.gateway.config.projection
    world.reload(BFF_RATE_LIMIT="7/second")
    assert world.service.gateway.config.projection == before

    world.reload(BFF_EXPOSE_METADATA="plan")

    assert world.service.gateway.config.projection != before


async def test_origin_differs_when_the_upstream_differs(world: World) -> None:
    before = world.service.gateway.config.origins

    await world.start(TRIGGER_API_URL="http://127.0.0.1:2")

    assert world.service.gateway.config.origins.keys() == before.keys()
    assert world.service.gateway.config.origins != before

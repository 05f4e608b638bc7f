"""The id of a secret key's environment, learned from upstream."""

import base64
import json
from typing import Any

import httpx2
import pytest
from support.world import (
    ENVIRONMENT_ID,
    ROOT_KEY,
    SECRET_KEY,
    Gateway,
    World,
    environ,
    running_upstream,
    through,
)

from bff.config import reader
from bff.demo.upstream import Answer, Environment, Seen
from bff.ops.check_upstream import UpstreamChecker
from bff.ops.environment_id import PUBLIC_TOKENS_PATH, IdUnknown, learn
from bff.upstream.api import Upstream


def upstream(world: World, **changes: str) -> Upstream:
    settings = reader.load(environ(**changes))
    network = through(httpx2.ASGITransport(world.upstream))
    (environment,) = settings.environments
    return UpstreamChecker(settings, world.clock, network=network)._upstream(environment)


@pytest.mark.parametrize("key", [ROOT_KEY, SECRET_KEY])
async def test_id_of_any_key_is_learned(world: World, key: str) -> None:
    assert await learn(upstream(world, TRIGGER_SECRET_KEY=key)) == ENVIRONMENT_ID


async def test_id_of_each_of_several_keys_is_learned(world: World) -> None:
    other = Environment("env_other", f"{ROOT_KEY}2")
    world.upstream.environments = (*world.upstream.environments, other)
    asked = upstream(world, TRIGGER_SECRET_KEY=f"{SECRET_KEY},{ROOT_KEY}2")

    assert [await learn(asked, key) for key in range(2)] == [ENVIRONMENT_ID, "env_other"]


async def test_restricted_key_asks_for_no_more_than_a_read_scope(world: World) -> None:
    await learn(upstream(world))

    seen = world.upstream.seen[-1]
    assert (seen.method, seen.raw_path) == ("POST", PUBLIC_TOKENS_PATH)
    assert seen.header("content-type") == "application/json"


def jwt(claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        {},
        [],
        {"token": 7},
        {"token": "x"},
        {"token": "a.b.c"},
        {"token": "a.%%%.c"},
        {"token": jwt([])},
        {"token": jwt({"sub": 7})},
        {"token": jwt({"sub": ""})},
        {"sub": 7},
    ],
    ids=repr,
)
async def test_odd_answer_has_an_unknown_id(world: World, body: Any) -> None:
    world.answer(200, body)

    with pytest.raises(IdUnknown) as raised:
        await learn(upstream(world))

    assert raised.value.is_final is False


async def test_server_without_the_route_needs_the_setting(world: World) -> None:
    async def old(seen: Seen) -> Answer | None:
        return Answer(404, {"error": "Not found"}) if seen.raw_path == PUBLIC_TOKENS_PATH else None

    world.upstream.override = old
    with pytest.raises(IdUnknown, match="set BFF_ENVIRONMENT_ID"):
        await learn(upstream(world))


async def test_set_id_is_compared_before_a_start(world: World) -> None:
    async def confirmed(**changes: str) -> tuple[list[str], frozenset[str]]:
        settings = reader.load(environ(**changes))
        network = through(httpx2.ASGITransport(world.upstream))
        return await UpstreamChecker(settings, world.clock, network=network).confirm_ids()

    assert await confirmed() == ([], frozenset())
    (problem,), unconfirmed = await confirmed(BFF_ENVIRONMENT_ID="env_other")
    assert "belongs to environment env_test, but BFF_ENVIRONMENT_ID is env_other" in problem
    assert unconfirmed == frozenset()
    world.answer(500, {})
    assert await confirmed() == ([], frozenset({"default"}))


def test_gateway_starts_while_upstream_is_down() -> None:
    with Gateway(1) as gateway:
        assert gateway.process.poll() is None


def test_gateway_with_the_right_id_starts() -> None:
    with running_upstream() as up, Gateway(up.port) as gateway:
        assert gateway.process.poll() is None
        paths = [seen.raw_path for seen in up.app.seen]
        assert PUBLIC_TOKENS_PATH in paths
        assert up.seen == []

"""Ids in the other form: what they cost, and what nobody learns from them."""

import pytest
from support.world import (
    FRIENDLY,
    World,
    read,
)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"BFF_BAD_TOKEN_LIMIT": "off"},
        {"BFF_RATE_LIMIT": "off"},
        {"BFF_IP_RATE_LIMIT": "off", "BFF_BAD_TOKEN_LIMIT": "off", "BFF_RATE_LIMIT": "off"},
    ],
    ids=["all on", "bad tokens off", "callers off", "all off"],
)
async def test_unnamed_id_does_not_reveal_whether_it_exists(
    world: World, limits: dict[str, str]
) -> None:
    await world.start(**limits)
    scopes = read(FRIENDLY["chat-2"])
    await world.get("chat-1")  # a copy is kept now

    responses = [await world.get(id_, *scopes) for id_ in ("chat-1", "no-such-chat", "chat-closed")]
    world.answer(500, {"error": "down"})
    responses += [await world.get("chat-of-bad-weather", *scopes)]

    changing = ("x-request-id", "x-ratelimit-remaining", "ratelimit")
    shown = [
        (r.status_code, r.content, [h for h in r.headers.items() if h[0] not in changing])
        for r in responses
    ]
    assert [response.status_code for response in responses] == [403] * 4
    assert all(one == shown[0] for one in shown)


async def test_guesses_cost_at_most_the_bad_token_limit(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off", BFF_UPSTREAM_BUDGET="off")
    token = world.token(*read(FRIENDLY["chat-1"]))

    statuses = {(await world.get(f"made-up-{n}", token=token)).status_code for n in range(500)}

    assert statuses == {403}
    assert world.calls == 60
    assert (await world.get(FRIENDLY["chat-1"], token=token)).status_code == 200


async def test_alias_that_is_right_is_refunded(world: World) -> None:
    await world.start(BFF_BAD_TOKEN_LIMIT="1/minute", BFF_CACHE_TTL="0")
    token = world.token(*read(FRIENDLY["chat-1"]))

    statuses = [(await world.get("chat-1", token=token)).status_code for _ in range(3)]

    assert statuses == [200, 200, 200]

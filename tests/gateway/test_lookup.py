"""Copies that are fresh, stale or loaded, as browsers see them."""

import asyncio

from support.world import (
    FRIENDLY,
    World,
    read,
)


async def test_one_load_serves_all_entitled_callers(world: World) -> None:
    first = await world.get("chat-1")
    world.clock.advance(1.5)
    again = await world.get(FRIENDLY["chat-1"])

    assert world.calls == 1
    assert first.headers["cache-status"] == "bff; fwd=miss; stored"
    assert (again.headers["cache-status"], again.headers["age"]) == ("bff; hit", "1")
    assert again.content == first.content
    assert again.headers["etag"] == first.headers["etag"]


async def test_500_requests_at_once_cause_one_call(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off")
    entitled = world.token(*read("chat-1"))
    alias = world.token(*read(FRIENDLY["chat-2"]))
    other = world.token(*read("chat-2"))

    tokens = [entitled, alias, entitled, other] * 125
    responses = await asyncio.gather(*(world.get("chat-1", token=token) for token in tokens))

    assert [response.status_code for response in responses] == [200, 403, 200, 403] * 125
    assert world.calls == 2, "chat-1, and the session that the alias names"


async def test_stale_copy_is_served_and_refreshed(world: World) -> None:
    first = await world.get("chat-1")
    document = world.upstream.environments[0].find("chat-1")
    document["currentRunId"] = "run_next"
    world.clock.advance(3)

    stale = await world.get("chat-1")
    await world.settle()
    fresh = await world.get("chat-1")

    assert stale.headers["cache-status"] == "bff; hit; detail=stale"
    assert stale.headers["age"] == "3"
    assert stale.content == first.content
    assert stale.headers["etag"] == first.headers["etag"]
    assert fresh.json()["currentRunId"] == "run_next"
    assert fresh.headers["cache-status"] == "bff; hit"
    assert world.calls == 2


async def test_copy_past_stale_waits_for_a_load(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(8)

    response = await world.get("chat-1")

    assert response.headers["cache-status"] == "bff; fwd=stale; stored"
    assert response.headers["age"] == "0"


async def test_closed_session_stays_fresh_longer(world: World) -> None:
    await world.get("chat-closed")
    world.clock.advance(29)

    assert (await world.get("chat-closed")).headers["cache-status"] == "bff; hit"
    assert world.calls == 1


async def test_copies_are_served_while_upstream_fails(world: World) -> None:
    first = await world.get("chat-1")
    world.answer(500, {"error": "down"})

    world.clock.advance(61)
    stale = await world.get("chat-1")
    world.clock.advance(1)
    too_old = await world.get("chat-1")
    world.answer(0)
    recovered = await world.get("chat-1")

    assert (stale.status_code, stale.content) == (200, first.content)
    assert stale.headers["age"] == "61"
    assert stale.headers["cache-status"] == "bff; hit; detail=stale-if-error"
    assert (too_old.status_code, too_old.json()["code"]) == (502, "upstream_unavailable")
    assert recovered.status_code == 200


async def test_failing_upstream_is_not_called_for_every_poll(world: World) -> None:
    await world.get("chat-1")
    world.answer(500, {"error": "down"})
    world.clock.advance(20)

    for _ in range(50):
        assert (await world.get("chat-1")).status_code == 200

    assert world.calls == 2
    world.clock.advance(1)
    world.answer(0)
    assert (await world.get("chat-1")).headers["age"] == "0"


async def test_deleted_session_gets_404(world: World) -> None:
    await world.get("chat-1")
    del world.upstream.environments[0].sessions[FRIENDLY["chat-1"]]
    world.clock.advance(10)

    assert (await world.get("chat-1")).status_code == 404

"""Incidents 50 and 72: ids that the token does not name, and ids that name no session."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest
from support.hostile import ask, told
from support.kinds import Kind
from support.world import FRIENDLY, Clock, World, read

from bff.demo.upstream import session
from bff.response import Response

SECRET = session(50, "secret")
IDS = ["secret", SECRET["id"], "no-such-chat", "session_none", *FRIENDLY, *FRIENDLY.values()]
LIMITS = ("BFF_RATE_LIMIT", "BFF_IP_RATE_LIMIT", "BFF_BAD_TOKEN_LIMIT", "BFF_UPSTREAM_BUDGET")
NAMED = [
    [],
    ["chat-1"],
    [FRIENDLY["chat-1"]],
    [FRIENDLY["chat-1"], "chat-2"],
    ["session_gone", "gone", FRIENDLY["chat-2"]],
]


def seen_by_the_browser(response: Response) -> tuple[Any, ...]:
    return response.status, response.body, told(response) | {"x-request-id": ""}


def left(world: World) -> tuple[Any, ...]:
    """Return the rest of the budget, the use of each limit, and the requests upstream."""
    config, now = world.service.gateway.config, world.clock.now
    limits = (config.limits.address, config.limits.bad_token, config.limits.caller)
    return (
        config.environments["default"].budget.left(now),
        [sorted(window.used for window in limit._windows.values()) for limit in limits],
        [(seen.method, seen.raw_path) for seen in world.upstream.seen],
    )


async def turns(work: Awaitable[Response]) -> tuple[Response, int]:
    """Return an answer, and the turns of the loop that it took: its class of time."""
    task, count = asyncio.ensure_future(work), 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    return task.result(), count


@pytest.mark.parametrize("off", [(), *((name,) for name in LIMITS), LIMITS], ids=str)
async def test_50_unnamed_id_is_the_same_whether_it_exists(
    kind: Kind, off: tuple[str, ...]
) -> None:
    """Two worlds, in one of which the session exists and has a copy, live the same history."""
    settings = kind.settings | dict.fromkeys(off, "off")
    async with World(Clock(), **settings) as one, World(Clock(), **settings) as other:
        one.upstream.environments[0].add(SECRET)
        for world in (one, other):
            owner = kind.token(world, *read("secret"), act={"sub": "owner"})
            await ask(world, "secret", owner)
            world.clock.advance(100)
            world.upstream.seen.clear()
        chooser = random.Random(50)
        for number in range(120):
            named, id_ = chooser.choice(NAMED), chooser.choice(IDS)
            if id_ in (SECRET["id"], "secret") and id_ in named:
                continue
            forged, seconds = chooser.random() < 0.2, chooser.choice([0, 0, 1, 7, 61])
            weather = chooser.choice([0, 0, 0, 500, 429])
            answers = []
            for world in (one, other):
                world.answer(weather, {"error": "x"})
                world.clock.advance(seconds)
                token = kind.token(world, *read(*named), forged=forged, jti=str(number % 7))
                response, count = await turns(ask(world, id_, token))
                await world.settle()
                answers.append((seen_by_the_browser(response), count, left(world)))
            assert answers[0] == answers[1], (named, id_, forged)


async def test_50_named_sessions_alone_are_looked_up(of_kind: World, kind: Kind) -> None:
    token = kind.token(of_kind, *read(FRIENDLY["chat-1"], "chat-2"))

    statuses = [
        (await ask(of_kind, id_, token)).status for id_ in ("made-up", "secret", "session_x")
    ]

    assert statuses == [403] * 3
    asked = {seen.raw_path.rpartition("/")[2] for seen in of_kind.upstream.seen}
    assert asked == {FRIENDLY["chat-1"], "chat-2"}
    assert of_kind.calls == 2


async def test_50_entitled_caller_learns_of_trouble(of_kind: World, kind: Kind) -> None:
    """By the other form too: a 403 would make the page ask for another token, again and again."""
    of_kind.answer(500, {"error": "down"})
    token = kind.token(of_kind, *read(FRIENDLY["chat-1"]))

    for id_ in ("chat-1", FRIENDLY["chat-1"], "made-up"):
        response = await ask(of_kind, id_, token)
        assert response.status == 502, id_
        of_kind.clock.advance(2)


async def test_50_both_ids_cost_one_load(of_kind: World, kind: Kind) -> None:
    token = kind.token(of_kind, *read("chat-1", FRIENDLY["chat-1"]))
    await ask(of_kind, "chat-1", token)
    await ask(of_kind, FRIENDLY["chat-1"], token)
    of_kind.upstream.seen.clear()
    of_kind.clock.advance(30)

    responses = await asyncio.gather(
        *(ask(of_kind, id_, token) for id_ in ("chat-1", FRIENDLY["chat-1"]))
    )

    assert [response.status for response in responses] == [200, 200]
    assert of_kind.calls == 1


# -- ids that name no session


CHANNELS = ["chat-1:channels:main", "chat-1:channels:main:in", f"{FRIENDLY['chat-1']}:channels:x"]


@pytest.mark.parametrize("id_", [*CHANNELS, ":channels:", "a:channels:"])
@pytest.mark.parametrize("scopes", ["named", "type-wide", "none"])
async def test_69_channel_names_no_session(
    of_kind: World, kind: Kind, id_: str, scopes: str
) -> None:
    chosen = {"named": [*read(id_), f"*:sessions:{id_}"], "type-wide": ["read:sessions"]}
    token = kind.token(of_kind, *chosen.get(scopes, []))
    await ask(of_kind, "chat-2", kind.token(of_kind, *read("chat-2")))
    calls = of_kind.calls

    assert (await ask(of_kind, id_, token)).status == 403
    assert (await ask(of_kind, "chat-1", kind.token(of_kind, *read(id_)))).status == 403
    assert (await ask(of_kind, FRIENDLY["chat-1"], kind.token(of_kind, *read(id_)))).status == 403
    assert of_kind.calls == calls or (scopes == "type-wide" and kind.name == "upstream")


async def test_69_list_holds_no_channel(of_kind: World, kind: Kind) -> None:
    token = kind.token(of_kind, *read(*CHANNELS, "chat-2", *CHANNELS))

    response = await of_kind.browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {token}"}
    )

    assert [one["externalId"] for one in response.json()["data"]] == ["chat-2"]
    assert "unavailable" not in response.json()
    assert of_kind.calls == 1


@pytest.mark.parametrize("scope", ["admin", "admin:", "admin::", "admin::whatever"])
async def test_69_admin_without_a_type_grants_as_upstream_grants(
    of_kind: World, kind: Kind, scope: str
) -> None:
    assert (await ask(of_kind, "chat-1", kind.token(of_kind, scope))).status == 200
    refused = kind.token(of_kind, f"{scope}".replace("admin", "admin:sessions", 1))
    assert (await ask(of_kind, "chat-1", refused)).status == 403


@pytest.mark.parametrize("id_", ["a%2Fb", "a%2fb", "%2F", "x%2Fy%2fz"])
async def test_69_unreachable_id_is_404_without_a_load(
    of_kind: World, kind: Kind, id_: str
) -> None:
    environment = of_kind.service.gateway.config.environments["default"]
    of_kind.upstream.environments[0].add(session(51, "a/b"))
    segment = id_.replace("%", "%25")
    entitled = kind.token(of_kind, *read(id_, "chat-1"))
    await ask(of_kind, "chat-1", entitled)
    calls = of_kind.calls

    response = await ask(of_kind, segment, entitled)
    other = await ask(of_kind, segment, kind.token(of_kind, *read("chat-1")))

    assert (response.status, other.status) == (404, 403)
    assert of_kind.calls == calls
    assert environment.health in (None, "ok")


async def test_69_id_that_upstream_reads_as_another_is_not_found(world: World) -> None:
    """Upstream may read an id as another; that is not a failure of upstream."""
    world.answer(200, session(1, "aAb"))

    response = await ask(world, "a%2541b", world.token(*read("a%41b")))
    world.answer(0)
    await ask(world, "chat-1", world.token(*read("chat-1")))

    assert response.status == 404
    assert [line["event"] for line in world.logged() if line["event"].startswith("upstream_")] == []


@pytest.mark.parametrize("id_", ["a\tb", "\ta", "a\t"])
async def test_69_tab_is_legal_in_an_id(of_kind: World, kind: Kind, id_: str) -> None:
    of_kind.upstream.environments[0].add(session(52, id_))
    token = kind.token(of_kind, *read(id_))

    response = await ask(of_kind, id_.replace("\t", "%09"), token)
    listed = await of_kind.browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {token}"}
    )

    assert response.status == 200
    assert [one["externalId"] for one in listed.json()["data"]] == [id_]
    assert (await ask(of_kind, "a%00b", token)).status == 400

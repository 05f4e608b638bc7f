"""Ids in the other form: what they cost, and what nobody learns from them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from support.world import FRIENDLY, OFF, PATH, World, read

from bff.demo.upstream import Answer, Seen, session
from bff.gateway.aliases import MAX_UNKNOWN

Override = Callable[[Seen], Awaitable[Answer | None]]
_CHANGING = ("x-request-id", "x-ratelimit-remaining", "ratelimit")


def shown(response: httpx2.Response) -> tuple[Any, ...]:
    """Return what a browser sees, without what differs between any two answers."""
    headers = [pair for pair in response.headers.items() if pair[0] not in _CHANGING]
    return response.status_code, response.content, headers


def paths(world: World) -> list[str]:
    return [seen.raw_path.removeprefix(PATH) for seen in world.upstream.seen]


def more(world: World, number: int) -> list[str]:
    """Add *number* sessions; return their friendly ids."""
    documents = [session(n, f"more-{n}") for n in range(100, 100 + number)]
    for document in documents:
        world.upstream.environments[0].add(document)
    return [document["id"] for document in documents]


def by_id(answers: dict[str, Answer], gates: dict[str, asyncio.Event] | None = None) -> Override:
    """Let upstream answer by id, some ids only when their gate opens."""

    async def override(seen: Seen) -> Answer | None:
        id_ = seen.raw_path.removeprefix(PATH)
        if gates and id_ in gates:
            await gates[id_].wait()
        return answers.get(id_)

    return override


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"BFF_BAD_TOKEN_LIMIT": "off"},
        {"BFF_RATE_LIMIT": "off"},
        {"BFF_UPSTREAM_BUDGET": "off"},
        {"BFF_IP_RATE_LIMIT": "off", "BFF_BAD_TOKEN_LIMIT": "off", "BFF_RATE_LIMIT": "off"},
    ],
    ids=["all on", "bad tokens off", "callers off", "budget off", "all off"],
)
async def test_unnamed_id_does_not_reveal_whether_it_exists(
    world: World, limits: dict[str, str]
) -> None:
    await world.start(**limits)
    scopes = read(FRIENDLY["chat-2"])
    await world.get("chat-1")  # a copy is kept now

    responses = [await world.get(id_, *scopes) for id_ in ("chat-1", "no-such-chat", "chat-closed")]
    calls = paths(world)
    world.answer(500, {"error": "down"})
    responses += [await world.get("chat-of-bad-weather", *scopes)]

    assert [response.status_code for response in responses] == [403] * 4
    assert all(shown(one) == shown(responses[0]) for one in responses)
    assert calls == ["chat-1", FRIENDLY["chat-2"]], "the named session, and no other"
    assert world.calls == 2


@pytest.mark.parametrize("exists", [True, False])
async def test_unnamed_id_is_looked_up_nowhere(world: World, exists: bool) -> None:
    """It spends nothing of any budget or limit, whether or not a token names other sessions."""
    if exists:
        await world.get("chat-closed")
    asked = "chat-closed" if exists else "no-such-chat"
    gateway = world.service.gateway
    budget, limits = gateway.config.environments["default"].budget, gateway.config.limits
    world.clock.advance(5)
    before = budget.left(world.clock.now), world.calls, len(gateway.cache)

    statuses = {(await world.get(asked, *read("chat-1"))).status_code for _ in range(20)}

    assert statuses == {403}
    assert (budget.left(world.clock.now), world.calls, len(gateway.cache)) == before
    assert not len(limits.bad_token._windows)


async def test_entitled_caller_may_ask_by_the_other_form(world: World) -> None:
    by_external = await world.get("chat-1", *read(FRIENDLY["chat-1"]))
    by_friendly = await world.get(FRIENDLY["chat-2"], *read("chat-2"))
    again = await world.get(FRIENDLY["chat-2"], *read("chat-2"))

    assert (by_external.status_code, by_friendly.status_code) == (200, 200)
    assert by_external.json()["externalId"] == "chat-1"
    assert by_external.headers["cache-status"] == "bff; fwd=miss; stored"
    assert again.headers["cache-status"] == "bff; hit"
    assert paths(world) == [FRIENDLY["chat-1"], "chat-2"], "each by the id that the token names"


async def test_second_guess_costs_no_lookup(world: World) -> None:
    await world.start(**OFF)
    token = world.token(*read(*more(world, 5)))
    first = await world.get("made-up", token=token)
    assert (first.status_code, world.calls) == (403, 5)

    world.clock.advance(600)
    statuses = {(await world.get(f"made-up-{n}", token=token)).status_code for n in range(500)}

    assert statuses == {403}
    assert world.calls == 5, "ids never change, so their pairs outlive the copies"
    assert (await world.get("more-102", token=token)).status_code == 200


async def test_guess_waits_for_the_budget_like_a_poll(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="2/second")
    token = world.token(*read(*more(world, 3)))

    responses = [await world.get("made-up", token=token) for _ in range(2)]
    world.clock.advance(1)
    responses.append(await world.get("made-up", token=token))

    codes = [response.json()["code"] for response in responses]
    assert codes == ["over_budget", "over_budget", "unauthorized"]
    assert responses[0].headers["retry-after"] == "1"
    assert world.calls == 3


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(500, {"error": "down"}), 502),
        (Answer(200, b"<html>"), 502),
        (Answer(401, {"error": "Invalid API key"}), 502),
        (Answer(429, {"error": "slow down"}, {"retry-after": "5"}), 503),
    ],
    ids=["down", "HTML", "key", "429"],
)
async def test_trouble_of_a_named_session_is_not_a_403(
    world: World, answer: Answer, status: int
) -> None:
    """It is the named sessions' trouble, so it is the same for every requested id."""
    await world.start(**OFF)
    await world.get("chat-closed")
    world.upstream.override = by_id({FRIENDLY["chat-2"]: answer})
    scopes = read(FRIENDLY["chat-1"], FRIENDLY["chat-2"])

    unknown = [await world.get(id_, *scopes) for id_ in ("chat-closed", "no-such-chat", "chat-2")]
    named = await world.get("chat-1", *scopes)

    assert [response.status_code for response in unknown] == [status] * 3
    assert all(shown(one) == shown(unknown[0]) for one in unknown)
    assert named.status_code == 200, "its own pair is known"


async def test_missing_named_session_does_not_match(world: World) -> None:
    scopes = read("session_gone", FRIENDLY["chat-1"])

    made_up = await world.get("made-up", *scopes)
    match = await world.get("chat-1", *scopes)

    assert (made_up.status_code, match.status_code) == (403, 200)


async def test_match_does_not_wait_for_other_sessions(world: World) -> None:
    slow, gate = more(world, 1)[0], asyncio.Event()
    world.upstream.override = by_id({}, {slow: gate})
    scopes = read(slow, FRIENDLY["chat-1"])

    match = await world.get("chat-1", *scopes)
    guess = asyncio.create_task(world.get("made-up", *read(slow, FRIENDLY["chat-2"])))
    for _ in range(50):
        await asyncio.sleep(0)
    waited = not guess.done()
    gate.set()

    assert match.status_code == 200
    assert waited, "only all of them tell that there is no match"
    assert (await guess).status_code == 403


async def test_more_than_twenty_unknown_pairs_are_not_looked_up(world: World) -> None:
    await world.start(**OFF)
    token = world.token(*read(*more(world, MAX_UNKNOWN + 1)))

    refused = [await world.get(id_, token=token) for id_ in ("more-100", "chat-1", "no-such-chat")]
    calls = world.calls
    await world.get(session(100)["id"], token=token)
    allowed = await world.get("more-101", token=token)

    assert {shown(response)[:2] for response in refused} == {shown(refused[0])[:2]}
    assert refused[0].status_code == 403
    assert refused[0].json()["error"] == "Ask by the id of the session that the token names"
    assert calls == 0
    assert allowed.status_code == 200, "now twenty are unknown"


async def test_only_ids_of_the_other_form_are_looked_up(world: World) -> None:
    scopes = read("chat-2", "chat-closed", FRIENDLY["chat-1"])

    assert (await world.get("made-up", *scopes)).status_code == 403
    assert paths(world) == [FRIENDLY["chat-1"]]


async def test_type_wide_scope_needs_no_pair(world: World) -> None:
    response = await world.get("chat-1", "read:sessions", *read(FRIENDLY["chat-2"]))

    assert response.status_code == 200
    assert paths(world) == ["chat-1"]


async def test_lookups_for_an_alias_are_charged_to_the_caller(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="1/minute")
    token = world.token(*read(*more(world, 2)), act={"sub": "ann"})
    world.upstream.override = by_id({})
    world.answer(500, {"error": "down"})

    statuses = [(await world.get("made-up", token=token)).status_code for _ in range(2)]

    assert statuses == [502, 429]


async def test_revoked_alias_is_refused_like_a_guess(world: World) -> None:
    token = world.token(*read(FRIENDLY["chat-1"]))
    assert (await world.get("chat-1", token=token)).status_code == 200
    world.clock.advance(1)
    await world.ops.post("/revocations", json={"session": "chat-1"})

    match, guess = [await world.get(id_, token=token) for id_ in ("chat-1", "made-up")]

    assert (match.status_code, guess.status_code) == (403, 403)
    assert match.content == guess.content


async def test_token_revoked_during_a_lookup_gets_nothing(world: World) -> None:
    gate = asyncio.Event()
    world.upstream.override = by_id({}, {FRIENDLY["chat-1"]: gate})
    token = world.token(*read(FRIENDLY["chat-1"]), jti="one")
    waiting = asyncio.create_task(world.get("chat-1", token=token))
    await asyncio.sleep(0.01)
    await world.ops.post("/revocations", json={"jti": "one"})
    gate.set()

    assert (await waiting).json()["code"] == "token_revoked"


async def test_reload_during_a_lookup_decides_again(world: World) -> None:
    gate = asyncio.Event()
    world.upstream.override = by_id({}, {FRIENDLY["chat-1"]: gate})
    waiting = asyncio.create_task(world.get("chat-1", *read(FRIENDLY["chat-1"])))
    await asyncio.sleep(0.01)
    world.reload(BFF_SIGNING_KEYS="another-signing-key-0123456789abcdef")
    gate.set()

    assert (await waiting).json()["code"] == "token_invalid"


async def test_pairs_of_another_upstream_are_forgotten(world: World) -> None:
    token = world.token(*read(FRIENDLY["chat-1"]))
    assert (await world.get("chat-1", token=token)).status_code == 200

    world.reload(TRIGGER_API_URL="http://127.0.0.1:2")
    await world.get("made-up", token=token)

    assert paths(world) == [FRIENDLY["chat-1"]] * 2


async def test_both_ids_join_one_load(world: World) -> None:
    token = world.token(*read("chat-1", FRIENDLY["chat-1"]))
    await world.get("chat-1", token=token)
    world.clock.advance(100)

    responses = await asyncio.gather(
        *(world.get(id_, token=token) for id_ in ("chat-1", FRIENDLY["chat-1"]) * 10)
    )

    assert {response.status_code for response in responses} == {200}
    assert world.calls == 2

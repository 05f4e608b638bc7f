"""Incidents 13, 15, 16, 18, 19, 30, 34 and 36: shared copies, and what loads may cost."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.hostile import NOTHING_KEPT, WIDE_OPEN, ask, descriptors, idle, told
from support.kinds import Kind
from support.rawsockets import RawUpstream, answer_bytes, request, requested_id, talk
from support.world import FRIENDLY, PATH, Gateway, World, read

from bff.demo.upstream import session
from bff.errors import Refused
from bff.gateway.answers import HIT
from bff.gateway.context import RequestContext
from bff.request import RequestHead
from bff.sessions.copy import Copy
from bff.tokens.caller import Caller


async def test_15_cancelled_requests_hand_nothing_to_the_next(world: World) -> None:
    await world.start(**WIDE_OPEN, **(NOTHING_KEPT | {"BFF_CACHE_NEGATIVE_TTL": "0"}))
    dice = random.Random(15)
    exp = int(world.clock.wall) + 10**6
    tokens = {
        name: world.token(*read(name), exp=exp) for name in ("chat-1", "chat-2", "chat-closed")
    }
    wrong = []

    async def one(name: str) -> None:
        response = await ask(world, name, tokens[name])
        if response.status != 200 or json.loads(response.body)["externalId"] != name:
            wrong.append((name, response.status))

    await idle(world)
    running = len(asyncio.all_tasks())
    for _ in range(300):
        tasks = [asyncio.create_task(one(dice.choice(list(tokens)))) for _ in range(12)]
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        for task in tasks[:10]:
            task.cancel()
        await asyncio.wait(tasks)
        world.clock.advance(1)
    await idle(world)

    assert wrong == []
    assert len(world.service.gateway.cache.loads) == 0
    assert len(asyncio.all_tasks()) <= running


async def test_15_a_copy_under_a_foreign_key_is_dropped_and_counted(world: World) -> None:
    for name in ("chat-1", "chat-2"):
        await world.get(name)
    kept = world.service.gateway.cache._entries
    kept["default", "chat-1"] = kept["default", "chat-2"]

    response = await world.get("chat-1", "read:sessions")

    assert response.json()["externalId"] == "chat-1"
    assert "bff_mismatched_copies_total 1.0" in (await world.ops.get("/metrics")).text


async def test_13_answer_with_another_session_is_refused(world: World) -> None:
    """The only way out checks the copy itself, even if the code before it were wrong."""
    await world.get("chat-2")
    gateway = world.service.gateway
    copy = gateway.cache.find("default", "chat-2", world.clock.now)
    assert isinstance(copy, Copy)
    caller = gateway.config.verifier.verify(world.token(*read("chat-1")).encode(), world.clock.wall)
    assert isinstance(caller, Caller)
    head = RequestHead.read("GET", PATH.encode() + b"chat-1", b"", [], "192.0.2.1")

    with pytest.raises(Refused, match="unauthorized"):
        gateway.answers.session(
            RequestContext(head, b"id", *world.clock(), None), caller, copy, HIT
        )


async def test_16_each_waiter_of_a_load_is_decided_on_individually(
    world: World, kind: Kind
) -> None:
    await world.start(**kind.settings, **WIDE_OPEN)
    exp = int(world.clock.wall) + 10_000
    entitled = [kind.token(world, *read(id_), exp=exp) for id_ in ("chat-1", FRIENDLY["chat-1"])]
    alias = kind.token(world, *read(FRIENDLY["chat-2"]), exp=exp)

    for leader_first in (True, False):
        tokens = [*entitled, alias] if leader_first else [alias, *entitled]
        responses = await asyncio.gather(*(world.get("chat-1", token=t) for t in tokens))
        statuses = [r.status_code for r in responses]
        assert statuses == ([200, 200, 403] if leader_first else [403, 200, 200])
        assert all("chat-1" not in r.text for r in responses if r.status_code == 403)
        world.clock.advance(100)
    assert world.calls == (6 if kind.name == "upstream" else 4), (
        "first one for each id that is named, then one for all, or one for each token"
    )


async def test_16_each_waiter_of_a_list_is_decided_on_individually(
    of_kind: World, kind: Kind
) -> None:
    tokens = [
        kind.token(of_kind, *read("chat-1", "chat-2"), jti="one"),
        kind.token(of_kind, *read("chat-1"), jti="two"),
        kind.token(of_kind, "read:runs:chat-1", jti="three"),
        kind.token(of_kind, *read("chat-1", "chat-2"), jti="four", forged=True),
    ]

    responses = await asyncio.gather(
        *(
            of_kind.browser.get("/api/v1/sessions", headers={"authorization": f"Bearer {token}"})
            for token in tokens
        )
    )

    # Upstream verifies a token about a session, so a token without one is never verified.
    without = 403 if kind.name == "upstream" else 200
    assert [response.status_code for response in responses] == [200, 200, without, 401]
    shown = [
        [one["externalId"] for one in response.json()["data"]]
        for response in responses
        if response.status_code == 200
    ]
    assert shown == [["chat-1", "chat-2"], ["chat-1"], []][: len(shown)]


_GOOD = session(1, "chat-1")
_TEXT = json.dumps(_GOOD)


def _without(*names: str) -> dict[str, object]:
    return {name: value for name, value in _GOOD.items() if name not in names}


_BAD: dict[str, bytes] = {
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "206": answer_bytes(_TEXT.encode(), "206 Partial Content", "Content-Range: bytes 0-1/2"),
    "201": answer_bytes(_TEXT.encode(), "201 Created"),
    "203": answer_bytes(_TEXT.encode(), "203 Non-Authoritative Information"),
    "HTML": answer_bytes(b"<!doctype html><title>Log in</title>"),
    "empty": answer_bytes(b""),
    "truncated": answer_bytes(_TEXT.encode())[:-40],
    "longer than announced": answer_bytes(_TEXT.encode()).replace(b"Length: ", b"Length: 1"),
    "truncated JSON": answer_bytes(_TEXT[:-40].encode()),
    "2 MiB": answer_bytes(
        json.dumps(_GOOD | {"metadata": {"pad": "x" * 2 * 1024 * 1024}}).encode()
    ),
    "2 MiB in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"10000\r\n%b\r\n" % (b" " * 65536) * 32
    + b"0\r\n\r\n",
    "wrong id": answer_bytes(json.dumps(session(2, "chat-2")).encode()),
    "wrong externalId": answer_bytes(json.dumps(_GOOD | {"externalId": "chat-2"}).encode()),
    "a list": answer_bytes(json.dumps([_GOOD]).encode()),
    "list envelope": answer_bytes(json.dumps({"data": [_GOOD], "pagination": {}}).encode()),
    "duplicate keys": answer_bytes((_TEXT[:-1] + ',"externalId":"chat-1"}').encode()),
    "duplicate keys below": answer_bytes(
        _TEXT.replace('"metadata": {', '"metadata": {"plan": "x", ').encode()
    ),
    "deep nesting": answer_bytes(
        (_TEXT[:-1] + ',"deep":' + "[" * 50_000 + "]" * 50_000 + "}").encode()
    ),
    "65 levels": answer_bytes((_TEXT[:-1] + ',"deep":' + "[" * 65 + "]" * 65 + "}").encode()),
    "NaN": answer_bytes((_TEXT[:-1] + ',"n":NaN}').encode()),
    "lone surrogate": answer_bytes((_TEXT.replace('"my-chat"', '"\\ud800"')).encode()),
    "not UTF-8": answer_bytes(_TEXT.encode().replace(b"my-chat", b"\xff\xfe")),
    "gzip": answer_bytes(_TEXT.encode(), "200 OK", "Content-Encoding: gzip"),
    **{
        f"{name} is {value!r}": answer_bytes(json.dumps(_GOOD | {name: value}).encode())
        for name, value in [
            *(("id", None), ("id", 1), ("id", "run_1"), ("type", None)),
            *(("tags", "a"), ("tags", [1]), ("tags", None)),
            *(("metadata", "x"), ("metadata", []), ("closedAt", 0), ("closedAt", "")),
            *(("createdAt", None), ("createdAt", "yesterday")),
            *(("updatedAt", "2026-02-30T00:00:00Z"), ("expiresAt", True)),
            *(("triggerConfig", None), ("triggerConfig", [])),
        ]
    },
    **{
        f"no {name}": answer_bytes(json.dumps(_without(name)).encode())
        for name in _GOOD
        if name not in ("triggerConfig", "currentRunId")
    },
}


@pytest.fixture(scope="module")
def doubtful(lane: dict[str, str]) -> Iterator[tuple[Any, Gateway]]:
    """A gateway, and an upstream that answers with the bytes that a test sets."""

    def behave(connection, head: bytes) -> None:
        connection.sendall(
            up.answer if requested_id(head) == "chat-1" else answer_bytes(b"{}", "404 Nope")
        )
        raise OSError("one answer a connection: some of them do not end")

    up: Any = RawUpstream(behave)
    with up, Gateway(up.port, **WIDE_OPEN, **lane) as gateway:
        yield up, gateway


@pytest.mark.parametrize("answer", _BAD.values(), ids=_BAD)
def test_18_a_bad_success_is_neither_kept_nor_passed_on(
    doubtful: tuple[Any, Gateway], answer: bytes
) -> None:
    up, gateway = doubtful
    data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
    up.answer = answer
    before = len(up.seen)

    bad = [talk(gateway.port, data).responses[0]]
    time.sleep(0.05)  # the gateway must see the end of that connection before its next load
    bad.append(talk(gateway.port, data).responses[0])

    for response in bad:
        assert response.status == 502
        assert json.loads(response.body)["code"] in ("upstream_invalid", "upstream_unavailable")
        assert b"chat" not in response.body
    assert len(up.seen) - before == 2, "the gateway kept nothing"


async def test_18_a_bad_success_does_not_replace_a_good_copy(world: World) -> None:
    good = await world.get("chat-1")
    for body in ({}, "<html>", session(2, "chat-2"), _GOOD | {"tags": None}):
        world.clock.advance(9)
        world.answer(200, body)
        response = await world.get("chat-1")
        assert (response.status_code, response.content) == (200, good.content)


async def test_19_stale_bytes_equal_the_fresh_ones(world: World) -> None:
    await world.start(BFF_EXPOSE_METADATA="*", BFF_EXPOSE_TAGS="*")
    world.upstream.environments[0].find("chat-1")["metadata"] = {"ü": ["☃", "\x00", "😀" * 500]}
    fresh = await world.get("chat-1")
    world.answer(500)
    stale = {}
    for seconds in (1, 2, 20, 30):
        world.clock.advance(seconds)
        stale[seconds] = await world.get("chat-1")
        await world.settle()

    statuses = {seconds: response.headers["cache-status"] for seconds, response in stale.items()}
    assert statuses[1] == "bff; hit"
    assert "detail=stale" in statuses[2]
    assert "stale-if-error" in statuses[20]
    for response in stale.values():
        assert response.content == fresh.content
        for name in ("etag", "content-length", "content-type", "cache-control", "vary"):
            assert response.headers[name] == fresh.headers[name]


async def test_30_thousands_of_upstream_failures_leave_nothing_behind(world: World) -> None:
    await world.start(**WIDE_OPEN, **NOTHING_KEPT)
    token = world.token("read:sessions", exp=int(world.clock.wall) + 10**6)
    await ask(world, "chat-1", token)
    tasks, files = len(asyncio.all_tasks()), descriptors()
    statuses: dict[int, int] = {}

    for number in range(2_500):
        if number % 3 == 0:
            world.answer((0, 500, 429, 401, 200, 302)[number // 3 % 6], {"error": "flap"})
        response = await ask(world, ("chat-1", "chat-2", "nope")[number % 3], token)
        statuses[response.status] = statuses.get(response.status, 0) + 1
        world.clock.advance(1)
    await idle(world)

    assert set(statuses) == {200, 404, 502, 503}
    assert min(statuses.values()) > 125
    assert len(asyncio.all_tasks()) == tasks
    assert descriptors() <= files + 1
    gateway = world.service.gateway
    assert (len(gateway.cache.loads), len(world.service._tasks)) == (0, 0)
    world.answer(0)
    world.clock.advance(60)
    assert (await ask(world, "chat-1", token)).status == 200


async def test_34_no_load_starts_before_the_reset_of_a_429(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(3)
    reset = str(int((world.clock.wall + 20) * 1000))
    world.answer(
        429,
        {"error": "limited"},
        x_ratelimit_limit="750",
        x_ratelimit_remaining="0",
        x_ratelimit_reset=reset,
    )
    cold = await world.get("chat-2")
    assert (cold.status_code, cold.json()["code"]) == (503, "over_budget")
    assert 1 <= int(cold.headers["retry-after"]) <= 20
    seen = world.calls

    for _ in range(19):
        world.clock.advance(1)
        other = await world.get("chat-1")
        assert (other.status_code, other.json()["externalId"]) == (200, "chat-1")
        still = await world.get("chat-2")
        assert (still.status_code, still.headers["x-should-retry"]) == (503, "false")

    assert world.calls == seen, "no load before the reset"
    world.answer(0)
    world.clock.advance(1.01)
    assert (await world.get("chat-2")).status_code == 200


@pytest.mark.parametrize("quota_before", [True, False])
async def test_34_a_429_lasts_as_long_whatever_was_loaded_before(
    world: World, quota_before: bool
) -> None:
    """An earlier answer showed a later reset than the 429 does."""

    def quota(remaining: str, seconds: float) -> dict[str, str]:
        reset = str(int((world.clock.wall + seconds) * 1000))
        names = ("x_ratelimit_limit", "x_ratelimit_remaining", "x_ratelimit_reset")
        return dict(zip(names, ("750", remaining, reset), strict=True))

    if quota_before:
        world.answer(200, session(1, "chat-1"), **quota("749", 40))
        assert (await world.get("chat-1")).status_code == 200
    world.answer(429, {"error": "limited"}, **quota("0", 20))

    assert (await world.get("chat-2")).headers["retry-after"] == "20"


@pytest.mark.parametrize("reset", ["9" * 15, "9" * 17, "-1", "soon", "0", "9" * 400, ""])
@pytest.mark.parametrize("status", [200, 429])
async def test_34_an_absurd_reset_stops_loads_for_a_minute_at_most(
    world: World, status: int, reset: str
) -> None:
    quota = {"x_ratelimit_limit": "1", "x_ratelimit_remaining": "0", "x_ratelimit_reset": reset}
    world.answer(status, session(1, "chat-1") if status == 200 else {}, **quota)
    assert (await world.get("chat-1")).status_code == (200 if status == 200 else 503)
    world.answer(0)

    world.clock.advance(61)

    assert (await world.get("chat-2")).status_code == 200


async def test_36_a_valid_token_causes_no_more_lookups_than_bad_tokens(
    world: World, kind: Kind
) -> None:
    wide = WIDE_OPEN | {"BFF_BAD_TOKEN_LIMIT": "60/minute"}
    await world.start(**kind.settings, **wide)
    token = kind.token(world, *read(FRIENDLY["chat-1"]))
    statuses, own = set(), set()

    for number in range(1_000):
        statuses.add((await ask(world, f"made-up-{number}", token)).status)
        if number % 50 == 0:
            own.add((await ask(world, FRIENDLY["chat-1"], token)).status)

    assert statuses == {403}
    assert own == {200}
    assert world.calls == 1, "the caller's own session"
    assert told(await ask(world, "made-up-1", token))["cache-control"] == "no-store"


def test_19_an_answer_uses_the_bytes_of_the_copy() -> None:
    """The loader makes the bytes of a body once, and nothing else makes any."""
    assert "body" in Copy.__slots__

"""Tokens that only upstream can verify: calls, results, and secrets that stay hidden."""

import asyncio
import random
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import hostile as heart
from support.kinds import KINDS, Kind
from support.replicas import until
from support.world import (
    ENVIRONMENT_ID,
    FRIENDLY,
    OFF,
    ORIGIN,
    OWN_KEY,
    PATH,
    ROOT_KEY,
    SECRET_KEY,
    Clock,
    World,
    claims,
    read,
    sign,
)

from bff.demo.upstream import Answer, Environment, can_read, session
from bff.gateway.introspection import MAX_IN_FLIGHT, MAX_OF_CALLER
from bff.request import RequestHead
from bff.response import Response

FOREIGN_KEY = "tr_prod_FOREIGNkeysentinel00000001"
OPAQUE: dict[str, str | None] = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}


@pytest.fixture
async def opaque(clock: Clock) -> AsyncIterator[World]:
    """A gateway with a restricted additional key only; upstream verifies tokens."""
    async with World(clock, **OPAQUE) as world:
        yield world


def minted(world: World, *scopes: object, key: str = ROOT_KEY, **changes: Any) -> str:
    return sign(claims(world.clock.wall, *scopes, **changes), key)


async def ask(world: World, token: str, id_: str = "chat-1", **headers: str) -> tuple[int, str]:
    response = await world.get(id_, token=token, **headers)
    return response.status_code, response.json().get("code", "") if response.content else ""


def senders(world: World) -> list[str]:
    """The credential of each call that upstream saw: the secret key or a token."""
    keys = [seen.header("authorization") for seen in world.upstream.seen]
    return ["key" if key == f"Bearer {SECRET_KEY}" else "token" for key in keys]


async def test_the_load_itself_is_the_test_and_later_loads_use_the_key(opaque: World) -> None:
    token = minted(opaque, *read("chat-1"))

    first = await opaque.get("chat-1", token=token)
    assert first.status_code == 200
    assert "triggerConfig" not in first.json()
    assert first.headers["cache-status"] == "bff; fwd=miss; stored"
    (seen,) = opaque.upstream.seen
    assert seen.header("authorization") == f"Bearer {token}"
    assert seen.header("x-trigger-branch") is None

    assert (await opaque.get("chat-1", token=token)).headers["cache-status"] == "bff; hit"
    assert (await ask(opaque, token, FRIENDLY["chat-1"]))[0] == 200, "either id has the verdict"
    opaque.clock.advance(10)
    assert (await opaque.get("chat-1", token=token)).headers["cache-status"].startswith("bff; fwd")
    assert senders(opaque) == ["token", "key"]


@pytest.mark.parametrize("name", KINDS)
async def test_hit_needs_no_wait_and_no_signature_check(
    clock: Clock, tmp_path: Path, name: str
) -> None:
    kind = Kind(name, tmp_path)
    async with World(clock, **kind.settings, BFF_CACHE_TTL="600") as world:
        token = kind.token(world, *read("chat-1"))
        first = await heart.ask(world, "chat-1", token)
        gateway, checks = world.service.gateway, []
        gateway.config.verifier._check = lambda *told: checks.append(told)
        head = [(b"authorization", b"Bearer " + token.encode())]
        hits = [
            gateway.decide(RequestHead.read("GET", path, b"", head, "192.0.2.1"), *clock())
            for path in (PATH.encode() + b"chat-1", PATH.encode() + FRIENDLY["chat-1"].encode())
        ]

    assert first.status == 200
    assert [(type(hit), hit.status, hit.body) for hit in hits] == [(Response, 200, first.body)] * 2
    assert checks == []


async def test_shared_copy_waits_for_the_introspection(
    opaque: World,
) -> None:
    mine, forged = minted(opaque, *read("chat-1")), minted(opaque, *read("chat-1"), key=OWN_KEY)
    assert (await ask(opaque, mine))[0] == 200

    assert await ask(opaque, forged) == (401, "token_invalid")
    assert await ask(opaque, minted(opaque, *read("chat-1"), jti="2")) == (200, "")
    assert senders(opaque) == ["token"] * 3


async def test_one_introspection_serves_all_requests(opaque: World) -> None:
    await opaque.start(**OFF, **OPAQUE, BFF_CACHE_TTL="600")
    token = minted(opaque, *read("chat-1", "chat-2"))

    for _ in range(10):
        at_once = [ask(opaque, token, id_) for id_ in ("chat-1", "chat-2") for _ in range(20)]
        assert {status for status, _ in await asyncio.gather(*at_once)} == {200}
        opaque.clock.advance(6)
    assert senders(opaque) == ["token", "token"]

    assert (await ask(opaque, token))[0] == 200
    assert senders(opaque) == ["token"] * 3, "after a minute, once more"


async def test_withdrawn_token_is_refused_within_a_minute(opaque: World) -> None:
    token = minted(opaque, *read("chat-1"))
    assert (await ask(opaque, token))[0] == 200
    opaque.upstream.environments[0].root_key = "tr_prod_rotated00000000000000000001"

    opaque.clock.advance(59)
    assert (await ask(opaque, token))[0] == 200
    opaque.clock.advance(1)

    assert await ask(opaque, token) == (401, "token_invalid")


async def test_introspection_ends_with_the_token(opaque: World) -> None:
    token = minted(opaque, *read("chat-1"), exp=int(opaque.clock.wall) + 20)
    assert (await ask(opaque, token))[0] == 200

    opaque.clock.advance(20)

    assert await ask(opaque, token) == (401, "token_expired")
    assert senders(opaque) == ["token"]


async def test_a_refusal_is_kept_for_five_seconds(opaque: World) -> None:
    await opaque.start(**OFF, **OPAQUE)
    forged = minted(opaque, *read("chat-1", "chat-2"), key=OWN_KEY)

    for _ in range(20):
        assert await ask(opaque, forged) == (401, "token_invalid")
        assert await ask(opaque, forged, "chat-2") == (401, "token_invalid"), "whatever it asks for"
    assert opaque.calls == 1
    opaque.clock.advance(5)
    await ask(opaque, forged)
    assert opaque.calls == 2

    missing = minted(opaque, *read("nope"))
    for _ in range(5):
        assert await ask(opaque, missing, "nope") == (404, "not_found")
    assert opaque.calls == 3
    opaque.clock.advance(5)
    opaque.upstream.environments[0].add(session(9, "nope"))
    assert (await ask(opaque, missing, "nope"))[0] == 200


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "upstream_unavailable"),
        (503, "upstream_unavailable"),
        (302, "upstream_invalid"),
        (204, "upstream_invalid"),
        (429, "over_budget"),
    ],
)
async def test_undecided_answer_grants_nothing_for_a_while(
    opaque: World, status: int, code: str
) -> None:
    token, other = minted(opaque, *read("chat-1")), minted(opaque, *read("chat-1"), jti="2")
    assert (await ask(opaque, other))[0] == 200
    opaque.answer(status, {"error": "x"}, location="https://evil.example.com/")

    assert [await ask(opaque, token) for _ in range(5)] == [
        (503 if status == 429 else 502, code)
    ] * 5
    assert opaque.calls == 2
    assert (await ask(opaque, other))[0] == 200, "who has a verdict is served from the copy"
    assert opaque.service.gateway.config.environments["default"].health is None
    opaque.answer(0)
    opaque.clock.advance(1)
    assert (await ask(opaque, token))[0] == 200


async def test_upstreams_limit_on_one_token_stops_that_token_alone(opaque: World) -> None:
    token, other = minted(opaque, *read("chat-1")), minted(opaque, *read("chat-1"), jti="2")

    async def limited(seen) -> Answer | None:
        if seen.header("authorization") != f"Bearer {token}":
            return None
        return Answer(429, {"error": "slow down"}, {"retry-after": "30", **LIMIT})

    opaque.upstream.override = limited
    response = await opaque.get("chat-1", token=token)
    assert (response.status_code, response.headers["retry-after"]) == (503, "30")
    opaque.clock.advance(10)
    again = await opaque.get("chat-1", token=token)
    assert (again.status_code, again.headers["retry-after"]) == (503, "20")
    assert opaque.calls == 1
    assert (await ask(opaque, other))[0] == 200
    budget = opaque.service.gateway.config.environments["default"].budget
    assert budget.wait(opaque.clock.now) == 0, "the key's bucket is another"
    assert budget.left(opaque.clock.now) == 10


@pytest.mark.parametrize("revoked", [True, False])
async def test_forged_token_does_not_learn_what_is_revoked(opaque: World, revoked: bool) -> None:
    """While upstream is in trouble, nothing shows that the token is forged."""
    token = minted(opaque, *read("chat-1"))
    opaque.clock.advance(1)
    if revoked:
        await opaque.ops.post("/revocations", json={"session": "chat-1"})
    opaque.answer(429, {"error": "limited"})

    response = await opaque.get("chat-1", token=token)

    assert (response.status_code, response.json()["code"]) == (503, "over_budget")


async def test_the_sixty_a_minute_of_a_token_upstream_are_respected(opaque: World) -> None:
    """Upstream's own 429 has no Retry-After: its reset is in Unix milliseconds."""
    await opaque.start(**OFF, **OPAQUE)
    opaque.clock.advance(-opaque.clock.wall % 60)  # its window begins
    names = [f"many-{number}" for number in range(70)]
    for number, name in enumerate(names, start=500):
        opaque.upstream.environments[0].add(session(number, name))
    token = minted(opaque, *read(*names))

    statuses = [(await ask(opaque, token, name))[0] for name in names]
    assert statuses == [200] * 60 + [503] * 10
    assert opaque.calls == 61
    opaque.clock.advance(20)
    response = await opaque.get(names[-1], token=token)
    assert (response.status_code, response.json()["code"]) == (503, "over_budget")
    assert response.headers["retry-after"] == "40"
    assert opaque.calls == 61, "not asked before its reset"
    assert (await ask(opaque, token, names[0]))[0] == 200, "what it may read already goes on"
    opaque.clock.advance(40)
    assert (await ask(opaque, token, names[-1]))[0] == 200


LIMIT = {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}


# -- what nobody learns, and nobody may cause


async def test_token_of_another_customer_fills_no_copy(opaque: World) -> None:
    """Upstream accepts their token, and has a session of the same name for it."""
    theirs = Environment("env_theirs", FOREIGN_KEY)
    theirs.add(session(66, "chat-1", taskIdentifier="theirs"))
    opaque.upstream.environments = (*opaque.upstream.environments, theirs)
    token = minted(opaque, "read:sessions", sub="env_theirs", key=FOREIGN_KEY)
    assert (await opaque.browser.get("/healthz")).status_code == 200

    assert await ask(opaque, token) == (401, "token_invalid")
    assert opaque.calls == 0
    mine = await opaque.get("chat-1", token=minted(opaque, *read("chat-1")))
    assert mine.json()["taskIdentifier"] == "my-chat"
    assert await ask(opaque, minted(opaque, *read("chat-1"), key=FOREIGN_KEY)) == (
        401,
        "token_invalid",
    )


async def test_without_the_environments_id_nothing_is_put_to_the_test(opaque: World) -> None:
    opaque.answer(404, {"error": "Not found"})  # an upstream that does not tell the id
    await opaque.start(**OPAQUE, BFF_ENVIRONMENT_ID=None)
    token = minted(opaque, *read("chat-1"))

    assert await ask(opaque, token) == (503, "not_ready")
    ready = await opaque.ops.get("/readyz")
    assert ready.status_code == 503
    assert "set BFF_ENVIRONMENT_ID" in ready.json()["environments"]["default"]["reason"]
    assert "token" not in senders(opaque)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exp": None}, "token_invalid"),
        ({"exp": 1_800_000_000}, "token_expired"),
        ({"nbf": 1_800_000_061}, "token_invalid"),
        ({"iss": "https://evil.example"}, "token_invalid"),
        ({"aud": "x"}, "token_invalid"),
        ({"pub": False}, "token_invalid"),
        ({"sub": "env_other"}, "token_invalid"),
        ({"sub": None}, "token_invalid"),
    ],
    ids=repr,
)
async def test_claims_alone_can_refuse_a_token(
    opaque: World, change: dict[str, Any], code: str
) -> None:
    token = minted(opaque, *read("chat-1"), **change)

    assert await ask(opaque, token) == (401, code)
    assert opaque.calls == 0


@pytest.mark.parametrize(
    "header", [{"alg": "HS384"}, {"alg": "HS512"}, {"crit": ["x"], "x": 1}], ids=repr
)
async def test_algorithms_that_upstream_takes_and_we_do_not(
    opaque: World, header: dict[str, Any]
) -> None:
    payload, algorithm = claims(opaque.clock.wall, *read("chat-1")), header.get("alg", "HS256")
    with warnings.catch_warnings(action="ignore"):  # the key is short for two of them
        token = sign(payload, ROOT_KEY, algorithm=algorithm, headers=header)

    assert await ask(opaque, token) == (401, "token_invalid")
    assert opaque.calls == 0


async def test_secret_key_is_refused_and_not_forwarded(opaque: World) -> None:
    assert await ask(opaque, "tr_prod_sk_whatever") == (401, "secret_key_sent")
    assert opaque.calls == 0


ANSWERS = {
    "as usual": (0, None),
    "404": (404, {"error": "Not found"}),
    "403": (403, {"error": "Unauthorized"}),
    "429": (429, {"error": "slow down"}),
    "500": (500, {"error": "down"}),
    "302": (302, {}),
    "HTML": (200, b"<html>"),
    "another session": (200, session(2, "chat-2")),
    "what was asked for": (200, session(7, "made-up")),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("verified", [True, False], ids=["known token", "new token"])
async def test_wrong_alias_gets_identical_bytes(opaque: World, verified: bool, answer: str) -> None:
    """Whether the id exists and has a copy, or not; upstream sees the named id alone."""
    await opaque.get("chat-1", token=minted(opaque, *read("chat-1")))
    shown, paths = [], set()
    for number, asked in enumerate(("chat-1", "chat-closed", "no-such-chat", "made-up")):
        token = minted(opaque, *read(FRIENDLY["chat-2"]), jti=str(number))
        opaque.answer(0)
        if verified:
            assert (await ask(opaque, token, FRIENDLY["chat-2"]))[0] == 200
        opaque.service.gateway.cache.clear(loads=False)
        opaque.service.gateway.loader.pairs.forget()
        opaque.answer(*ANSWERS[answer])
        before, calls = bad_tokens(opaque), opaque.calls
        responses = [await opaque.get(asked, token=token) for _ in range(2)]
        headers = [dict(r.headers) | {"x-request-id": "one"} for r in responses]
        seen = [(r.status_code, r.content) for r in responses]
        shown.append((seen, headers, bad_tokens(opaque) - before))
        paths |= {seen.raw_path for seen in opaque.upstream.seen[calls:]}
        opaque.clock.advance(2)

    assert all(one == shown[0] for one in shown)
    statuses = {status for (status, _) in shown[0][0]}
    assert statuses <= ({403} if answer == "as usual" else {403, 502, 503})
    assert paths == {PATH + FRIENDLY["chat-2"]}
    opaque.answer(0)
    opaque.clock.advance(60)
    assert (await ask(opaque, token, "chat-2"))[0] == 200, "an alias that is one"


def bad_tokens(world: World) -> int:
    """How many bad tokens were charged to addresses."""
    windows = world.service.gateway.config.limits.bad_token._windows.values()
    return sum(window.used for window in windows)


async def test_guessed_ids_cost_upstream_nothing(opaque: World) -> None:
    await opaque.start(BFF_RATE_LIMIT="off", BFF_UPSTREAM_BUDGET="off", **OPAQUE)
    token = minted(opaque, *read(FRIENDLY["chat-1"]))

    statuses = {(await ask(opaque, token, f"made-up-{n}"))[0] for n in range(300)}

    assert statuses == {403}
    assert opaque.calls == 1, "the named session, once"
    assert (await ask(opaque, token, FRIENDLY["chat-1"]))[0] == 200
    assert bad_tokens(opaque) == 0


@pytest.mark.parametrize("addresses", [1, 20])
async def test_flood_of_invented_tokens_never_reaches_upstream(
    opaque: World, addresses: int
) -> None:
    await opaque.start(**OPAQUE, BFF_IP_RATE_LIMIT="off")
    mine = minted(opaque, *read("chat-1"))
    assert (await ask(opaque, mine))[0] == 200
    template = minted(opaque, *read("chat-1"), key=OWN_KEY).rpartition(".")[0]
    statuses: set[int] = set()
    most = 0

    async def invent(number: int) -> None:
        nonlocal most
        token = f"{template}.{number:043}"
        peer = f"198.51.100.{number % addresses}"
        most = max(most, len(opaque.service.gateway._introspector._in_flight._tasks))
        response = await heart.ask(opaque, "chat-1", token, peer=peer)
        statuses.add(response.status)

    for first in range(0, 10_000, 100):
        await asyncio.gather(*(invent(number) for number in range(first, first + 100)))

    assert opaque.calls - 1 == addresses * 60, "its limit, and no more"
    assert statuses <= {401, 429, 503}
    assert most <= 50
    assert (await ask(opaque, mine))[0] == 200, "who has a verdict is not harmed"
    introspections = opaque.service.gateway.introspections
    assert len(introspections) == 2
    assert len(opaque.service.gateway.config.verifier) == 1, "only verified tokens are remembered"


async def test_good_tokens_cost_their_address_no_bad_one(opaque: World) -> None:
    await opaque.start(**OPAQUE, BFF_BAD_TOKEN_LIMIT="1/minute")

    for number in range(5):
        token = minted(opaque, *read("chat-1"), jti=str(number))
        assert (await ask(opaque, token))[0] == 200
    missing = minted(opaque, *read("nope"))
    assert (await ask(opaque, missing, "nope"))[0] == 404
    forged = minted(opaque, *read("chat-1"), key=OWN_KEY)
    assert (await ask(opaque, forged))[0] == 401

    assert await ask(opaque, minted(opaque, *read("chat-1"), jti="x")) == (429, "rate_limited")


async def test_leaving_browser_refunds_its_bad_token_charge(opaque: World) -> None:
    await opaque.start(**OPAQUE, BFF_BAD_TOKEN_LIMIT="2/minute")
    gate = asyncio.Event()

    async def slow(_) -> None:
        await gate.wait()

    opaque.upstream.override = slow
    for number in range(2):
        token = minted(opaque, *read("chat-1"), jti=str(number))
        leaver = asyncio.create_task(ask(opaque, token))
        await asyncio.sleep(0.01)
        leaver.cancel()
    gate.set()
    await asyncio.sleep(0.01)

    assert (await ask(opaque, minted(opaque, *read("chat-1"))))[0] == 200


async def test_an_outage_counts_nobody_as_bad_who_was_known_before(opaque: World) -> None:
    await opaque.start(**OPAQUE, BFF_BAD_TOKEN_LIMIT="2/minute")
    token = minted(opaque, *read("chat-1"))
    assert (await ask(opaque, token))[0] == 200
    opaque.clock.advance(60)
    opaque.answer(500, {"error": "down"})
    for _ in range(10):
        assert (await ask(opaque, token))[0] == 502
        opaque.clock.advance(1)
    opaque.answer(0)

    assert (await ask(opaque, token))[0] == 200
    opaque.upstream.environments[0].root_key = "tr_prod_rotated00000000000000000001"
    opaque.clock.advance(60)
    statuses = []
    for _ in range(4):
        statuses.append((await ask(opaque, token))[0])
        opaque.clock.advance(5)
    assert statuses == [401, 401, 429, 429], "until upstream takes it back"


async def test_limits_count_the_verified_subject_and_scopes(opaque: World) -> None:
    await opaque.start(**OPAQUE, BFF_RATE_LIMIT="3/minute")

    async def status(actor: str, jti: str) -> int:
        token = minted(opaque, *read("chat-1"), act={"sub": actor}, jti=jti)
        return (await ask(opaque, token))[0]

    assert [await status("ann", str(n)) for n in range(4)] == [200, 200, 200, 429]
    assert await status("bob", "1") == 200


async def test_a_leaving_browser_cancels_no_test(opaque: World) -> None:
    gate = asyncio.Event()

    async def slow(_) -> None:
        await gate.wait()

    opaque.upstream.override = slow
    token = minted(opaque, *read("chat-1"))
    leaver = asyncio.create_task(ask(opaque, token))
    await asyncio.sleep(0.01)
    stayer = asyncio.create_task(ask(opaque, token))
    await asyncio.sleep(0.01)
    leaver.cancel()
    await asyncio.sleep(0.01)
    gate.set()

    assert (await stayer)[0] == 200
    assert opaque.calls == 1


async def test_an_older_answer_does_not_replace_a_newer_one(opaque: World) -> None:
    gate = asyncio.Event()
    slow = minted(opaque, *read("chat-1"), jti="slow")
    old = opaque.upstream.document(opaque.upstream.environments[0].find("chat-1") or {})

    async def override(seen) -> Answer | None:
        if seen.header("authorization") == f"Bearer {slow}":
            await gate.wait()
            return Answer(200, old)
        return None

    opaque.upstream.override = override
    waiting = asyncio.create_task(ask(opaque, slow))
    await asyncio.sleep(0.01)
    opaque.clock.advance(1)
    opaque.upstream.environments[0].find("chat-1")["currentRunId"] = "run_newer"
    quick = minted(opaque, *read("chat-1"), jti="quick")
    assert (await ask(opaque, quick))[0] == 200
    gate.set()
    assert (await waiting)[0] == 200

    kept = await opaque.get("chat-1", token=quick)
    assert kept.json()["currentRunId"] == "run_newer"


async def test_local_first_then_upstream(clock: Clock) -> None:
    async with World(clock, BFF_VERIFY="local,upstream") as world:
        assert (await ask(world, minted(world, *read("chat-1"), key=OWN_KEY)))[0] == 200
        assert (await ask(world, minted(world, *read("chat-1"))))[0] == 200
        assert (await ask(world, minted(world, *read("chat-1"), key=FOREIGN_KEY)))[0] == 401
        assert senders(world) == ["key", "token", "token"]

        await world.start(BFF_VERIFY="local")
        assert (await ask(world, minted(world, *read("chat-1"))))[0] == 401
        assert len(senders(world)) == 3


async def test_thousands_of_random_tokens_decide_as_upstream_does(opaque: World) -> None:
    await opaque.start(**OFF, **OPAQUE)
    chooser = random.Random(11)
    documents = list(opaque.upstream.environments[0].sessions.values())
    ids = [id_ for d in documents for id_ in (d["id"], d["externalId"]) if id_]
    granted = 0
    for number in range(600):
        chosen = [
            ":".join([chooser.choice(["read", "write", "*"]), "sessions", chooser.choice(ids)])
            for _ in range(chooser.randrange(4))
        ]
        key = chooser.choice([ROOT_KEY, ROOT_KEY, ROOT_KEY, OWN_KEY])
        document = chooser.choice(documents)
        asked = chooser.choice([id_ for id_ in (document["id"], document["externalId"]) if id_])
        expected = key == ROOT_KEY and can_read(tuple(chosen), document)
        granted += expected

        status, _ = await ask(opaque, minted(opaque, *chosen, key=key, jti=str(number)), asked)

        assert (status == 200) is expected, (asked, chosen, key)
        assert status in (200, 401, 403)
    assert 50 < granted < 550


async def test_nothing_of_a_token_is_logged_or_shown(opaque: World) -> None:
    tokens = [
        minted(opaque, *read("chat-1"), key=key, jti="sentinel") for key in (ROOT_KEY, OWN_KEY)
    ]
    for token in tokens:
        await ask(opaque, token)
    metrics = (await opaque.ops.get("/metrics")).text

    for token in tokens:
        for text in (
            opaque.log.getvalue(),
            metrics,
            repr(vars(opaque.service.gateway.introspections)),
        ):
            assert token not in text
            assert token.rpartition(".")[2] not in text
    assert 'bff_token_tests_total{outcome="ok"} 1.0' in metrics
    assert 'bff_token_tests_total{outcome="token_invalid"} 1.0' in metrics
    assert 'bff_bad_tokens_total{reason="token_invalid"} 1.0' in metrics


# -- a list, and change without restart


async def listed(world: World, token: str) -> tuple[int, list[str], list[str]]:
    headers = {"authorization": f"Bearer {token}", "origin": ORIGIN}
    response = await world.browser.get(PATH.rstrip("/"), headers=headers)
    body = response.json()
    if response.status_code != 200:
        return response.status_code, [], [body["code"]]
    return (
        200,
        [one["externalId"] for one in body["data"]],
        [one["code"] for one in body.get("unavailable", [])],
    )


async def test_a_list_tests_the_token_once_and_then_each_session(opaque: World) -> None:
    await opaque.start(**OPAQUE, BFF_BAD_TOKEN_LIMIT="1/minute", BFF_RATE_LIMIT="2/minute")
    token = minted(opaque, *read("chat-1", "chat-2", "chat-closed", "nope"))

    assert await listed(opaque, token) == (200, ["chat-1", "chat-2", "chat-closed"], [])
    assert senders(opaque) == ["token"] * 4
    assert await listed(opaque, token) == (200, ["chat-1", "chat-2", "chat-closed"], [])
    assert senders(opaque) == ["token"] * 4
    assert await listed(opaque, token) == (429, [], ["rate_limited"])


async def test_an_invented_token_costs_one_test_however_much_it_lists(opaque: World) -> None:
    forged = minted(opaque, *read(*(f"chat-{n}" for n in range(50))), key=OWN_KEY)

    assert await listed(opaque, forged) == (401, [], ["token_invalid"])
    assert await listed(opaque, forged) == (401, [], ["token_invalid"])
    assert opaque.calls == 1
    opaque.clock.advance(5)
    opaque.answer(500, {"error": "down"})
    assert await listed(opaque, forged) == (502, [], ["upstream_unavailable"])
    assert opaque.calls == 4, "a failure may concern one session alone, so two more are tried"


async def test_list_charges_no_caller_before_introspection(opaque: World) -> None:
    await opaque.start(**OPAQUE, BFF_RATE_LIMIT="1/minute")
    mine = minted(opaque, *read("chat-1"), act={"sub": "ann"})
    forged = minted(opaque, *read("chat-1"), act={"sub": "ann"}, key=OWN_KEY)

    for _ in range(3):
        assert (await listed(opaque, forged))[0] == 401

    assert (await listed(opaque, mine))[0] == 200
    assert (await listed(opaque, mine))[0] == 429


async def test_revoked_member_is_reported_alone(
    world: World,
) -> None:
    token = world.token(*read("chat-1", "chat-2"))
    world.clock.advance(1)
    await world.ops.post("/revocations", json={"session": "chat-1"})

    for _ in range(2):
        assert await listed(world, token) == (200, ["chat-2"], ["unauthorized"])


async def test_introspections_end_when_keys_change(opaque: World) -> None:
    token = minted(opaque, *read("chat-1"))
    assert (await ask(opaque, token))[0] == 200
    opaque.reload(**OPAQUE, BFF_RATE_LIMIT="200/minute")
    assert (await ask(opaque, token))[0] == 200
    assert opaque.calls == 1, "what has nothing to do with it changes nothing"

    opaque.reload(**OPAQUE, BFF_ENVIRONMENT_ID="env_other")
    assert await ask(opaque, token) == (401, "token_invalid")
    opaque.reload(**OPAQUE, BFF_ENVIRONMENT_ID=ENVIRONMENT_ID)
    assert (await ask(opaque, token))[0] == 200
    assert senders(opaque) == ["token"] * 2
    opaque.reload(BFF_SIGNING_KEYS=OWN_KEY, BFF_VERIFY="local")
    assert await ask(opaque, token) == (401, "token_invalid")


ELSEWHERE = {"TRIGGER_API_URL": "http://127.0.0.1:2"}


async def test_introspection_of_another_upstream_is_ignored(opaque: World) -> None:
    token = minted(opaque, *read("chat-1"))
    assert (await ask(opaque, token))[0] == 200

    opaque.reload(**OPAQUE, **ELSEWHERE)
    await ask(opaque, token)

    assert senders(opaque) == ["token", "token"]


@pytest.mark.parametrize(
    "change",
    [{"BFF_SIGNING_KEYS": OWN_KEY, "BFF_VERIFY": "local"}, {"TRIGGER_API_URL": "http://[::1]:2"}],
    ids=["keys", "place"],
)
async def test_a_test_that_ends_under_other_rules_leaves_nothing(
    opaque: World, change: dict[str, str]
) -> None:
    gate, answers = asyncio.Event(), [session(1, "chat-1")]

    async def slow(_) -> Answer:
        await gate.wait()
        refused = Answer(401, {"error": "Public Access Token is invalid"})
        return Answer(200, answers.pop()) if answers else refused

    opaque.upstream.override = slow
    waiting = asyncio.create_task(ask(opaque, minted(opaque, *read("chat-1"))))
    await asyncio.sleep(0.01)
    opaque.reload(**change)
    gate.set()

    assert await waiting == (401, "token_invalid")
    gateway = opaque.service.gateway
    assert (len(gateway.introspections), len(gateway.config.verifier)) == (0, 0)
    assert len(gateway.cache) == (0 if "TRIGGER_API_URL" in change else 1)


# -- what is kept


@pytest.mark.parametrize(("people", "expected"), [(80, MAX_IN_FLIGHT), (1, MAX_OF_CALLER)])
async def test_introspections_at_once_are_bounded(
    opaque: World, people: int, expected: int
) -> None:
    await opaque.start(**OFF, **OPAQUE)
    gate = asyncio.Event()

    async def slow(_) -> None:
        await gate.wait()

    opaque.upstream.override = slow
    tokens = [
        minted(opaque, *read("chat-1"), jti=str(n), act={"sub": str(n % people)}) for n in range(80)
    ]
    asked = [asyncio.create_task(ask(opaque, token)) for token in tokens]
    await until(lambda: opaque.calls == expected)
    await until(lambda: sum(one.done() for one in asked) == 80 - expected)
    gate.set()
    answers = await asyncio.gather(*asked)

    assert opaque.calls == expected
    assert sorted(set(answers)) == [(200, ""), (503, "over_budget")]


async def test_one_caller_leaves_introspections_to_others(opaque: World) -> None:
    await opaque.start(**OFF, **OPAQUE)
    gate = asyncio.Event()

    async def slow(_) -> None:
        await gate.wait()

    opaque.upstream.override = slow
    many = [minted(opaque, *read("chat-1"), jti=str(n), act={"sub": "ann"}) for n in range(60)]
    of_one = [asyncio.create_task(ask(opaque, token)) for token in many]
    await until(lambda: sum(one.done() for one in of_one) == 60 - MAX_OF_CALLER)
    of_other = asyncio.create_task(ask(opaque, minted(opaque, *read("chat-1"), act={"sub": "bob"})))
    await until(lambda: opaque.calls == MAX_OF_CALLER + 1)
    gate.set()

    assert await of_other == (200, "")
    await asyncio.gather(*of_one)
    assert await ask(opaque, many[-1]) == (200, ""), "the first ones count no more"


async def test_browser_reads_an_answer_for_its_token(opaque: World) -> None:
    response = await opaque.browser.get(
        PATH + "chat-1",
        headers={
            "authorization": f"Bearer {minted(opaque, *read('chat-1'), key=OWN_KEY)}",
            "origin": ORIGIN,
        },
    )

    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["www-authenticate"].startswith(
        'Bearer realm="bff", error="invalid_token"'
    )
    assert ENVIRONMENT_ID not in response.text


@pytest.mark.parametrize("status", [500, 403])
async def test_broken_session_hides_no_other_of_its_token(opaque: World, status: int) -> None:
    """Upstream verifies the token about another named session, in the same request."""
    failing = "broken"

    async def override(seen: Any) -> Answer | None:
        return Answer(status, "<html>") if seen.raw_path.endswith(failing) else None

    opaque.upstream.override = override
    token = minted(opaque, *read("broken", "chat-1"))

    page = await opaque.browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {token}"}
    )
    opaque.clock.advance(120)
    other_id = await opaque.get(FRIENDLY["chat-1"], token=token)

    assert [one["externalId"] for one in page.json()["data"]] == ["chat-1"]
    assert [one["id"] for one in page.json()["unavailable"]] == ["broken"]
    assert other_id.status_code == 200

    failing = ""  # all of them: the prefix of every path
    token = minted(opaque, *read(*(f"chat-{n}" for n in range(9))))
    before = opaque.calls
    page = await opaque.browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {token}"}
    )
    assert page.status_code == 502
    assert opaque.calls - before == 3, "the number of calls is bounded"

"""Loads: upstream's troubles, the budget, the projection."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from support.engines import Engine
from support.hostile import ask, told
from support.replicas import Replicas, until
from support.world import OFF, ORIGIN, OWN_KEY, ROOT_KEY, SECRET_KEY, World, claims, read, sign

from bff.demo.upstream import Answer, Seen, session

NEXT_KEY = "tr_dev_sk_NEXTsentinel00000000001"
SETTINGS = {"TRIGGER_SECRET_KEY": f"{SECRET_KEY},{NEXT_KEY}", **OFF}
VERIFIED_UPSTREAM: dict[str, str | None] = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine("valkey", tmp_path_factory.mktemp("store")) as engine:
        yield engine


def reject_first_key(world: World) -> None:
    keys = world.upstream.environments[0].additional_keys
    keys[NEXT_KEY] = keys.pop(SECRET_KEY)


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (401, {"error": "Invalid API key"}, 502, "upstream_rejected_credentials"),
        (
            403,
            {"error": "Unauthorized", "code": "unauthorized"},
            502,
            "upstream_rejected_credentials",
        ),
        (404, b"<html>", 502, "upstream_invalid"),
        (404, [], 502, "upstream_invalid"),
        (500, b"oops", 502, "upstream_unavailable"),
        (503, {}, 502, "upstream_unavailable"),
        (204, b"", 502, "upstream_invalid"),
        (206, {}, 502, "upstream_invalid"),
        (302, b"", 502, "upstream_invalid"),
        (400, {"error": "bad"}, 502, "upstream_invalid"),
        (200, b"<html>", 502, "upstream_invalid"),
        (200, b"", 502, "upstream_invalid"),
        (200, b"[" * 100_000, 502, "upstream_invalid"),
        (200, b" " * (1024 * 1024 + 1), 502, "upstream_invalid"),
    ],
)
async def test_upstream_trouble_becomes_a_5xx_refusal(
    world: World, status: int, body: object, expected: int, code: str
) -> None:
    world.answer(status, body, location="http://elsewhere.example/")

    response = await world.get("chat-1")

    assert (response.status_code, response.json()["code"]) == (expected, code)
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert world.calls == 1
    world.answer(0)
    assert (await world.get("chat-1")).status_code == 200, "nothing of it is kept"


async def test_slow_upstream_gets_504_in_time(world: World) -> None:
    await world.start(BFF_UPSTREAM_TIMEOUT="0.05")

    async def sleepy(_):
        await asyncio.sleep(10)

    world.upstream.override = sleepy

    response = await world.get("chat-1")

    assert (response.status_code, response.json()["code"]) == (504, "upstream_timeout")


async def test_upstream_429_pauses_loads(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(3)
    reset = str(int((world.clock.wall + 7) * 1000))
    world.answer(
        429,
        {"error": "limited"},
        x_ratelimit_limit="750",
        x_ratelimit_remaining="-1",
        x_ratelimit_reset=reset,
    )

    refused = await world.get("chat-2")
    stale = await world.get("chat-1")
    world.clock.advance(6.9)
    still = await world.get("chat-2")

    assert (refused.status_code, refused.json()["code"]) == (503, "over_budget")
    assert 1 <= int(refused.headers["retry-after"]) <= 7
    assert stale.status_code == 200
    assert still.status_code == 503
    assert world.calls == 2, "no second call before the reset"
    world.answer(0)
    world.clock.advance(0.2)
    assert (await world.get("chat-2")).status_code == 200


async def test_cold_session_beyond_the_budget_gets_503(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="1/second")
    first = await world.get("chat-1")

    refused = await world.get("chat-2")
    world.clock.advance(1)
    later = await world.get("chat-2")

    assert first.status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (503, "over_budget")
    assert refused.headers["retry-after"] == "1"
    assert later.status_code == 200


async def test_half_of_the_upstream_bucket_stays_unspent(world: World) -> None:
    bucket = world.upstream.environments[0].bucket
    bucket.limit, bucket.remaining, bucket.refill = 20, 20, 0
    await world.start(BFF_UPSTREAM_BUDGET="off", BFF_CACHE_NEGATIVE_TTL="0")

    for n in range(30):
        await world.get(f"missing-{n}")

    assert world.calls == 10
    assert bucket.remaining == 10


async def test_hot_sessions_cost_the_budget_at_most(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="2/second", BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off")
    environment = world.upstream.environments[0]
    names = [f"hot-{n}" for n in range(40)]
    for number, name in enumerate(names, start=100):
        environment.add(session(number, name))
    token = world.token("read:sessions")
    for _ in range(25):  # each gets its first copy
        world.clock.advance(1)
        for name in names:
            await ask(world, name, token)
    started, before = world.clock.now, world.calls

    for _ in range(60):
        world.clock.advance(1)
        responses = [await ask(world, name, token) for name in names]
        await world.settle()
        assert {response.status for response in responses} == {200}
        assert max(int(told(response)["age"]) for response in responses) <= 1.5 * 40 / 2

    assert world.calls - before <= 2 * (world.clock.now - started)


async def test_value_outside_the_policy_never_leaves(world: World) -> None:
    await world.start(BFF_EXPOSE_METADATA="plan,internal.*", BFF_EXPOSE_TAGS="public:*")
    document = world.upstream.environments[0].find("chat-1")
    document["newUpstream"] = {"secret": "sentinel-new"}
    document["metadata"]["more"] = "sentinel-metadata"

    response = await world.get("chat-1")
    again = await world.get("chat-1")

    everything = response.text + str(response.headers) + again.text + world.log.getvalue()
    everything += (await world.ops.get("/metrics")).text
    for hidden in ("sentinel", "first message", "backend", "user_123", "tenant_acme", "org:acme"):
        assert hidden not in everything
    assert response.json()["metadata"] == {"plan": "enterprise", "internal": {"costCents": 17}}
    assert response.json()["tags"] == ["public:beta"]
    assert [line["field"] for line in world.logged() if line["event"] == "field_dropped"] == [
        "newUpstream"
    ]


async def test_session_type_may_have_its_own_policy(world: World, tmp_path) -> None:
    config = tmp_path / "bff.toml"
    config.write_text('[policies."chat.support"]\nBFF_EXPOSE_METADATA = ["plan"]\n')
    world.upstream.environments[0].add(session(9, "support", type="chat.support"))
    await world.start(BFF_CONFIG=str(config))

    assert (await world.get("support")).json()["metadata"] == {"plan": "enterprise"}
    assert (await world.get("chat-1")).json()["metadata"] is None


async def test_load_spends_its_second_call_when_the_budget_allows_it(world: World) -> None:
    reject_first_key(world)
    await world.start(**SETTINGS | {"BFF_UPSTREAM_BUDGET": "3/second"})
    token = world.token("read:sessions")

    statuses = [
        (await world.get(name, token=token)).status_code
        for name in ("chat-1", "chat-2", "chat-closed")
    ]

    assert statuses == [200, 200, 503], "both keys, the next key alone, over the budget"
    assert world.calls == 3


async def test_load_spends_nothing_when_its_second_call_is_refused(world: World) -> None:
    reject_first_key(world)
    await world.start(**SETTINGS | {"BFF_UPSTREAM_BUDGET": "2/second"})
    token = world.token("read:sessions")

    async def reject_both_half_a_second_later(_: Seen) -> Answer | None:
        while world.calls < 2:
            await asyncio.sleep(0)
        world.clock.advance(0.25)
        return None

    world.upstream.override = reject_both_half_a_second_later
    names = ("chat-1", "chat-2")
    refused = await asyncio.gather(*(world.get(name, token=token) for name in names))
    assert [response.status_code for response in refused] == [503, 503]
    world.upstream.override = None

    world.clock.advance(0.5)
    loaded = [(await world.get(name, token=token)).status_code for name in names]

    assert loaded == [200, 200], "a second after the first calls, which alone were spent"


@pytest.mark.parametrize(
    ("key", "id_", "code"),
    [(OWN_KEY, "chat-1", "token_invalid"), (ROOT_KEY, "nope", "not_found")],
)
async def test_refusal_by_another_replica_names_no_time_to_retry(
    replicas: Replicas, key: str, id_: str, code: str
) -> None:
    one, two = [await replicas.add(**OFF | VERIFIED_UPSTREAM) for _ in range(2)]
    token = sign(claims(time.time(), *read(id_)), key)
    await one.get(id_, token=token)
    await until(lambda: one.telemetry.counts["bff_shared_verdicts", "kept"] == 1)

    response = await two.get(id_, token=token)

    assert response.json()["code"] == code
    assert len(one.upstream.seen) == 1
    assert "retry-after" not in response.headers

"""Replicas count limits and spend the budget together; each its part without the store."""

import asyncio
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from support.replicas import Replicas, events, heartbeat, until, written
from support.world import FRIENDLY, OFF, OWN_KEY, PATH, ROOT_KEY, Clock, World, claims, read, sign

from bff.demo.upstream import session
from bff.limits.budget import Budget
from bff.replicas.shared_limits import SharedLimits

# -- limits


async def test_limit_holds_for_all_replicas_together(replicas: Replicas) -> None:
    worlds = await replicas.several(4, BFF_RATE_LIMIT="50/hour", BFF_UPSTREAM_BUDGET="off")
    token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
    responses = await asyncio.gather(
        *(worlds[n % 4].get("chat-1", token=token) for n in range(200))
    )
    statuses = [response.status_code for response in responses]
    assert statuses.count(200) == 50
    assert statuses.count(429) == 150


async def test_small_limit_holds_over_several_windows(replicas: Replicas) -> None:
    """The key in the store says when a window ends: no request counts in two windows."""
    worlds = await replicas.several(3, **OFF | {"BFF_RATE_LIMIT": "20/second"})
    token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
    await worlds[0].get("chat-1", token=other_token(worlds[0]))
    began, allowed, refused = time.monotonic(), 0, 0
    while allowed <= 40 or not refused:  # into the third window
        responses = await asyncio.gather(*(w.get("chat-1", token=token) for w in worlds * 2))
        allowed += sum(response.status_code == 200 for response in responses)
        refused += sum(response.status_code == 429 for response in responses)
    windows = 1 + int((time.monotonic() - began) / 1.0)  # each lasts a second at least
    assert allowed <= 20 * windows


def other_token(world: World) -> str:
    return world.token(*read("chat-1"), act={"sub": "another"})


async def test_most_requests_need_no_lease(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, BFF_CACHE_TTL="60")
    token = world.token(*read("chat-1"), act={"sub": "someone"})
    for _ in range(200):
        assert (await world.get("chat-1", token=token)).status_code == 200

    leases = sum(n for key, n in world.telemetry.counts.items() if key[0] == "bff_leases")
    assert leases <= 40, "of 400 decisions: 200 requests, two limits each"


async def test_headers_show_what_is_left_of_a_shared_limit(replicas: Replicas) -> None:
    one, two = await replicas.several(2, BFF_RATE_LIMIT="100/minute")
    token = one.token(*read("chat-1"), act={"sub": "someone"})

    left = [
        int((await world.get("chat-1", token=token)).headers["x-ratelimit-remaining"])
        for world in [one] * 20 + [two] * 20
    ]

    assert left[:20] == list(range(99, 79, -1))
    assert all(40 <= n <= 90 for n in left[20:])
    assert all(earlier > later for earlier, later in pairwise(left[20:]))


async def test_replicas_count_bad_tokens_together(replicas: Replicas) -> None:
    worlds = await replicas.several(2, BFF_BAD_TOKEN_LIMIT="10/minute")

    responses = [await worlds[n % 2].get("chat-1", token="bad.bad.bad") for n in range(30)]

    statuses = [response.status_code for response in responses]
    assert statuses == [401] * 10 + [429] * 20


async def test_bad_token_that_waits_for_a_lease_counts_once(replicas: Replicas) -> None:
    (world,) = await replicas.several(1)

    await world.get("chat-1", token="bad.bad.bad")

    assert world.telemetry.counts["bff_bad_tokens", "token_invalid"] == 1


async def test_guessed_ids_cost_no_replica_a_load(replicas: Replicas) -> None:
    worlds = await replicas.several(2, BFF_BAD_TOKEN_LIMIT="10/minute", BFF_UPSTREAM_BUDGET="off")
    token = worlds[0].token(*read(FRIENDLY["chat-1"]))

    statuses = {
        (await worlds[n % 2].get(f"made-up-{n}", token=token)).status_code for n in range(60)
    }

    assert statuses == {403}
    assert {seen.raw_path for seen in replicas.upstream.seen} == {PATH + FRIENDLY["chat-1"]}
    assert len(replicas.upstream.seen) <= 2, "the named session, once or while it is shared"
    assert (await worlds[0].get(FRIENDLY["chat-1"], token=token)).status_code == 200


async def test_flood_is_not_read_with_or_without_the_store(own_replicas: Replicas) -> None:
    one, two = await own_replicas.several(2, BFF_BAD_TOKEN_LIMIT="10/minute")
    checks: list[bytes] = []

    def count(verifier: Any) -> None:
        original = verifier._check

        def counted(token: bytes, wall: float) -> Any:
            checks.append(token)
            return original(token, wall)

        verifier._check = counted

    for world in (one, two):
        count(world.service.gateway.config.verifier)

    async def flood() -> list[int]:
        checks.clear()
        return [(await w.get("chat-1", token="bad.bad.bad")).status_code for w in (one, two) * 30]

    statuses = await flood()
    assert statuses[20:] == [429] * 40
    assert len(checks) <= 30, "the limit, and what waited for a lease"

    own_replicas.engine.kill()
    statuses = await flood()
    assert statuses[20:] == [429] * 40
    assert len(checks) <= 30


async def test_good_new_token_needs_no_lease_of_bad_ones(replicas: Replicas) -> None:
    (world,) = await replicas.several(1)
    assert (await world.get("chat-1")).status_code == 200

    windows = world.service.gateway.config.limits.bad_token._windows
    assert not len(windows)


async def test_replicas_count_tokens_that_upstream_verifies(replicas: Replicas) -> None:
    """Their limit is leased after the introspection, when the request is not decided again."""
    changes = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream", "BFF_RATE_LIMIT": "10/minute"}
    worlds = await replicas.several(2, **changes)
    claims_ = claims(time.time(), *read("chat-1", "chat-2"), act={"sub": "someone"})
    good, bad = sign(claims_, ROOT_KEY), sign(claims_, OWN_KEY)

    statuses = [
        (await worlds[n % 2].get(("chat-1", "chat-2")[n // 2 % 2], token=good)).status_code
        for n in range(20)
    ]
    assert statuses == [200] * 10 + [429] * 10
    assert (await worlds[0].get("chat-1", token=bad)).status_code == 401

    listed = sign(claims_ | {"act": {"sub": "another"}}, ROOT_KEY)
    response = await worlds[1].browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {listed}"}
    )
    assert response.status_code == 200
    assert len(response.json()["data"]) == 2


async def test_replica_alone_takes_its_share_of_a_limit(own_replicas: Replicas) -> None:
    one, two = await own_replicas.several(2, BFF_RATE_LIMIT="100/minute", BFF_CACHE_TTL="60")
    await one.get("chat-1")
    own_replicas.engine.kill()

    token = two.token(*read("chat-2"), act={"sub": "newcomer"})
    statuses = [(await two.get("chat-2", token=token)).status_code for _ in range(120)]

    assert statuses == [200] * 50 + [429] * 70, "half of the limit: two replicas ran"
    assert (await one.get("chat-1")).status_code == 200
    await until(lambda: len(events(two, "store_away")) == 1)
    metrics = (await two.ops.get("/metrics")).text
    assert "bff_store_up 0.0" in metrics
    readiness = await two.ops.get("/readyz")
    assert readiness.status_code == 200
    assert "1 in 2" in readiness.json()["store"]

    own_replicas.engine.start()
    await until(lambda: one.service.sharing.up and two.service.sharing.up)
    await until(lambda: one.service.sharing.replicas == two.service.sharing.replicas == 2)

    assert (await two.get("chat-2", token=token)).status_code == 200
    assert len(events(two, "store_there")) == 2
    left = int((await one.get("chat-2", token=token)).headers["x-ratelimit-remaining"])
    assert left <= 50, "requests decided alone are counted afterwards"


# -- the budget


async def test_replicas_share_one_budget(replicas: Replicas) -> None:
    worlds = await replicas.several(4, **OFF | {"BFF_UPSTREAM_BUDGET": "12/minute"})
    for n in range(100, 140):
        replicas.upstream.environments[0].add(session(n, f"many-{n}"))

    responses = await asyncio.gather(
        *(worlds[n % 4].get(f"many-{n}", "read:sessions") for n in range(100, 140))
    )

    statuses = [response.status_code for response in responses]
    assert statuses.count(200) == 12
    assert statuses.count(503) == 28
    assert len(replicas.upstream.seen) == 12
    late = next(response for response in responses if response.status_code == 503)
    assert late.json()["code"] == "over_budget"
    assert 1 <= int(late.headers["retry-after"]) <= 60


async def test_upstream_bucket_counts_for_all_replicas(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF)
    bucket = replicas.upstream.environments[0].bucket
    bucket.limit, bucket.remaining, bucket.interval, bucket.since = 100, 53, 60.0, time.time()
    await one.get("chat-1")  # 52 are left: two more before the half
    await written(one)

    statuses = []
    for id_ in ("chat-2", "chat-closed", FRIENDLY["chat-2"], session(3)["id"], "a/b: c%?#ü"):
        statuses.append((await two.get(id_)).status_code)
        await written(two)

    assert statuses == [200, 200, 200, 503, 503]  # the third is a copy under its other id


def test_replica_reports_the_bucket_seldom_until_little_is_left(clock: Clock) -> None:
    reports = []
    store: Any = SimpleNamespace(
        up=True, timeout=1.0, replicas=1, allow=lambda _, loads, __: reports.append(loads)
    )
    unused: Any = None
    limits = SharedLimits(store, clock=clock, spawn=unused, count=unused)
    limits.origins = {"default": "origin"}

    for remaining, reset, seconds in (
        (999, 30.0, 0.04), (998, 29.96, 0.04), (997, 29.92, 0.0), (996, 45.0, 0.0),
        (600, 45.0, 0.0), (599, 45.0, 0.0), (598, 45.0, 0.0),
    ):  # fmt: skip
        limits.observe("default", limit=1000, remaining=remaining, reset=reset)
        clock.advance(seconds)

    assert reports == [499, 497, 496, 99, 98], "498 and 100 follow another report too soon"


async def test_upstream_429_stops_every_replica(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF)
    one.answer(429, {"error": "slow down"}, retry_after="30")
    assert (await one.get("chat-1")).status_code == 503
    one.answer(0)
    await written(one)

    response = await two.get("chat-2")

    assert (response.status_code, len(replicas.upstream.seen)) == (503, 1)
    assert 1 < int(response.headers["retry-after"]) <= 30


async def test_load_over_the_budget_is_retried_in_its_turn(replicas: Replicas) -> None:
    """A second later would leave budget unused, and copies older than necessary."""
    changes = OFF | {"BFF_UPSTREAM_BUDGET": "3/second", "BFF_CACHE_TTL": "0.1"}
    (world,) = await replicas.several(1, **changes)
    await world.get("chat-1")
    sharing, cache = world.service.sharing, world.service.gateway.cache
    for _ in range(2):
        await sharing.limits.spend("default", Budget(3, 1.0), timeout=2.0)
    await asyncio.sleep(0.7)
    assert (await world.get("chat-1")).headers["cache-status"] == "bff; hit; detail=stale"
    await world.settle()

    now = time.monotonic()
    assert cache.find("default", "chat-1", now).retry_at - now < 0.5


async def test_replica_alone_takes_its_share_of_the_budget(own_replicas: Replicas) -> None:
    one, two = await own_replicas.several(2, **OFF | {"BFF_UPSTREAM_BUDGET": "4/minute"})
    own_replicas.engine.kill()
    await heartbeat(one, two)

    ids = ("chat-1", "chat-2", "chat-closed")
    statuses = [[(await world.get(id_)).status_code for id_ in ids] for world in (one, two)]

    assert statuses == [[200, 200, 503]] * 2
    assert len(own_replicas.upstream.seen) == 4

"""Replicas on a real store, in this process: what they share, and what they do without it."""

import asyncio
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from engines import ENGINES, Engine, free_port
from world import FRIENDLY, OFF, Clock, World, read

from bff.demo.upstream import Answer, session
from bff.store import StoreError


class RealClock(Clock):
    """The true times: a store keeps its own, which no test can move."""

    def __call__(self) -> tuple[float, float]:
        return time.monotonic(), time.time()

    @property
    def wall(self) -> float:
        return time.time()

    @wall.setter
    def wall(self, _: float) -> None:
        pass


PATIENT = {"BFF_STORE_TIMEOUT": "2"}
"""For tests of what is counted: a busy machine is no slow store."""


@pytest.fixture(params=ENGINES, scope="module")
def engine(request, tmp_path_factory) -> Iterator[Engine]:
    if ENGINES[request.param] is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with Engine(request.param, tmp_path_factory.mktemp("store")) as engine:
        yield engine


@pytest.fixture
async def replicas(engine: Engine) -> AsyncIterator["Replicas"]:
    engine.client().flushall()
    async with AsyncExitStack() as stack:
        yield Replicas(engine, stack)


class Replicas:
    """Several services in this process, in front of one pretend upstream and one store."""

    def __init__(self, engine: Engine, stack: AsyncExitStack) -> None:
        self.engine = engine
        self._stack = stack
        self.upstream = None

    async def add(self, **changes: str | None) -> World:
        told = {"BFF_STORE_URL": self.engine.url, **PATIENT, **changes}
        world = World(RealClock(), **told)
        if self.upstream is not None:
            world.upstream = self.upstream
        self.upstream = world.upstream
        return await self._stack.enter_async_context(world)

    async def several(self, number: int, **changes: str | None) -> list[World]:
        worlds = [await self.add(**changes) for _ in range(number)]
        for world in worlds:
            await until(lambda world=world: world.service.fleet.replicas >= number)
        return worlds


async def purge(world: World, id_: str) -> None:
    """Purge everywhere; as an operator does, again while the store is away."""
    for _ in range(100):
        reply = await world.ops.delete("/cache/sessions/" + quote(id_, safe=""))
        if reply.status_code == 204:
            return
        assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
        await asyncio.sleep(0.05)
    raise AssertionError("the store is away")


async def until(condition, seconds: float = 10.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def test_a_copy_that_one_replica_loaded_is_used_by_all(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="30")
    first = await one.get("chat-1")
    await one.settle()
    await asyncio.sleep(0.05)

    second = await two.get(FRIENDLY["chat-1"])

    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["etag"] == first.headers["etag"]
    assert len(replicas.upstream.seen) == 1


async def test_a_limit_holds_for_all_replicas_together(replicas: Replicas) -> None:
    worlds = await replicas.several(4, BFF_RATE_LIMIT="50/minute", BFF_UPSTREAM_BUDGET="off")
    token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
    replies = await asyncio.gather(*(worlds[n % 4].get("chat-1", token=token) for n in range(200)))
    statuses = [reply.status_code for reply in replies]
    assert statuses.count(200) == 50
    assert statuses.count(429) == 150


async def test_a_small_limit_over_several_windows_is_never_exceeded(replicas: Replicas) -> None:
    """The store's own key says when a window begins and ends: nothing is counted across it."""
    worlds = await replicas.several(3, **OFF | {"BFF_RATE_LIMIT": "20/second"})
    token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
    await worlds[0].get("chat-1", token=read_token(worlds[0]))
    began, allowed, refused = time.monotonic(), 0, 0
    while time.monotonic() - began < 3.3:
        replies = await asyncio.gather(*(w.get("chat-1", token=token) for w in worlds * 2))
        allowed += sum(reply.status_code == 200 for reply in replies)
        refused += sum(reply.status_code == 429 for reply in replies)
    windows = 1 + int((time.monotonic() - began) / 1.0)  # each a second at least, one after another
    assert refused
    assert 40 <= allowed <= 20 * windows


def read_token(world: World) -> str:
    return world.token(*read("chat-1"), act={"sub": "another"})


async def test_most_decisions_need_no_question_to_the_store(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, BFF_CACHE_TTL="60")
    token = world.token(*read("chat-1"), act={"sub": "someone"})
    for _ in range(200):
        assert (await world.get("chat-1", token=token)).status_code == 200

    leases = sum(n for key, n in world.telemetry.counts.items() if key[0] == "bff_leases")
    assert leases <= 40, "of 400 decisions: two limits, two hundred requests"


async def test_the_headers_tell_what_is_left_of_the_limit(replicas: Replicas) -> None:
    one, two = await replicas.several(2, BFF_RATE_LIMIT="100/minute")
    token = one.token(*read("chat-1"), act={"sub": "someone"})

    left = [
        int((await world.get("chat-1", token=token)).headers["x-ratelimit-remaining"])
        for world in [one] * 20 + [two] * 20
    ]

    assert left[:20] == list(range(99, 79, -1))
    assert all(40 <= n <= 90 for n in left[20:])
    assert all(earlier > later for earlier, later in pairwise(left[20:]))


async def test_bad_tokens_are_counted_together(replicas: Replicas) -> None:
    worlds = await replicas.several(2, BFF_BAD_TOKEN_LIMIT="10/minute")

    replies = [await worlds[n % 2].get("chat-1", token="bad.bad.bad") for n in range(30)]

    statuses = [reply.status_code for reply in replies]
    assert statuses == [401] * 10 + [429] * 20


async def test_probing_is_bounded_for_all_together(replicas: Replicas) -> None:
    worlds = await replicas.several(2, BFF_BAD_TOKEN_LIMIT="10/minute", BFF_UPSTREAM_BUDGET="off")
    token = worlds[0].token(*read(FRIENDLY["chat-1"]))

    statuses = {
        (await worlds[n % 2].get(f"made-up-{n}", token=token)).status_code for n in range(60)
    }

    assert statuses == {403}
    assert len(replicas.upstream.seen) == 10
    assert (await worlds[0].get(FRIENDLY["chat-1"], token=token)).status_code == 200


async def test_the_budget_is_one(replicas: Replicas) -> None:
    worlds = await replicas.several(4, **OFF | {"BFF_UPSTREAM_BUDGET": "12/minute"})
    for n in range(100, 140):
        replicas.upstream.environments[0].add(session(n, f"many-{n}"))

    replies = await asyncio.gather(
        *(worlds[n % 4].get(f"many-{n}", "read:sessions") for n in range(100, 140))
    )

    statuses = [reply.status_code for reply in replies]
    assert statuses.count(200) == 12
    assert statuses.count(503) == 28
    assert len(replicas.upstream.seen) == 12
    late = next(reply for reply in replies if reply.status_code == 503)
    assert late.json()["code"] == "over_budget"
    assert 1 <= int(late.headers["retry-after"]) <= 60


async def test_what_upstream_says_of_its_bucket_counts_for_all(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF)
    bucket = replicas.upstream.environments[0].bucket
    bucket.limit, bucket.remaining, bucket.interval, bucket.since = 100, 53, 60.0, time.time()
    await one.get("chat-1")  # 52 are left now: two more are above the lower half
    await asyncio.sleep(0.05)

    statuses = []
    for id_ in ("chat-2", "chat-closed", FRIENDLY["chat-2"], session(3)["id"], "a/b: c%?#ü"):
        statuses.append((await two.get(id_)).status_code)
        await asyncio.sleep(0.02)

    assert statuses == [200, 200, 200, 503, 503]  # the third is a copy by its other id


async def test_upstreams_429_stops_every_replica(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF)
    one.answer(429, {"error": "slow down"}, retry_after="30")
    assert (await one.get("chat-1")).status_code == 503
    one.answer(0)
    await asyncio.sleep(0.05)

    reply = await two.get("chat-2")

    assert (reply.status_code, len(replicas.upstream.seen)) == (503, 1)
    assert 25 <= int(reply.headers["retry-after"]) <= 30


async def test_one_load_for_all_however_many_ask_at_once(replicas: Replicas) -> None:
    worlds = await replicas.several(4, **OFF, BFF_CACHE_TTL="30")

    async def slowly(_):
        await asyncio.sleep(0.3)

    replicas.upstream.override = slowly
    replies = await asyncio.gather(*(w.get("chat-1") for w in worlds for _ in range(25)))

    assert {reply.status_code for reply in replies} == {200}
    assert len(replicas.upstream.seen) == 1


async def test_a_load_that_fails_lets_the_next_replica_try(replicas: Replicas) -> None:
    worlds = await replicas.several(2, **OFF)

    async def slowly_fail_once(_):
        await asyncio.sleep(0.1)
        return Answer(500, "trouble") if len(replicas.upstream.seen) == 1 else None

    replicas.upstream.override = slowly_fail_once
    replies = await asyncio.gather(*(world.get("chat-1") for world in worlds))

    assert sorted(reply.status_code for reply in replies) == [200, 502]
    assert len(replicas.upstream.seen) == 2


async def test_an_absence_is_known_to_all_for_its_time_and_no_longer(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_NEGATIVE_TTL="0.5")
    assert (await one.get("nobody")).status_code == 404
    await asyncio.sleep(0.05)
    assert (await two.get("nobody")).status_code == 404
    assert len(replicas.upstream.seen) == 1
    replicas.upstream.environments[0].add(session(9, "nobody"))
    await asyncio.sleep(0.5)

    assert (await two.get("nobody")).status_code == 200


async def test_a_shared_copy_is_as_old_as_it_is(replicas: Replicas) -> None:
    one, two = await replicas.several(
        2,
        **OFF,
        BFF_CACHE_TTL="1",
        BFF_CACHE_STALE_WHILE_REVALIDATE="0",
        BFF_CACHE_STALE_IF_ERROR="0",
    )
    await one.get("chat-1")
    await asyncio.sleep(0.7)
    await two.get("chat-1")
    assert len(replicas.upstream.seen) == 1
    await asyncio.sleep(0.4)

    await two.get("chat-1")

    assert len(replicas.upstream.seen) == 2, "it was a second old, though two had it for 0.4 s"


async def test_a_copy_outlives_the_replica_that_loaded_it_when_upstream_fails(
    replicas: Replicas,
) -> None:
    one, two = await replicas.several(
        2, **OFF, BFF_CACHE_TTL="0.1", BFF_CACHE_STALE_WHILE_REVALIDATE="0"
    )
    await one.get("chat-1")
    await asyncio.sleep(0.2)
    one.answer(500, {"error": "down"})

    reply = await two.get("chat-1")

    assert reply.status_code == 200


async def test_another_policy_reads_none_of_it(replicas: Replicas) -> None:
    (one,) = await replicas.several(1, **OFF, BFF_CACHE_TTL="30", BFF_EXPOSE_METADATA="plan")
    two = await replicas.add(**OFF, BFF_CACHE_TTL="30")

    shown = [(await world.get("chat-1")).json()["metadata"] for world in (one, two, one, two)]

    assert shown == [{"plan": "enterprise"}, None] * 2
    assert len(replicas.upstream.seen) == 2


async def test_a_policy_that_changes_during_a_load_holds_for_what_it_brings(
    replicas: Replicas,
) -> None:
    """Also where it is another replica, of the former policy, that loads."""
    told = OFF | {"BFF_CACHE_TTL": "60", "BFF_EXPOSE_METADATA": "plan"}
    one, two = await replicas.several(2, **told)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_):
        asked.set()
        await go_on.wait()

    replicas.upstream.override = hold
    loads = [asyncio.create_task(one.get("chat-1"))]
    await asked.wait()
    loads.append(asyncio.create_task(two.get("chat-1")))
    await until(lambda: two.service.gateway.cache.flights)
    await asyncio.sleep(0.05)
    two.reload(**two.told | {"BFF_EXPOSE_METADATA": None})
    loads.append(asyncio.create_task(two.get("chat-1")))
    await asyncio.sleep(0.05)
    go_on.set()

    shown = [(await load).json()["metadata"] for load in loads]

    assert shown == [{"plan": "enterprise"}, None, None]
    assert (await two.get("chat-1")).json()["metadata"] is None


def everything(engine: Engine) -> dict[bytes, bytes]:
    """Every key of a store, whatever its type."""
    found = {}
    with engine.client() as client:
        for key in client.scan_iter(count=1000):
            kind = client.type(key)
            if kind == b"string":
                found[key] = client.get(key)
            elif kind == b"list":
                found[key] = b" ".join(client.lrange(key, 0, -1))
            elif kind == b"zset":
                found[key] = repr(client.zrange(key, 0, -1, withscores=True)).encode()
            elif kind == b"stream":
                found[key] = repr(client.xrange(key)).encode()
            else:
                raise AssertionError(f"{key!r} is a {kind!r}")
    return found


async def test_nothing_hidden_is_in_the_store_and_everything_expires(replicas: Replicas) -> None:
    one, two = await replicas.several(2)
    for world in (one, two):
        for id_ in ("chat-1", "chat-2", "chat-closed", FRIENDLY["chat-2"], "none"):
            await world.get(id_)
        await world.get("chat-1", token="bad.bad.bad")
    await purge(one, "chat-2")
    await asyncio.sleep(0.1)

    found = everything(replicas.engine)

    assert any(b"chat-closed" in value for value in found.values()), "there are copies"
    text = b"\n".join(key + b" " + value for key, value in found.items())
    document = session(1, "chat-1")
    hidden = [
        "basePayload", "the first message", "enterprise", "user_123", "botScore", "tenant_acme",
        "small-1x", "costCents", "user:123", "org:acme", "public:beta", "triggerConfig",
        *(word for tag in document["tags"] for word in [tag]),
        "tr_", "own-signing", "Bearer", "127.0.0.1",
    ]  # fmt: skip
    assert [word for word in hidden if word.encode() in text] == []
    with replicas.engine.client() as client:
        lasting = [key for key in found if client.ttl(key) < 0]
    assert sorted(lasting) == [b"bff1:replicas", b"bff1:{told}:purges"], "both are bounded"


# -- revocations


async def test_a_revocation_reaches_every_replica_also_one_that_starts_later(
    replicas: Replicas,
) -> None:
    one, two = await replicas.several(2, **OFF)
    token = one.token(*read("chat-1"), jti="lost")
    statuses = [(await world.get("chat-1", token=token)).status_code for world in (one, two)]
    assert statuses == [200, 200]

    reply = await one.ops.post("/revocations", json={"jti": "lost"})
    assert reply.status_code == 200
    (three,) = await replicas.several(1, **OFF)

    for world in (one, two, three):
        revocations = world.service.gateway.revocations
        await until(lambda revocations=revocations: len(revocations) == 1)
        assert (await world.get("chat-1", token=token)).json()["code"] == "token_revoked"
        other = world.token(*read("chat-1"), jti="kept")
        assert (await world.get("chat-1", token=other)).status_code == 200


# -- purges


async def test_a_purge_reaches_every_replica_under_both_ids(replicas: Replicas) -> None:
    worlds = await replicas.several(3, **OFF, BFF_CACHE_TTL="60")
    for world in worlds:
        await world.get("chat-1")
        await world.get(FRIENDLY["chat-1"])
    assert len(replicas.upstream.seen) == 1
    await asyncio.sleep(0.05)

    await purge(worlds[0], FRIENDLY["chat-1"])
    document = replicas.upstream.environments[0].find("chat-1")
    document["taskIdentifier"] = "renamed"
    await asyncio.sleep(0.1)

    replies = [await w.get(id_) for w in worlds for id_ in ("chat-1", FRIENDLY["chat-1"])]
    assert {reply.json()["taskIdentifier"] for reply in replies} == {"renamed"}
    assert len(replicas.upstream.seen) == 2


async def test_a_purge_reaches_who_was_cut_off_meanwhile(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    for world in (one, two):
        await world.get("chat-1")
    with replicas.engine.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    await purge(one, "chat-1")

    await until(lambda: not two.service.gateway.cache._kept)


@pytest.mark.parametrize("purged", ["chat-1", FRIENDLY["chat-1"]])
async def test_a_purge_during_a_load_wins(replicas: Replicas, purged: str) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_):
        document = replicas.upstream.environments[0].find("chat-1")
        answer = Answer(200, dict(document))
        asked.set()
        await go_on.wait()
        return answer

    replicas.upstream.override = hold
    under_way = asyncio.create_task(one.get("chat-1"))
    await asked.wait()
    replicas.upstream.override = None
    await purge(two, purged)
    replicas.upstream.environments[0].find("chat-1")["taskIdentifier"] = "renamed"
    go_on.set()
    assert (await under_way).json()["taskIdentifier"] == "my-chat", "asked before the purge"
    await asyncio.sleep(0.1)

    for id_ in ("chat-1", FRIENDLY["chat-1"]):
        reply = await two.get(id_)
        assert reply.json()["taskIdentifier"] == "renamed", id_


# -- what is not ours


async def test_foreign_and_corrupt_values_are_dropped_and_counted(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, BFF_CACHE_TTL="60")
    await world.get("chat-1")
    await asyncio.sleep(0.05)
    with replicas.engine.client() as client:
        copies = [k for k in everything(replicas.engine) if k.endswith(b":chat-1}")]
        assert len(copies) == 1
        value = client.get(copies[0])
        other = copies[0].replace(b"chat-1", b"chat-2")
        spoilt = {
            "another session's": value,
            "cut off": value[:-1],
            "one byte changed": value.replace(b"my-chat", b"my-chaT"),
            "no copy": b"hello",
            "empty": b"",
        }
        for number, text in enumerate(spoilt.values(), start=1):
            client.set(other, text, px=60_000)
            world.service.gateway.cache.drop("default", "chat-2")

            reply = await world.get("chat-2")

            assert reply.json()["externalId"] == "chat-2"
            await asyncio.sleep(0.05)
            counts = world.telemetry.counts
            assert counts["bff_shared_copies", "dropped"] == number
            assert client.get(other) not in spoilt.values()
            client.delete(other)
        # values of other types, under every key that is ours
        for key in everything(replicas.engine):
            if key != b"bff1:replicas":
                client.delete(key)
                client.sadd(key, "foreign")
        world.service.gateway.cache.drop("default", "chat-1")
        assert (await world.get("chat-1")).status_code == 200
        assert world.telemetry.counts["bff_store_commands", "foreign"] >= 1
        await until(lambda: world.service.fleet.up)


# -- the store away, slow, full, restarted


@pytest.fixture(params=ENGINES)
def own_engine(request, tmp_path) -> Iterator[Engine]:
    """One that a test may hurt."""
    if ENGINES[request.param] is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with Engine(request.param, tmp_path) as engine:
        yield engine


@pytest.fixture
async def own_replicas(own_engine: Engine) -> AsyncIterator["Replicas"]:
    async with AsyncExitStack() as stack:
        yield Replicas(own_engine, stack)


def events(world: World, name: str) -> list[dict]:
    return [line for line in world.logged() if line["event"] == name]


async def test_without_the_store_a_replica_takes_its_share_and_comes_back_by_itself(
    own_replicas: Replicas,
) -> None:
    one, two = await own_replicas.several(
        2, BFF_RATE_LIMIT="100/minute", BFF_CACHE_TTL="60", BFF_STORE_TIMEOUT="0.05"
    )
    await one.get("chat-1")
    own_replicas.engine.kill()

    slowest, statuses = 0.0, []
    token = two.token(*read("chat-2"), act={"sub": "newcomer"})
    for _ in range(120):
        began = time.perf_counter()
        statuses.append((await two.get("chat-2", token=token)).status_code)
        slowest = max(slowest, time.perf_counter() - began)

    assert statuses == [200] * 50 + [429] * 70, "half of the limit, for there were two"
    assert slowest < 0.05 + 0.1, "the rest is this machine's"
    assert (await one.get("chat-1")).status_code == 200
    assert len(events(two, "store_away")) == 1
    metrics = (await two.ops.get("/metrics")).text
    assert "bff_store_up 0.0" in metrics
    readiness = await two.ops.get("/readyz")
    assert readiness.status_code == 200
    assert "1 in 2" in readiness.json()["store"]

    own_replicas.engine.start()
    await until(lambda: one.service.fleet.up and two.service.fleet.up)
    await until(lambda: one.service.fleet.replicas == two.service.fleet.replicas == 2)

    assert (await two.get("chat-2", token=token)).status_code == 200
    assert len(events(two, "store_there")) == 2
    left = int((await one.get("chat-2", token=token)).headers["x-ratelimit-remaining"])
    assert left <= 50, "what was spent alone was counted afterwards"


async def test_no_request_waits_for_a_store_that_hangs(own_replicas: Replicas) -> None:
    (world,) = await own_replicas.several(1, BFF_STORE_TIMEOUT="0.05")
    await world.get("chat-1")
    took = []
    for turn in range(3):
        own_replicas.engine.freeze()
        for n in range(20):
            token = world.token(*read("chat-1"), act={"sub": f"someone {turn} {n}"})
            began = time.perf_counter()
            assert (await world.get("chat-1", token=token)).status_code == 200
            took.append(time.perf_counter() - began)
        own_replicas.engine.thaw()
        await until(lambda: world.service.fleet.up)

    took.sort()
    assert took[-4] < 0.05, "but for the first of each turn nobody waits at all"
    assert took[-1] < 0.05 + 0.1, "the rest is this machine's"
    assert len(events(world, "store_away")) == 3


async def test_a_full_store_is_an_absent_one(own_replicas: Replicas) -> None:
    (world,) = await own_replicas.several(1)
    with own_replicas.engine.client() as client:
        client.config_set("maxmemory", "1")
        for id_ in ("chat-1", "chat-2"):
            assert (await world.get(id_)).status_code == 200
        await until(lambda: not world.service.fleet.up)
        assert events(world, "store_away")[0]["reason"] == "OutOfMemoryError"
        client.config_set("maxmemory", "0")
    await until(lambda: world.service.fleet.up)


async def test_a_store_that_may_only_be_read_is_an_absent_one(own_replicas: Replicas) -> None:
    """As after a failover, while the address still leads to the former primary."""
    (world,) = await own_replicas.several(1)
    with own_replicas.engine.client() as client:
        client.replicaof("127.0.0.1", "1")
        assert (await world.get("chat-1")).status_code == 200
        await until(lambda: not world.service.fleet.up)
        client.replicaof("NO", "ONE")
    await until(lambda: world.service.fleet.up)
    assert (await world.get("chat-2")).status_code == 200


async def test_a_purge_that_cannot_reach_the_others_says_so(own_replicas: Replicas) -> None:
    one, _ = await own_replicas.several(2)
    own_replicas.engine.kill()
    await until(lambda: not one.service.fleet.up)

    reply = await one.ops.delete("/cache/sessions/chat-1")

    assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")


# -- who leaves


async def test_ten_thousand_who_leave_never_mix_up_what_others_get(  # noqa: C901  one story
    replicas: Replicas,
) -> None:
    worlds = await replicas.several(
        2,
        **OFF,
        BFF_CACHE_TTL="0",
        BFF_CACHE_STALE_WHILE_REVALIDATE="0",
        BFF_CACHE_STALE_IF_ERROR="0",
        BFF_CACHE_NEGATIVE_TTL="0",
    )
    ids = [f"many-{n}" for n in range(50)]
    for n, id_ in enumerate(ids, start=100):
        replicas.upstream.environments[0].add(session(n, id_))
    tokens = [worlds[0].token(*read(id_), act={"sub": id_}) for id_ in ids]
    fleets = [world.service.fleet for world in worlds]
    chooser, left, served = random.Random(15), 0, 0

    async def visit(number: int) -> None:
        nonlocal left, served
        which = chooser.randrange(len(ids))
        world, fleet = worlds[number % 2], fleets[number % 2]
        # Some read the shared copy itself, in their own task, so that it is they who are cut off.
        if number % 2:
            reading = asyncio.ensure_future(fleet.store.read(SPACE, ids[which], within=2.0))
        else:
            reading = asyncio.ensure_future(world.get(ids[which], token=tokens[which]))
        for _ in range(chooser.randrange(12)):
            await asyncio.sleep(0)
        if reading.cancel():
            left += 1
        try:
            answer = await reading
        except asyncio.CancelledError:
            return
        served += 1
        check(ids[which], answer)

    def check(id_: str, answer) -> None:
        if isinstance(answer, tuple):
            assert answer[0] in (None, b"copy of " + id_.encode())
        else:
            assert answer.json()["externalId"] == id_

    with replicas.engine.client() as client:
        for id_ in ids:
            client.set(f"bff1:{{{SPACE}:{id_}}}", b"copy of " + id_.encode())
    for batch in range(0, 10_000, 100):
        await asyncio.gather(*(visit(batch + n) for n in range(100)))
        for n in range(0, 50, 5):  # and those who stay get their own
            check(ids[n], await fleets[n % 2].store.read(SPACE, ids[n], within=2.0))
    for world in worlds:
        await world.settle()
    for which, id_ in enumerate(ids):
        check(id_, await worlds[which % 2].get(id_, token=tokens[which]))

    assert left > 5000
    assert all(world.telemetry.counts["bff_mismatched_copies",] == 0 for world in worlds)
    assert all(world.telemetry.counts["bff_shared_copies", "dropped"] == 0 for world in worlds)


SPACE = "made:up"


# -- addresses


async def test_credentials_and_database(tmp_path) -> None:
    password = "sentinel/p@ss word"
    with Engine("valkey", tmp_path, "--requirepass", password) as engine:
        with engine.client(password=password) as client:
            client.execute_command(
                "ACL", "SETUSER", "gateway", "on", ">s3ntinel", "~bff1:*", "+@all"
            )
        async with AsyncExitStack() as stack:
            replicas = Replicas(engine, stack)
            engine.url = f"valkey://gateway:s3ntinel@127.0.0.1:{engine.port}/3"
            one = await replicas.add()
            assert (await one.get("chat-1")).status_code == 200
            await asyncio.sleep(0.05)
            with engine.client(password=password, db=3) as client:
                assert client.dbsize() > 2
            engine.url = f"redis://:{quote(password, safe='')}@127.0.0.1:{engine.port}"
            two = await replicas.add()
            assert two.service.fleet.up
            engine.url = f"valkey://gateway:wr0ng@127.0.0.1:{engine.port}"
            with pytest.raises(StoreError, match="rejects the name or the password") as caught:
                await replicas.add()
            for world in (one, two):
                assert "ntinel" not in world.log.getvalue()
                assert "ntinel" not in (await world.ops.get("/readyz")).text
            assert "wr0ng" not in str(caught.value)
            assert "ntinel" not in repr(one.service._told)


@pytest.fixture
def certificates(tmp_path) -> Path:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca",
            "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    for name, address in (("good", "127.0.0.1"), ("other", "127.0.0.2")):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=store", "-keyout",
                f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (tmp_path / f"{name}.ext").write_text(f"subjectAltName=IP:{address}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext",
                "-out", f"{name}.pem")  # fmt: skip
    return tmp_path


@pytest.mark.skipif(not ENGINES["redis"], reason="redis-server, which knows TLS, is not installed")
async def test_tls_is_checked(certificates: Path, tmp_path) -> None:
    def server(name: str) -> Engine:
        port = free_port()
        engine = Engine(
            "redis", tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no",
            "--tls-cert-file", f"{certificates}/{name}.pem",
            "--tls-key-file", f"{certificates}/{name}.key",
            "--tls-ca-cert-file", f"{certificates}/ca.pem",
        )  # fmt: skip
        engine.tls = f"valkeys://127.0.0.1:{port}"
        return engine

    ca = f"?ca_file={certificates}/ca.pem"
    async with AsyncExitStack() as stack:
        with server("good") as good, server("other") as other:
            replicas = Replicas(good, stack)
            good.url = good.tls + ca
            world = await replicas.add()
            assert (await world.get("chat-1")).status_code == 200
            assert world.service.fleet.up
            for url in (good.tls, other.tls + ca, good.tls.replace("valkeys", "valkey")):
                good.url = url
                with pytest.raises(StoreError, match=r"cannot be (reached|used)"):
                    await replicas.add()


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_cluster(tmp_path, kind: str) -> None:
    if ENGINES[kind] is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with Engine(kind, tmp_path, "--cluster-enabled", "yes") as engine:
        with engine.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            for _ in range(500):
                if b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"):
                    break
                await asyncio.sleep(0.02)
        engine.url = f"valkey+cluster://127.0.0.1:{engine.port}"
        async with AsyncExitStack() as stack:
            replicas = Replicas(engine, stack)
            one, two = await replicas.several(2, BFF_CACHE_TTL="60")
            for world in (one, two):
                assert (await world.get("chat-1")).status_code == 200
                await asyncio.sleep(0.05)
            assert len(replicas.upstream.seen) == 1
            await purge(one, "chat-1")
            await until(lambda: not two.service.gateway.cache._kept)


async def test_a_store_that_is_not_there_is_an_error_or_a_warning(tmp_path) -> None:
    engine = Engine("valkey", tmp_path)
    async with AsyncExitStack() as stack:
        replicas = Replicas(engine, stack)
        with pytest.raises(StoreError, match=rf"127.0.0.1:{engine.port} cannot be reached"):
            await replicas.add()
        world = await replicas.add(BFF_STORE_OPTIONAL="true")
        assert (await world.get("chat-1")).status_code == 200
        assert "1 in 4" in (await world.ops.get("/readyz")).json()["store"]
        assert len(events(world, "store_away")) == 1
        with engine:
            await until(lambda: world.service.fleet.up)

"""Replicas on a real store, in this process: what they share, and what they do without it."""

import asyncio
import time
from itertools import pairwise

import pytest
from support.replicas import Replicas, contents, purge, until
from support.world import FRIENDLY, OFF, OWN_KEY, ROOT_KEY, World, claims, read, sign

from bff.demo.upstream import Answer, session
from bff.limits.budget import Budget


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
    responses = await asyncio.gather(
        *(worlds[n % 4].get("chat-1", token=token) for n in range(200))
    )
    statuses = [response.status_code for response in responses]
    assert statuses.count(200) == 50
    assert statuses.count(429) == 150


async def test_a_small_limit_over_several_windows_is_never_exceeded(replicas: Replicas) -> None:
    """The store's own key says when a window begins and ends: nothing is counted across it."""
    worlds = await replicas.several(3, **OFF | {"BFF_RATE_LIMIT": "20/second"})
    token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
    await worlds[0].get("chat-1", token=read_token(worlds[0]))
    began, allowed, refused = time.monotonic(), 0, 0
    while time.monotonic() - began < 2.2:
        responses = await asyncio.gather(*(w.get("chat-1", token=token) for w in worlds * 2))
        allowed += sum(response.status_code == 200 for response in responses)
        refused += sum(response.status_code == 429 for response in responses)
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

    responses = [await worlds[n % 2].get("chat-1", token="bad.bad.bad") for n in range(30)]

    statuses = [response.status_code for response in responses]
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

    response = await two.get("chat-2")

    assert (response.status_code, len(replicas.upstream.seen)) == (503, 1)
    assert 25 <= int(response.headers["retry-after"]) <= 30


async def test_who_was_over_the_budget_tries_again_when_it_is_its_turn(replicas: Replicas) -> None:
    """Not a second later: budget would be left unused, and copies would be older than need be."""
    told = OFF | {"BFF_UPSTREAM_BUDGET": "3/second", "BFF_CACHE_TTL": "0.1"}
    (world,) = await replicas.several(1, **told)
    await world.get("chat-1")
    sharing, cache = world.service.sharing, world.service.gateway.cache
    for _ in range(2):
        await sharing.spend("default", Budget(3, 1.0), timeout=2.0)
    await asyncio.sleep(0.7)
    assert (await world.get("chat-1")).headers["cache-status"] == "bff; hit; detail=stale"
    await world.settle()

    now = time.monotonic()
    assert cache.find("default", "chat-1", now).retry - now < 0.5


async def test_an_absurd_word_of_upstream_stops_the_fleet_for_no_longer_than_one(
    replicas: Replicas,
) -> None:
    one, two = await replicas.several(2, **OFF)
    one.answer(200, session(1, "chat-1"), x_ratelimit_limit="100", x_ratelimit_remaining="0",
               x_ratelimit_reset="99999999999999")  # fmt: skip
    await one.get("chat-1")
    with replicas.engine.client() as client:
        await until(lambda: client.keys("*:allowance"))
        assert client.ttl(client.keys("*:allowance")[0]) <= 60

    assert (await two.get("chat-2")).status_code == 503


async def test_answers_that_overtake_one_another_leave_upstreams_lower_half_alone(
    replicas: Replicas,
) -> None:
    """Of 100, 53 are left: three loads at once, of which the first to be sent is heard of last."""
    one, two = await replicas.several(2, **OFF)
    now = time.time()
    for world, remaining in ((one, 50), (two, 52), (one, 51)):
        world.service.sharing.observe("default", limit=100, remaining=remaining, reset=30.0)
        await asyncio.sleep(0.02)
    assert (await two.get("chat-2")).status_code == 503
    one.service.sharing.observe("default", limit=100, remaining=99, reset=now - time.time())
    await asyncio.sleep(0.02)
    assert (await two.get("chat-2")).status_code == 503, "of a former period"
    one.service.sharing.observe("default", limit=100, remaining=99, reset=40.0)
    await asyncio.sleep(0.02)
    assert (await two.get("chat-2")).status_code == 200


async def test_one_load_for_all_however_many_ask_at_once(replicas: Replicas) -> None:
    worlds = await replicas.several(4, **OFF, BFF_CACHE_TTL="30")

    async def slowly(_):
        await asyncio.sleep(0.3)

    replicas.upstream.override = slowly
    responses = await asyncio.gather(*(w.get("chat-1") for w in worlds for _ in range(25)))

    assert {response.status_code for response in responses} == {200}
    assert len(replicas.upstream.seen) == 1


async def test_a_load_that_fails_lets_the_next_replica_try(replicas: Replicas) -> None:
    worlds = await replicas.several(2, **OFF)

    async def slowly_fail_once(_):
        await asyncio.sleep(0.1)
        return Answer(500, "trouble") if len(replicas.upstream.seen) == 1 else None

    replicas.upstream.override = slowly_fail_once
    responses = await asyncio.gather(*(world.get("chat-1") for world in worlds))

    assert sorted(response.status_code for response in responses) == [200, 502]
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

    response = await two.get("chat-1")

    assert response.status_code == 200


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
    await until(lambda: len(two.service.gateway.cache.loads))
    await asyncio.sleep(0.05)
    two.reload(**two.told | {"BFF_EXPOSE_METADATA": None})
    loads.append(asyncio.create_task(two.get("chat-1")))
    await asyncio.sleep(0.05)
    go_on.set()

    shown = [(await load).json()["metadata"] for load in loads]

    assert shown == [{"plan": "enterprise"}, None, None]
    assert (await two.get("chat-1")).json()["metadata"] is None


def texts(value: object) -> set[str]:
    """Every text in a document that is long enough to be told from others, names included."""
    if isinstance(value, dict):
        return set().union(*({name} | texts(part) for name, part in value.items()))
    if isinstance(value, list):
        return set().union(*map(texts, value))
    return {value} if isinstance(value, str) else set()


async def test_nothing_hidden_is_in_the_store_and_everything_expires(replicas: Replicas) -> None:
    one, two = await replicas.several(2)
    shown: set[str] = set()
    for world in (one, two):
        for id_ in ("chat-1", "chat-2", "chat-closed", FRIENDLY["chat-2"], "none"):
            shown |= texts((await world.get(id_)).json())
        await world.get("chat-1", token="bad.bad.bad")
    await purge(one, "chat-2")
    await one.ops.post("/revocations", json={"jti": "lost"})
    await asyncio.sleep(0.1)

    found = contents(replicas.engine)

    assert any(b"chat-closed" in value for value in found.values()), "there are copies"
    kinds = {key.split(b":")[1] for key in found} | {key.rpartition(b":")[2] for key in found}
    assert {b"w", b"replicas", b"purges", b"revocations", b"spent", b"purged"} <= kinds
    text = b"\n".join(key + b" " + value for key, value in found.items())
    documents = replicas.upstream.environments[0].sessions.values()
    hidden = {word for word in texts(list(documents)) - shown if len(word) > 3}
    assert {
        "basePayload",
        "the first message, word for word",
        "tenant_acme",
        "user:123",
        "triggerConfig",
    } < hidden
    hidden |= {"tr_", "own-signing", "Bearer", "127.0.0.1", "bad.bad"}
    assert [word for word in hidden if word.encode() in text] == []
    with replicas.engine.client() as client:
        lasting = {key for key in found if client.ttl(key) < 0}
    assert lasting == {b"bff1:{told}:purges", b"bff1:{told}:revocations"}, "both are bounded"


# -- revocations


async def test_a_revocation_reaches_every_replica_also_one_that_starts_later(
    replicas: Replicas,
) -> None:
    one, two = await replicas.several(2, **OFF)
    token = one.token(*read("chat-1"), jti="lost")
    statuses = [(await world.get("chat-1", token=token)).status_code for world in (one, two)]
    assert statuses == [200, 200]

    response = await one.ops.post("/revocations", json={"jti": "lost"})
    assert response.status_code == 200
    (three,) = await replicas.several(1, **OFF)

    assert len(three.service.gateway.revocations) == 1, "before its first request"
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

    responses = [await w.get(id_) for w in worlds for id_ in ("chat-1", FRIENDLY["chat-1"])]
    assert {response.json()["taskIdentifier"] for response in responses} == {"renamed"}
    assert len(replicas.upstream.seen) == 2


async def test_a_purge_reaches_who_was_cut_off_meanwhile(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    for world in (one, two):
        await world.get("chat-1")
    with replicas.engine.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    await purge(one, "chat-1")

    await until(lambda: not two.service.gateway.cache._entries)


@pytest.mark.parametrize("purged", ["chat-1", FRIENDLY["chat-1"]])
async def test_purge_discards_the_load_in_flight(replicas: Replicas, purged: str) -> None:
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
        response = await two.get(id_)
        assert response.json()["taskIdentifier"] == "renamed", id_


# -- what is not ours


async def test_foreign_and_corrupt_values_are_dropped_and_counted(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, BFF_CACHE_TTL="60")
    await world.get("chat-1")
    await asyncio.sleep(0.05)
    with replicas.engine.client() as client:
        copies = [k for k in contents(replicas.engine) if k.endswith(b":chat-1}")]
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

            response = await world.get("chat-2")

            assert response.json()["externalId"] == "chat-2"
            await asyncio.sleep(0.05)
            counts = world.telemetry.counts
            assert counts["bff_shared_copies", "dropped"] == number
            assert client.get(other) not in spoilt.values()
            client.delete(other)


@pytest.mark.parametrize("junk", ["another type", "a text", "a number, for ever"])
async def test_whatever_stands_under_our_keys_is_got_over(replicas: Replicas, junk: str) -> None:
    wide = dict.fromkeys(("BFF_RATE_LIMIT", "BFF_IP_RATE_LIMIT"), "1000000/minute")
    told = wide | {"BFF_UPSTREAM_BUDGET": "100/minute", "BFF_CACHE_TTL": "60"}
    (world,) = await replicas.several(1, **told)
    await world.get("chat-1")
    await purge(world, "chat-1")
    await world.get("chat-1")
    bucket = replicas.upstream.environments[0].bucket
    bucket.interval, bucket.since = 60.0, time.time()
    await asyncio.sleep(0.05)
    namespace = world.service.sharing.namespaces["default"]
    limits = world.service.gateway.config.limits
    keys = {
        *contents(replicas.engine),
        *(
            f"bff1:{{{namespace.origin}}}:{what}".encode()
            for what in ("spent", "allowance", "pause")
        ),
        f"bff1:{{{namespace.copies}:chat-1}}:load".encode(),
    }
    assert len(keys) >= 11
    for key in keys:
        with replicas.engine.client() as client:
            client.delete(key)
            if junk == "another type":
                client.sadd(key, "foreign")
            else:
                client.set(key, "foreign" if junk == "a text" else 10**17)
        if key.startswith(b"bff1:w:"):
            for limiter in (limits.caller, limits.address):
                limiter._windows.clear()
        for _ in range(2):
            world.service.gateway.cache.drop("default", "chat-1")
            assert (await world.get("chat-1")).status_code == 200, key
            await purge(world, "chat-1")

    kept = world.telemetry.counts["bff_shared_copies", "kept"]
    await until(lambda: world.service.sharing.up)
    assert (await world.get("chat-1")).status_code == 200
    await until(lambda: world.telemetry.counts["bff_shared_copies", "kept"] == kept + 1)
    assert world.telemetry.counts["bff_store_commands", "foreign"] >= 3
    assert world.telemetry.counts["bff_store_commands", "late"] == 0


async def test_a_foreign_message_makes_nobody_deaf(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    await two.get("chat-1")
    with replicas.engine.client() as client:
        for stream in ("purges", "revocations"):
            key = f"bff1:{{told}}:{stream}"
            client.xadd(key, {b"\xff": b"\xff"})
            client.xadd(key, {"revocation": "[]", "id": "chat-1"})
            client.xadd(key, {"revocation": '{"before": 1' + "0" * 400 + "}"})
            client.xadd(key, {"place": two.service.sharing.namespaces["default"].origin, "id": ""})

    await purge(one, "chat-1")
    await until(lambda: not two.service.gateway.cache._entries)

    await two.get("chat-1")
    with replicas.engine.client() as client:
        client.delete("bff1:{told}:purges")
        client.sadd("bff1:{told}:purges", "foreign")
        await until(lambda: client.type("bff1:{told}:purges") == b"none")
        assert client.xlen("bff1:{told}:revocations") == 4, "what is ours stays"
    await purge(one, "chat-1")
    await until(lambda: not two.service.gateway.cache._entries)


# -- tokens that upstream verifies


async def test_tokens_that_upstream_verifies_are_counted_by_all(replicas: Replicas) -> None:
    """What they are counted by is leased after the test, where nobody can decide again."""
    told = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream", "BFF_RATE_LIMIT": "10/minute"}
    worlds = await replicas.several(2, **told)
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


async def test_a_bad_token_that_waits_for_a_lease_is_counted_once(replicas: Replicas) -> None:
    (world,) = await replicas.several(1)

    await world.get("chat-1", token="bad.bad.bad")

    assert world.telemetry.counts["bff_bad_tokens", "token_invalid"] == 1

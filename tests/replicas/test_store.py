"""Stored values are bounded and hold no secret; a foreign value is replaced."""

import asyncio
import time

import pytest
from support.replicas import Replicas, contents, copy_key, purge, until, written
from support.world import FRIENDLY, OFF, PATIENCE, read

from bff.demo.upstream import session
from bff.replicas import keys, shared_loads
from bff.replicas.announcements import STREAMS


def texts(value: object) -> set[str]:
    """Collect the texts of a document, names included."""
    if isinstance(value, dict):
        return set().union(*({name} | texts(part) for name, part in value.items()))
    if isinstance(value, list):
        return set().union(*map(texts, value))
    return {value} if isinstance(value, str) else set()


async def test_store_holds_nothing_hidden_and_every_key_expires(replicas: Replicas) -> None:
    one, two = await replicas.several(2, BFF_UPSTREAM_BUDGET="100/minute")
    shown: set[str] = set()
    for world in (one, two):
        for id_ in ("chat-1", "chat-2", "chat-closed", FRIENDLY["chat-2"], "none"):
            shown |= texts((await world.get(id_)).json())
        await world.get("chat-1", token="bad.bad.bad")
    await purge(one, "chat-2")
    await one.ops.post("/revocations", json={"jti": "lost"})
    await written(one, two)

    values = contents(replicas.engine)

    assert any(b"chat-closed" in value for value in values.values()), "copies are stored"
    kinds = {key.split(b":")[1] for key in values} | {key.rpartition(b":")[2] for key in values}
    assert {b"w", b"replicas", b"purges", b"revocations", b"spent", b"marker"} <= kinds
    text = b"\n".join(key + b" " + value for key, value in values.items())
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
        lasting = {key for key in values if client.ttl(key) < 0}
    bounded = {keys.MARKER.encode(), *(keys.stream(name).encode() for name in STREAMS)}
    sealed = {key for key in lasting if key.startswith(keys.sealed("").encode())}
    assert lasting | {keys.stream("news").encode()} == bounded | sealed
    assert len(sealed) == 1, "one for each secret key"


@pytest.mark.parametrize("junk", ["another type", "a text", "a number that never expires"])
async def test_foreign_value_under_any_key_is_replaced(
    replicas: Replicas, junk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = dict.fromkeys(("BFF_RATE_LIMIT", "BFF_IP_RATE_LIMIT"), "1000000/minute")
    changes = wide | {"BFF_UPSTREAM_BUDGET": "100/minute", "BFF_CACHE_TTL": "60"}
    (world,) = await replicas.several(1, **changes)
    await world.get("chat-1")
    await purge(world, "chat-1")
    await world.get("chat-1")
    bucket = replicas.upstream.environments[0].bucket
    bucket.interval, bucket.since = 60.0, time.time()
    copy = copy_key(world, "chat-1").encode()
    await until(lambda: copy in contents(replicas.engine))
    namespace = world.service.sharing.namespaces["default"]
    limits = world.service.gateway.config.limits
    others = (
        keys.spent(namespace.origin, "spent"),
        *(make(namespace.origin) for make in (keys.allowance, keys.pause)),
        copy.decode() + ":load",
    )
    names = {*contents(replicas.engine), *(name.encode() for name in others)}
    assert len(names) >= 11
    monkeypatch.setattr(shared_loads, "CLAIM_SECONDS", 1.0)  # some end only by expiry
    for key in names:
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

    monkeypatch.setattr(shared_loads, "CLAIM_SECONDS", PATIENCE)
    await written(world)
    kept = world.telemetry.counts["bff_shared_copies", "kept"]
    await until(lambda: world.service.sharing.up)
    assert (await world.get("chat-1")).status_code == 200
    await until(lambda: world.telemetry.counts["bff_shared_copies", "kept"] == kept + 1)
    assert world.telemetry.counts["bff_store_commands", "foreign"] >= 3
    assert world.telemetry.counts["bff_store_commands", "late"] == 0


async def test_store_clock_that_is_set_back_prolongs_nothing(replicas: Replicas) -> None:
    """Everything stored with a time would otherwise last an hour longer."""
    changes = {"BFF_UPSTREAM_BUDGET": "2/minute", "BFF_RATE_LIMIT": "10/minute"}
    (world,) = await replicas.several(1, **changes)
    token = world.token(*read("chat-1"), act={"sub": "someone"})
    for id_ in ("chat-1", "chat-2"):
        await world.get(id_)
    await world.get("chat-1", token=token)
    hour = 3_600_000
    with replicas.engine.client() as client:
        (spent,) = client.keys("*:spent")
        for n in range(client.llen(spent)):
            client.lset(spent, n, int(client.lindex(spent, n)) + 1000 * hour)
        for key in client.keys("*"):
            client.pexpire(key, hour + 60_000)
    for limiter in (
        world.service.gateway.config.limits.caller,
        world.service.gateway.config.limits.address,
    ):
        limiter._windows.clear()

    assert (await world.get("chat-closed")).status_code == 200, "the budget is free again"
    response = await world.get("chat-1", token=token)
    assert int(response.headers["ratelimit"].rpartition("t=")[2]) <= 60


async def test_lowest_report_of_a_bucket_period_counts(replicas: Replicas) -> None:
    """Three loads at once take the bucket below its half; upstream's answers arrive unordered."""
    one, two = await replicas.several(2, **OFF)
    now = time.time()
    for world, remaining in ((one, 50), (two, 52), (one, 51)):
        world.service.sharing.limits.observe("default", limit=100, remaining=remaining, reset=30.0)
        await written(world)
    assert (await two.get("chat-2")).status_code == 503
    one.service.sharing.limits.observe("default", limit=100, remaining=99, reset=now - time.time())
    await written(one)
    assert (await two.get("chat-2")).status_code == 503, "a report of an earlier period"
    one.service.sharing.limits.observe("default", limit=100, remaining=99, reset=40.0)
    await asyncio.sleep(1.0)  # for which a replica remembers what the store said
    assert (await two.get("chat-2")).status_code == 200


async def test_absurd_reset_of_upstream_is_bounded(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF)
    one.answer(200, session(1, "chat-1"), x_ratelimit_limit="100", x_ratelimit_remaining="0",
               x_ratelimit_reset="99999999999999")  # fmt: skip
    await one.get("chat-1")
    with replicas.engine.client() as client:
        await until(lambda: client.keys("*:allowance"))
        assert client.ttl(client.keys("*:allowance")[0]) <= 60

    assert (await two.get("chat-2")).status_code == 503

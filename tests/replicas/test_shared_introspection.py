"""Replicas share upstream's answer on a token, through a real store.

No test can move the store's clock, so the clocks of the replicas are moved. The state machine in
`incidents/test_incident_13_tokens.py` lets minutes pass for the replicas and the store alike.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Iterator

import pytest
from support.engines import Engine
from support.replicas import Relay, Replicas, ShiftedClock, contents, events, until, written
from support.world import FRIENDLY, OFF, OWN_KEY, ROOT_KEY, SECRET_KEY, World, claims, read, sign

from bff.demo.upstream import Answer, Seen
from bff.replicas import shared_loads
from bff.replicas.codec import (
    Namespace,
    decode_introspection,
    encode_introspection,
    introspection_name,
)
from bff.tokens.introspected import Introspection

OPAQUE: dict[str, str | None] = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}
SETTINGS = OFF | OPAQUE | {"BFF_CACHE_TTL": "600"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Valkey alone: introspections use the same commands as copies, which are tested on both."""
    with Engine("valkey", tmp_path_factory.mktemp("store")) as engine:
        yield engine


async def shifted(replicas: Replicas, number: int, **changes: str | None) -> list[World]:
    return [await replicas.add(ShiftedClock(), **SETTINGS | changes) for _ in range(number)]


def minted(*scopes: object, key: str = ROOT_KEY, **changes: object) -> str:
    return sign(claims(time.time(), *scopes, **changes), key)


def senders(replicas: Replicas) -> list[str]:
    """List what each request to upstream carried: the secret key or a token."""
    keys = [seen.header("authorization") for seen in replicas.upstream.seen]
    return ["key" if "tr_" in str(key) else "token" for key in keys]


async def ask(world: World, token: str, id_: str = "chat-1") -> tuple[int, str]:
    response = await world.get(id_, token=token)
    return response.status_code, response.json().get("code", "")


def counted(world: World, result: str) -> float:
    return world.telemetry.counts["bff_shared_verdicts", result]


async def kept(world: World, number: float = 1) -> None:
    """Wait until a replica has stored *number* introspections."""
    await until(lambda: counted(world, "kept") >= number)


async def test_replicas_introspect_a_token_once_a_minute(
    replicas: Replicas,
) -> None:
    worlds = await shifted(replicas, 4)
    token = minted(*read("chat-1", "chat-2"))

    async def slowly(_: Seen) -> None:
        await asyncio.sleep(0.1)

    replicas.upstream.override = slowly
    for turn in range(1, 11):
        at_once = [ask(w, token, id_) for w in worlds for id_ in ("chat-1", "chat-2") * 10]
        assert {status for status, _ in await asyncio.gather(*at_once)} == {200}
        assert senders(replicas).count("token") == 2, f"after {3 * (turn - 1)} seconds"
        for world in worlds:
            world.clock.advance(3)
    assert senders(replicas).count("key") == 2, "a copy for the replicas that did not introspect"

    for world in worlds:
        world.clock.advance(30)
    await asyncio.gather(*(ask(world, token) for world in worlds))

    assert senders(replicas).count("token") == 3, "once more after a minute"


async def test_introspection_is_shared_under_both_ids_and_for_lists(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1", "chat-2"))
    for number, id_ in enumerate(("chat-1", FRIENDLY["chat-2"]), start=1):
        assert (await ask(one, token, id_))[0] == 200
        await kept(one, number)

    assert (await ask(two, token, FRIENDLY["chat-1"]))[0] == 200
    response = await two.browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {token}"}
    )

    assert [one["externalId"] for one in response.json()["data"]] == ["chat-1", "chat-2"]
    assert senders(replicas).count("token") == 2
    response = await two.get("chat-1", token=token)
    assert response.headers["cache-status"] == "bff; hit", "decided from memory from now on"


async def test_sharing_does_not_prolong_an_introspection(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"))
    await ask(one, token)
    await kept(one)
    two.clock.advance(30)
    assert (await ask(two, token))[0] == 200
    assert senders(replicas).count("token") == 1

    two.clock.advance(10)
    assert (await ask(two, token))[0] == 200
    assert senders(replicas).count("token") == 1, "40 seconds old"
    two.clock.advance(20)
    assert (await ask(two, token))[0] == 200

    assert senders(replicas).count("token") == 2, "though this replica had it for 30 seconds only"


async def test_introspection_ends_with_its_token_at_every_replica(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"), exp=int(time.time()) + 20)
    await ask(one, token)
    await kept(one)
    with replicas.engine.client() as client:
        left = [client.pttl(key) for key in introspections(replicas)]
    assert len(left) == 2
    assert 0 < min(left) <= max(left) <= 20_000
    assert (await ask(two, token))[0] == 200
    two.clock.advance(20)

    assert await ask(two, token) == (401, "token_expired")
    (ends,) = two.service.gateway.introspections._authentic.values()
    assert ends <= two.clock()[0]


async def test_token_that_expires_during_introspection_is_answered(
    replicas: Replicas,
) -> None:
    """The other replica's introspection has expired for this one, which must not wait for it."""
    one, two = await shifted(replicas, 2)
    started, release = asyncio.Event(), asyncio.Event()

    async def hold(_: Seen) -> None:
        started.set()
        await release.wait()

    replicas.upstream.override = hold
    token = minted(*read("chat-1"), exp=int(time.time()) + 20)
    first = asyncio.create_task(ask(one, token))
    await started.wait()
    url, headers = "/api/v1/sessions", {"authorization": f"Bearer {token}"}
    second = asyncio.create_task(two.browser.get(url, headers=headers))
    await until(lambda: two.service.gateway._introspector.in_flight._tasks)
    two.clock.advance(20)
    release.set()

    assert (await first)[0] == 200
    assert (await asyncio.wait_for(second, 10)).status_code in (200, 401)
    assert await ask(two, token) == (401, "token_expired")


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
async def test_wrong_clock_does_not_prolong_an_introspection(
    replicas: Replicas, off: float
) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"), exp=int(time.time()) + 9000, iat=int(time.time()) - 4000)
    assert isinstance(two.clock, ShiftedClock)
    two.clock.off = off
    await ask(one, token)
    await kept(one)
    await asyncio.sleep(0.3)
    expected = 1 if off < 0 else 2

    assert (await ask(two, token))[0] == 200
    assert senders(replicas).count("token") == expected, (
        "it looks old to a replica whose clock is ahead"
    )
    if off < 0:
        (ends, _) = two.service.gateway.introspections._accepted.values()
        assert ends - two.clock()[0] <= 59.8, "by the store's clock"
    await written(two)
    assert (await ask(one, token))[0] == 200
    assert senders(replicas).count("token") == expected


async def test_refusal_is_shared_for_five_seconds(replicas: Replicas) -> None:
    one, two, three = await shifted(replicas, 3)
    forged, missing = minted(*read("chat-1"), key=OWN_KEY), minted(*read("nope"))
    assert await ask(one, forged) == (401, "token_invalid")
    assert await ask(one, missing, "nope") == (404, "not_found")
    await kept(one, 2)

    two.clock.advance(1)
    for world in (two, three):
        assert await ask(world, forged) == (401, "token_invalid")
        assert await ask(world, missing, "nope") == (404, "not_found")
    assert len(replicas.upstream.seen) == 2

    two.clock.advance(4)
    await ask(two, forged)
    assert len(replicas.upstream.seen) == 3, "five seconds old, though this replica had it for four"


async def test_upstream_limit_on_a_token_holds_for_all_replicas(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"))
    one.answer(429, {"error": "slow down"}, retry_after="30")
    assert await ask(one, token) == (503, "over_budget")
    await kept(one)
    one.answer(0)
    two.clock.advance(10)

    response = await two.get("chat-1", token=token)

    assert (response.status_code, response.json()["code"]) == (503, "over_budget")
    assert 1 <= int(response.headers["retry-after"]) <= 20, "ten of the 30 seconds have passed"
    assert len(replicas.upstream.seen) == 1
    assert (await ask(two, minted(*read("chat-1"), jti="2")))[0] == 200, (
        "the limit is of that token alone"
    )


async def test_undecided_introspection_is_not_shared(replicas: Replicas) -> None:
    worlds = await shifted(replicas, 2)
    token = minted(*read("chat-1"))

    async def slowly_fail_once(_: Seen) -> Answer | None:
        await asyncio.sleep(0.1)
        return Answer(500, "trouble") if len(replicas.upstream.seen) == 1 else None

    replicas.upstream.override = slowly_fail_once
    responses = await asyncio.gather(*(ask(world, token) for world in worlds))

    assert sorted(status for status, _ in responses) == [200, 502]
    assert senders(replicas) == ["token", "token"]


async def test_claim_of_a_dead_replica_delays_others_by_a_second(
    replicas: Replicas,
) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"))
    await ask(one, token)
    await kept(one)
    began = time.monotonic()
    with replicas.engine.client() as client:
        for name in introspections(replicas):
            client.delete(name)
            client.set(name + b":load", "token of the dead replica", px=1000)

    assert (await ask(two, token))[0] == 200

    assert time.monotonic() - began >= 0.9
    assert senders(replicas).count("token") == 2


async def test_replicas_introspect_alone_without_the_store(own_replicas: Replicas) -> None:
    worlds = await shifted(own_replicas, 2, BFF_STORE_TIMEOUT="0.5")
    own_replicas.engine.kill()
    token = minted(*read("chat-1"))

    assert {(await ask(world, token))[0] for world in worlds} == {200}
    assert {(await ask(world, token))[0] for world in worlds} == {200}

    assert senders(own_replicas) == ["token", "token"]


async def test_slow_store_counts_as_down_for_introspections(replicas: Replicas) -> None:
    async with Relay(replicas.engine.port) as relay:
        changes = {"BFF_STORE_URL": relay.url, "BFF_STORE_TIMEOUT": "0.2"}
        (world,) = await shifted(replicas, 1, **changes)
        token = minted(*read("chat-1"))
        relay.delay = 1.0

        assert [(await ask(world, token))[0] for _ in range(2)] == [200, 200]

        await until(lambda: events(world, "store_away"))
        assert [event["reason"] for event in events(world, "store_away")] == ["slow"]
        assert senders(replicas) == ["token"]
        assert introspections(replicas) == {}


# -- forged introspections


INTROSPECTION = Introspection("ok", ("chat-1", FRIENDLY["chat-1"]), 0.0, 60.0)


def introspections(replicas: Replicas) -> dict[bytes, bytes]:
    """Read the introspections in the store."""
    values = contents(replicas.engine).items()
    return {k: value for k, value in values if b":verdicts:" in k and not k.endswith(b":load")}


def introspection_key(world: World, token: str, id_: str = "chat-1") -> str:
    namespace = world.service.sharing.namespaces["default"]
    return introspection_name(namespace, hashlib.sha256(token.encode()).digest(), id_)


def with_a_digest(value: bytes) -> bytes:
    """Replace the HMAC by a digest, which anyone can make."""
    line, _, text = value.partition(b"\n")
    head = line.rpartition(b" ")[0]
    digest = hashlib.sha256(head + b"\n" + text).hexdigest().encode()
    return b"%b %b\n%b" % (head, digest, text)


FORGED = {
    "of another token": lambda good, _digest, _own: good,
    "with a digest": lambda good, _digest, _own: with_a_digest(good),
    "with another HMAC key": lambda _good, digest, _mine: encode_introspection(
        Namespace("origin", "projection", b"a key"), digest, INTROSPECTION, time.time(), 1
    ),
    "changed": lambda _good, _digest, own: own[:-8] + b"AAAAAAA=",
    "cut off": lambda good, _digest, _mine: good[:40],
    "not an introspection": lambda _good, _digest, _mine: b"hello",
    "empty": lambda _good, _digest, _mine: b"",
}


@pytest.mark.parametrize("name", FORGED)
async def test_forged_introspection_in_the_store_grants_nothing(
    replicas: Replicas, name: str
) -> None:
    """An attacker with the store can write and move values, but has no key."""
    one, two = await shifted(replicas, 2)
    good, forged = minted(*read("chat-1")), minted(*read("chat-1"), key=OWN_KEY)
    for token in (good, forged):
        await ask(one, token)
    await kept(one, 2)
    digest, key = hashlib.sha256(forged.encode()).digest(), introspection_key(one, forged)
    with replicas.engine.client() as client:
        value = FORGED[name](client.get(introspection_key(one, good)), digest, client.get(key))
        client.set(key, value, px=60_000)

        assert await ask(two, forged) == (401, "token_invalid")

        assert counted(two, "dropped") == 1
        await kept(two)
        namespace = two.service.sharing.namespaces["default"]
        kept_now = decode_introspection(namespace, digest, "chat-1", client.get(key))
        assert kept_now is not None
        assert kept_now.code == "token_invalid"
    assert senders(replicas) == ["token"] * 3


async def test_introspection_of_one_session_holds_for_no_other(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1", "nope"))
    assert (await ask(one, token))[0] == 200
    assert (await ask(one, token, "nope"))[0] == 404
    await kept(one, 2)
    with replicas.engine.client() as client:
        good = client.get(introspection_key(one, token))
        client.set(introspection_key(one, token, "nope"), good, px=60_000)

    assert await ask(two, token, "nope") == (404, "not_found")
    assert counted(two, "dropped") == 1


async def test_replayed_introspection_is_too_old(replicas: Replicas) -> None:
    """Also if it never expires in the store."""
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"))
    assert (await ask(one, token))[0] == 200
    await kept(one)
    values = introspections(replicas)
    replicas.upstream.environments[0].root_key = "tr_prod_rotated00000000000000000001"
    two.clock.advance(60)

    with replicas.engine.client() as client:
        for key, value in values.items():
            client.set(key, value, px=60_000)
        assert await ask(two, token) == (401, "token_invalid")
        await kept(two)
        two.service.gateway.introspections.forget()
        assert isinstance(two.clock, ShiftedClock)
        two.clock.ahead = 0.0
        for key, value in values.items():
            client.set(key, value)
        assert await ask(two, token) == (401, "token_invalid")
    assert counted(two, "dropped") == 1


@pytest.mark.parametrize("junk", ["another type", "a number that never expires"])
async def test_foreign_value_of_an_introspection_is_replaced(
    replicas: Replicas, junk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"))
    await ask(one, token)
    await kept(one)
    with replicas.engine.client() as client:
        names = list(introspections(replicas))
        for key in [*names, *(name + b":load" for name in names)]:
            client.delete(key)
            if junk == "another type":
                client.sadd(key, "foreign")
            else:
                client.set(key, 10**17)
    monkeypatch.setattr(shared_loads, "CLAIM_SECONDS", 1.0)  # some end only by expiry
    for _ in range(4):  # each key is replaced when it is read
        assert (await ask(two, token))[0] == 200
        two.service.gateway.introspections.forget()
        await until(lambda: two.service.sharing.up)
    await until(lambda: counted(two, "kept") or counted(two, "used"))


CHANGES = {
    "another secret key": {"TRIGGER_SECRET_KEY": "tr_prod_sk_another0000000000000001"},
    "another upstream": {"TRIGGER_API_URL": "http://127.0.0.1:2"},
    "who verifies": {"BFF_SIGNING_KEYS": OWN_KEY, "BFF_VERIFY": "local,upstream"},
    "a branch": {"BFF_BRANCH": "feat/one"},
}


@pytest.mark.parametrize("name", CHANGES)
async def test_introspections_are_not_shared_between_settings(
    replicas: Replicas, name: str
) -> None:
    (one,) = await shifted(replicas, 1)
    (two,) = await shifted(replicas, 1, **CHANGES[name])
    (three,) = await shifted(replicas, 1)
    token = minted(*read("chat-1"))
    await ask(one, token)
    await kept(one)
    assert len(replicas.upstream.seen) == 1

    await ask(two, token)
    assert senders(replicas).count("token") == 2
    three.reload(**CHANGES[name])
    await kept(two)
    await ask(three, token)

    assert senders(replicas).count("token") == 2, "three uses what two stored"
    assert counted(two, "dropped") + counted(three, "dropped") == 0, (
        "no replica drops what another stored"
    )


async def test_new_signing_keys_need_new_introspections(replicas: Replicas) -> None:
    """As in one process, though upstream's answer does not depend on the signing keys."""
    changes = {"BFF_VERIFY": "local,upstream", "BFF_SIGNING_KEYS": OWN_KEY}
    one, two = await shifted(replicas, 2, **changes)
    token = minted(*read("chat-1"))
    await ask(one, token)
    await kept(one)

    two.reload(BFF_SIGNING_KEYS=OWN_KEY[::-1])
    await ask(two, token)

    assert senders(replicas).count("token") == 2


async def test_introspection_begun_before_a_reload_is_not_stored(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    started, release = asyncio.Event(), asyncio.Event()

    async def hold(_: Seen) -> None:
        started.set()
        await release.wait()

    replicas.upstream.override = hold
    token = minted(*read("chat-1"))
    under_way = asyncio.create_task(ask(one, token))
    await started.wait()
    one.reload(BFF_SIGNING_KEYS=OWN_KEY, BFF_VERIFY="local")
    replicas.upstream.override = None
    release.set()

    assert await under_way == (401, "token_invalid")
    assert (await ask(two, token))[0] == 200
    assert senders(replicas) == ["token", "token"]
    assert counted(one, "kept") == 0


async def test_revoked_token_is_refused_despite_an_introspection(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    token = minted(*read("chat-1"), jti="lost", iat=int(time.time()) - 5)
    assert (await ask(one, token))[0] == 200
    await kept(one)

    response = await one.ops.post("/revocations", json={"session": "chat-1"})
    assert response.status_code == 200
    await until(lambda: len(two.service.gateway.revocations) == 1)
    assert await ask(two, token) == (403, "unauthorized")
    await one.ops.post("/revocations", json={"jti": "lost"})
    await until(lambda: len(two.service.gateway.revocations) == 2)
    assert await ask(two, token) == (401, "token_revoked")


# -- what the store and other callers learn


async def test_store_reveals_nothing_of_a_token(replicas: Replicas) -> None:
    one, two = await shifted(replicas, 2)
    tokens = [minted(*read("chat-1"), key=key, jti="sentinel") for key in (ROOT_KEY, OWN_KEY)]
    for world in (one, two):
        for token in tokens:
            await ask(world, token)
    await kept(one, 2)

    values = introspections(replicas)
    text = b"\n".join(key + b" " + value for key, value in values.items())
    sealing_key = one.service.sharing.namespaces["default"].sealing_key
    secrets = [sealing_key.hex(), SECRET_KEY, "sentinel", "eyJ"]
    for token in tokens:
        digest = hashlib.sha256(token.encode())
        secrets += [token.rpartition(".")[2], digest.hexdigest()[:16]]
        secrets.append(base64.urlsafe_b64encode(digest.digest())[:16].decode())
    assert len(values) == 3
    assert [secret for secret in secrets if secret.encode() in text] == []
    with replicas.engine.client() as client:
        assert all(0 < client.pttl(key) <= 60_000 for key in values)
    shown = repr(one.service.sharing.namespaces) + one.log.getvalue() + two.log.getvalue()
    assert [secret for secret in secrets if secret in shown] == []
    assert repr(sealing_key) not in shown


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "not shared"])
async def test_refused_aliases_get_identical_bytes(replicas: Replicas, shared: bool) -> None:
    one, two = await shifted(replicas, 2, BFF_BAD_TOKEN_LIMIT="1000/minute")
    await ask(one, minted(*read("chat-1")))  # a copy in one, and maybe in the store
    answers, charges = [], set()
    for id_ in ("chat-1", "chat-closed", "no-such-chat"):
        token = minted(*read(FRIENDLY["chat-2"]), jti=id_)
        for world in (one, two):
            world.service.gateway.loader.pairs.forget()
        if shared:
            before = counted(one, "kept")
            assert await ask(one, token, id_) == (403, "unauthorized")
            await kept(one, before + 1)
        before = bad_tokens(two)
        responses = [await two.get(id_, token=token) for _ in range(2)]
        charges.add(bad_tokens(two) - before)
        headers = [dict(response.headers) | {"x-request-id": "one"} for response in responses]
        answers.append(([(r.status_code, r.content) for r in responses], headers))

    assert all(answer == answers[0] for answer in answers), answers
    assert {status for status, _ in answers[0][0]} == {403}
    assert charges == {0}, "the token is good"

    token = minted(*read(FRIENDLY["chat-2"]), jti="one")
    assert (await ask(one, token, "chat-2"))[0] == 200
    assert (await ask(two, token, "chat-2"))[0] == 200, "an alias of the named id"
    asked = {seen.raw_path.rpartition("/")[2] for seen in replicas.upstream.seen}
    assert asked == {"chat-1", FRIENDLY["chat-2"]}, "no call for an id that is not named"


def bad_tokens(world: World) -> int:
    """Count what this replica charged to the bad-token limit."""
    return sum(w.used for w in world.service.gateway.config.limits.bad_token._windows.values())


async def test_bad_token_limit_stops_a_flood_before_the_store(
    replicas: Replicas,
) -> None:
    worlds = await shifted(replicas, 2, BFF_BAD_TOKEN_LIMIT="10/minute")
    tokens = [minted(*read("chat-1"), key=OWN_KEY, jti=str(n)) for n in range(60)]

    responses = [await ask(worlds[n % 2], token) for n, token in enumerate(tokens)]

    assert len(replicas.upstream.seen) == 10
    assert {status for status, _ in responses} == {401, 429}
    assert len(introspections(replicas)) <= 10

"""Incidents 60 to 67: what was taken back comes back, and what many share is moved by one."""

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.engines import Engine
from support.faulty_store import REFUSALS, FaultyStore
from support.replicas import (
    Relay,
    Replicas,
    contents,
    copy_key,
    events,
    heard,
    heartbeat,
    purge,
    until,
    written,
)
from support.world import (
    FRIENDLY,
    NEW_KEY,
    OFF,
    OWN_KEY,
    ROOT_KEY,
    World,
    claims,
    read,
    sign,
)

from bff.cli import main
from bff.copies import load_queue
from bff.demo.upstream import Answer, session
from bff.replicas import announcements, connection, keys, republisher
from bff.replicas.valkey import StoreUnavailable

SECOND_ROOT_KEY = "tr_prod_rootKEYsentinel000000002"
IDS = [f"many-{n}" for n in range(100)]


def add_many(replicas: Replicas) -> None:
    for n, id_ in enumerate(IDS, start=100):
        replicas.upstream.environments[0].add(session(n, id_))


async def list_of(world: World, token: str) -> Any:
    return await world.browser.get(
        "/api/v1/sessions?page[size]=100", headers={"authorization": f"Bearer {token}"}
    )


# -- 60: one caller takes a replica off its store


async def test_52_a_late_answer_leaves_the_store_up(replicas: Replicas) -> None:
    async with Relay(replicas.engine.port) as relay:
        (world,) = await replicas.several(1, BFF_STORE_URL=relay.url)
        link = world.service.sharing.store.connection
        relay.delay = 0.02
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await link.execute(("GET", keys.MARKER), timeout=0.0)
            with pytest.raises(StoreUnavailable):
                await link.execute(("GET", keys.MARKER, "too many"), timeout=5.0)

        assert link.up
        assert events(world, "store_away") == [], "requests never decide that"


async def test_52_lists_of_one_caller_leave_the_store_up(replicas: Replicas) -> None:
    """Five lists a second, each of which starts a hundred loads."""
    changes = {"BFF_UPSTREAM_BUDGET": "10/second", "BFF_CACHE_TTL": "0.1"}
    changes |= {"BFF_STORE_TIMEOUT": "1"}  # the default is too short for a busy machine
    worlds = await replicas.several(2, **changes)
    add_many(replicas)
    token = worlds[0].token(*read(*IDS), act={"sub": "someone"})

    lists = []
    for number in range(15):
        lists.append(asyncio.create_task(list_of(worlds[number % 2], token)))
        await asyncio.sleep(0.2)
    statuses = {(await one).status_code for one in lists}

    assert statuses <= {200, 503}
    assert [events(world, "store_away") for world in worlds] == [[], []]


async def test_52_loads_at_the_store_are_bounded(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that waits for its turn loses none of its time."""
    monkeypatch.setattr(load_queue, "MAX_UNSPENT", 1000)  # the bound of one environment
    (world,) = await replicas.several(1, **OFF)
    add_many(replicas)
    store, most, at_once = world.service.sharing.store, 0, 0
    load = store.load

    async def counted(*arguments: Any, timeout: float, **more: Any) -> Any:
        nonlocal most, at_once
        at_once += 1
        most = max(most, at_once)
        left.append(timeout)
        try:
            await asyncio.sleep(0.02)
            return await load(*arguments, timeout=timeout, **more)
        finally:
            at_once -= 1

    store.load, left = counted, []
    responses = await asyncio.gather(*(world.get(id_) for id_ in IDS))

    assert {response.status_code for response in responses} == {200}
    assert most == 32
    assert min(left) > 15.0, "of 30 seconds"


async def test_52_replica_remembers_a_spent_budget(replicas: Replicas) -> None:
    changes = OFF | {"BFF_UPSTREAM_BUDGET": "5/minute"}
    (world,) = await replicas.several(1, **changes)
    add_many(replicas)
    store, spent = world.service.sharing.store, []
    load = store.load

    async def counted(name: str, token: str, *rest: Any, **named: Any) -> Any:
        if token:
            spent.append(name)
        return await load(name, token, *rest, **named)

    store.load = counted
    await asyncio.gather(*(world.get(id_) for id_ in IDS[:6]))
    first, began = len(spent), time.monotonic()
    statuses = [(await world.get(id_)).status_code for id_ in IDS[6:60]]
    seconds = time.monotonic() - began

    assert first <= 6
    assert statuses == [503] * 54
    assert len(spent) <= first + 2 + seconds, "each second once, not for each load"


# -- 61: revocations are forgotten


class Lost:
    """Revocations that replicas know, of tokens that a replica which starts later must refuse."""

    def __init__(self, replicas: Replicas, worlds: list[World]) -> None:
        self.replicas = replicas
        self.worlds = worlds
        self.tokens: list[str] = []

    async def revoke(self, number: int) -> None:
        for n in range(number):
            self.tokens.append(self.worlds[0].token(*read("chat-1"), jti=f"lost-{n}"))
            response = await self.worlds[0].ops.post("/revocations", json={"jti": f"lost-{n}"})
            assert response.status_code == 200
        for world in self.worlds:
            revocations = world.service.gateway.revocations
            await until(lambda revocations=revocations: len(revocations) == number)

    async def are_known_to_a_new_replica(self) -> None:
        world = await self.replicas.add(**OFF)
        assert len(world.service.gateway.revocations) == len(self.tokens), "at its first request"
        for token in (self.tokens[0], self.tokens[-1]):
            assert (await world.get("chat-1", token=token)).json()["code"] == "token_revoked"


@pytest.fixture(params=[1, 2])
async def lost(
    own_replicas: Replicas, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Lost:
    monkeypatch.setattr(republisher, "_MAX_MESSAGES", 5)
    lost = Lost(own_replicas, await own_replicas.several(request.param, **OFF))
    await lost.revoke(20)
    return lost


def flush(engine: Engine) -> None:
    with engine.client() as client:
        client.flushall()


async def test_53_revocations_survive_a_flush_under_traffic(lost: Lost) -> None:
    world, ends = lost.worlds[0], False

    async def browse() -> None:
        while not ends:
            await world.get("chat-1")
            await world.get("chat-1", token=lost.tokens[0])
            await asyncio.sleep(0.01)

    browser = asyncio.create_task(browse())
    try:
        for _ in range(2):
            flush(lost.replicas.engine)
            await lost.are_known_to_a_new_replica()
    finally:
        ends = True
        await browser


async def test_53_revocations_survive_a_quick_restart(lost: Lost) -> None:
    lost.replicas.engine.kill()
    lost.replicas.engine.start()

    await lost.are_known_to_a_new_replica()


async def test_53_older_data_of_the_store_brings_nothing_back(own_replicas: Replicas) -> None:
    """The store restarts with the data of a minute ago, as after a failover that lost writes."""
    changes = OFF | {"BFF_CACHE_TTL": "60"}
    lost = Lost(own_replicas, await own_replicas.several(2, **changes))
    one, _ = lost.worlds
    await one.get("chat-1")
    await written(one)
    own_replicas.engine.execute("SAVE")
    await lost.revoke(2)
    await purge(one, "chat-1")
    own_replicas.engine.kill()
    own_replicas.engine.start()
    assert own_replicas.engine.execute("EXISTS", copy_key(one, "chat-1")) == "1"

    await lost.are_known_to_a_new_replica()
    calls = len(own_replicas.upstream.seen)
    new = await own_replicas.add(**changes)
    await new.get("chat-1")
    assert len(own_replicas.upstream.seen) == calls + 1, "not the purged copy"


async def test_53_revocations_survive_a_loss_while_republished(lost: Lost) -> None:
    """The store loses its data again after the first part of the revocations."""
    losses = 0
    for world in lost.worlds:
        link = world.service.sharing.store.connection
        execute = link.execute

        async def lossy(
            *commands: Any, timeout: float, execute: Callable[..., Awaitable[Any]] = execute
        ) -> Any:
            nonlocal losses
            answers = await execute(*commands, timeout=timeout)
            if (
                keys.REPUBLISHER in commands[0]
                and b"lost" in repr(commands).encode()
                and losses < 2
            ):
                losses += 1
                flush(lost.replicas.engine)
            return answers

        link.execute = lossy
    flush(lost.replicas.engine)
    await heartbeat(*lost.worlds)
    # Only then, because a replica that listens meanwhile knows the lost parts too.
    await until(lambda: losses == 2)
    engine = lost.replicas.engine
    await until(lambda: engine.execute("GET", keys.MARKER).startswith("complete "))

    await lost.are_known_to_a_new_replica()


async def test_53_replica_that_joins_meanwhile_knows_revocations(lost: Lost) -> None:
    """The others republish slowly; it starts after their first part."""
    began = asyncio.Event()
    for world in lost.worlds:
        link = world.service.sharing.store.connection
        execute = link.execute

        async def slowly(
            *commands: Any, timeout: float, execute: Callable[..., Awaitable[Any]] = execute
        ) -> Any:
            answers = await execute(*commands, timeout=timeout)
            if keys.REPUBLISHER in commands[0]:
                began.set()
                await asyncio.sleep(0.2)
            return answers

        link.execute = slowly
    flush(lost.replicas.engine)
    await heartbeat(*lost.worlds)
    await began.wait()

    await lost.are_known_to_a_new_replica()


async def test_53_revocations_return_with_a_partitioned_replica(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica completed the data without it, and then it knows more than the store has."""
    monkeypatch.setattr(republisher, "OTHERS_SECONDS", 0.3)
    async with AsyncExitStack() as stack:
        replicas = Replicas(own_engine, stack)
        relay = await stack.enter_async_context(Relay(own_engine.port))
        cut_off = await replicas.add(**OFF, BFF_STORE_URL=relay.url)
        assert (await cut_off.ops.post("/revocations", json={"jti": "lost"})).status_code == 200
        relay.target = 1
        relay.cut()
        await until(lambda: not cut_off.service.sharing.up)
        flush(own_engine)
        new = await replicas.add(**OFF)
        assert own_engine.execute("GET", keys.MARKER).startswith("complete ")
        assert len(new.service.gateway.revocations) == 0

        relay.target = own_engine.port
        await until(lambda: len(new.service.gateway.revocations) == 1)


@pytest.mark.parametrize("cut", [False, True])
async def test_53_replica_that_reads_no_revocations_says_so(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """Its heartbeats succeed: the store refuses one command, or one more connection."""
    monkeypatch.setattr(announcements, "FAILING_SECONDS", 0.2)
    monkeypatch.setattr(connection, "HEARTBEAT_SECONDS", 0.2)
    async with FaultyStore(replicas.engine.port) as store:
        one = await replicas.add(**OFF | {"BFF_STORE_URL": store.url})
        two = await replicas.add(**OFF)
        token = one.token(*read("chat-1"), jti="taken")
        assert (await one.get("chat-1", token=token)).status_code == 200
        for command in ("XREAD", "XREVRANGE"):
            if cut:
                store.cut_before.add(command)
            else:
                store.refuse[command] = REFUSALS["forbidden"]

        await until(lambda: not one.service.sharing.up)
        await heartbeat(one)
        assert not one.service.sharing.up, "it reads no announcements yet"
        purge = await one.ops.delete("/cache/sessions/chat-1")
        assert purge.status_code == 503
        assert (await two.ops.post("/revocations", json={"jti": "taken"})).status_code == 200
        store.heal()
        await until(lambda: one.service.sharing.up)

        assert (await one.get("chat-1", token=token)).json()["code"] == "token_revoked"
        assert [line["reason"] for line in events(one, "store_away")] == ["no_announcements"]


async def test_53_first_replica_waits_for_others_for_a_time(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(republisher, "OTHERS_SECONDS", 0.6)
    flush(own_engine)
    async with AsyncExitStack() as stack:
        replicas = Replicas(own_engine, stack)
        began = time.monotonic()
        first = await replicas.add(**OFF)
        assert time.monotonic() - began >= 0.6
        assert [line["event"] for line in first.logged()].count("store_incomplete") == 1
        assert own_engine.execute("GET", keys.MARKER).startswith("complete ")
        began = time.monotonic()
        monkeypatch.setattr(republisher, "OTHERS_SECONDS", 60.0)
        second = await replicas.add(**OFF)
        assert time.monotonic() - began < 30.0, "the data is complete"
        assert "store_incomplete" not in [line["event"] for line in second.logged()]


# -- 62: a purge is undone


class Held:
    """Upstream holds its first answer, and answers it with the document of that moment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.started, self.release = asyncio.Event(), asyncio.Event()
        world.upstream.override = self._hold

    async def _hold(self, _: object) -> Answer | None:
        if self.started.is_set():
            return None
        document = dict(self.world.upstream.environments[0].find("chat-1") or {})
        self.started.set()
        await self.release.wait()
        return Answer(200, document)

    def rename(self) -> None:
        self.world.upstream.environments[0].find("chat-1")["taskIdentifier"] = "renamed"


@pytest.mark.parametrize("purged", ["chat-1", FRIENDLY["chat-1"]])
@pytest.mark.parametrize("asked", ["chat-1", FRIENDLY["chat-1"]])
async def test_53_purge_wins_over_a_load_under_either_id(
    world: World, asked: str, purged: str
) -> None:
    """For those who wait since before the purge, and those who join after it."""
    held = Held(world)
    waiting = [asyncio.create_task(world.get(asked))]
    await held.started.wait()
    held.rename()
    await purge(world, purged)
    waiting.append(asyncio.create_task(world.get(asked)))
    token = world.token(*read(asked, "chat-2"))
    waiting.append(asyncio.create_task(list_of(world, token)))
    await asyncio.sleep(0.01)
    held.release.set()

    for response in await asyncio.gather(*waiting):
        assert "renamed" in response.text
        assert (
            "my-chat" not in response.text.replace(FRIENDLY["chat-2"], "")
            or "data" in response.text
        )
    assert (await world.get(asked)).json()["taskIdentifier"] == "renamed"


async def test_53_purge_wins_over_an_introspection(world: World) -> None:
    """Also if a load of another session ends meanwhile."""
    await world.start(BFF_VERIFY="local,upstream")
    opaque = sign(claims(world.clock.wall, *read("chat-1")), ROOT_KEY)
    held = Held(world)
    waiting = asyncio.create_task(world.get("chat-1", token=opaque))
    await held.started.wait()
    held.rename()
    await purge(world, "chat-1")
    assert (await world.get("chat-2")).status_code == 200
    held.release.set()

    assert (await waiting).json()["taskIdentifier"] == "renamed"
    assert (await world.get("chat-1")).json()["taskIdentifier"] == "renamed"


@pytest.mark.parametrize("purged", ["chat-1", FRIENDLY["chat-1"]])
@pytest.mark.parametrize("asked", ["chat-1", FRIENDLY["chat-1"]])
async def test_53_purge_reaches_copies_of_a_policy_no_longer_used(
    replicas: Replicas, asked: str, purged: str
) -> None:
    changes = OFF | {"BFF_CACHE_TTL": "60"}
    one, two = await replicas.several(2, **changes)
    await one.get("chat-1")
    await until(lambda: one.telemetry.counts["bff_shared_copies", "kept"] == 1)
    for world in (one, two):
        world.reload(**changes, BFF_EXPOSE_METADATA="plan")
    await purge(one, purged)
    Held(one).rename()
    one.upstream.override = None
    await heard(replicas.engine, one, two)
    for world in (one, two):
        world.reload(**changes, BFF_EXPOSE_METADATA=None)
    three = await replicas.add(**changes)

    for world in (two, three, one):
        assert (await world.get(asked)).json()["taskIdentifier"] == "renamed"


# -- 63: a wait outlives what admitted the request


WAITS = {
    "retrieve": ({}, OWN_KEY, False),
    "list": ({}, OWN_KEY, True),
    "introspection": ({"BFF_SIGNING_KEYS": None}, ROOT_KEY, False),
    "introspected list": ({"BFF_SIGNING_KEYS": None}, ROOT_KEY, True),
}


@pytest.mark.parametrize("status", [200, 404, 500, 429])
@pytest.mark.parametrize("ended", ["exp", "jti", "subject", "key"])
@pytest.mark.parametrize("wait", WAITS)
async def test_54_token_that_ends_in_a_wait_gets_401(
    world: World, wait: str, ended: str, status: int
) -> None:
    changes, key, is_list = WAITS[wait]
    await world.start(**changes)
    token = sign(
        claims(world.clock.wall, *read("chat-1"), jti="one", act={"sub": "ann"},
               exp=int(world.clock.wall) + 2), key,
    )  # fmt: skip

    async def answer(_: object) -> Answer | None:
        if ended == "exp":
            world.clock.advance(3)
        elif ended == "key":
            world.reload(BFF_SIGNING_KEYS=NEW_KEY)
        else:
            world.clock.advance(1)
            named = {"jti": "one"} if ended == "jti" else {"subject": "ann"}
            await world.ops.post("/revocations", json=named)
        world.upstream.override = None
        return None if status == 200 else Answer(status, {"error": "no"})

    world.upstream.override = answer
    response = await (list_of(world, token) if is_list else world.get("chat-1", token=token))

    assert response.status_code == 401
    assert response.json()["code"] == {
        "exp": "token_expired", "jti": "token_revoked", "subject": "token_revoked",
        "key": "token_invalid",
    }[ended]  # fmt: skip


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_54_session_that_is_revoked_in_a_wait_gets_403(world: World, status: int) -> None:
    async def answer(_: object) -> Answer | None:
        world.clock.advance(1)
        await world.ops.post("/revocations", json={"session": "chat-1"})
        return None if status == 200 else Answer(status, {"error": "no"})

    world.upstream.override = answer
    response = await world.get("chat-1", token=world.token(*read("chat-1")))

    assert response.status_code == 403
    response = await list_of(world, world.token(*read("chat-1"), iat=1))
    assert "chat-1" not in response.text.replace('"id":"chat-1","error":"Unauthorized"', "")


async def test_54_key_of_a_removed_signer_gets_no_404(world: World) -> None:
    """On a 404 the SDK starts a run that the customer pays for."""

    async def answer(_: object) -> Answer:
        world.reload(BFF_SIGNING_KEYS=NEW_KEY)
        return Answer(404, {"error": "Not found"})

    world.upstream.override = answer

    assert (await world.get("chat-1")).status_code == 401


async def test_54_copy_that_grows_too_old_in_a_wait_is_not_listed(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(3)
    world.upstream.environments[0].find("chat-1")["taskIdentifier"] = "renamed"
    loads = 0

    async def answer(_: object) -> None:
        nonlocal loads
        loads += 1
        if loads == 1:
            world.clock.advance(70)  # beyond stale-if-error

    world.upstream.override = answer
    token = world.token(*read("chat-1", "chat-2"), exp=int(world.clock.wall) + 900)
    response = await list_of(world, token)

    names = [one["taskIdentifier"] for one in response.json()["data"]]
    assert names == ["renamed", "my-chat"]


async def test_54_fallback_that_grows_too_old_is_not_served(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(30)

    async def answer(_: object) -> Answer:
        world.clock.advance(60)
        return Answer(500, {"error": "no"})

    world.upstream.override = answer
    response = await world.get("chat-1", token=world.token(*read("chat-1"), exp=2_000_000_000))

    assert response.json()["code"] == "upstream_unavailable"


# -- 64: a rotation splits the replicas


async def test_64_replicas_share_everything_while_a_key_is_rotated(replicas: Replicas) -> None:
    """Without an id in the settings: each replica learns it with its own key."""
    changes = OFF | {"BFF_ENVIRONMENT_ID": None, "BFF_UPSTREAM_BUDGET": "4/minute"}
    changes |= {"BFF_CACHE_TTL": "60", "BFF_IP_RATE_LIMIT": "100/minute"}
    rotations = (ROOT_KEY, f"{SECOND_ROOT_KEY},{ROOT_KEY}", SECOND_ROOT_KEY)
    worlds = []
    for number, secret_keys in enumerate(rotations):
        world = await replicas.add(**changes, TRIGGER_SECRET_KEY=secret_keys)
        replicas.upstream.environments[0].additional_keys[SECOND_ROOT_KEY] = ()
        await until(lambda world=world: world.service.sharing.namespaces)
        worlds.append(world)
        assert len({w.service.sharing.namespaces["default"].origin for w in worlds}) == 1, number
    add_many(replicas)
    replicas.upstream.seen.clear()

    statuses = [(await worlds[n % 3].get(IDS[n])).status_code for n in range(9)]
    assert statuses == [200] * 4 + [503] * 5, "one budget"
    await until(lambda: worlds[0].telemetry.counts["bff_shared_copies", "kept"] == 2)
    for world in worlds:
        assert (await world.get(IDS[0])).status_code == 200, "one copy"
    await purge(worlds[2], IDS[0])
    for world in worlds:
        cache = world.service.gateway.cache
        await until(lambda cache=cache: cache.find("default", IDS[0], time.monotonic()) is None)
    values = {world.service.sharing.store.key.value for world in worlds}
    assert len(values) == 1, "one key, so one window for each address"


async def test_64_replica_without_an_id_shares_nothing(replicas: Replicas) -> None:
    """The secret key may not ask for the id; the replica takes its share of the budget."""
    changes = OFF | {"BFF_ENVIRONMENT_ID": None, "BFF_UPSTREAM_BUDGET": "4/minute"}
    worlds = await replicas.several(2, **changes)

    statuses = [(await worlds[0].get(id_)).status_code for id_ in ("chat-1", "chat-2", "x-y")]

    assert statuses == [200, 200, 503]
    assert (await worlds[0].ops.delete("/cache/sessions/chat-1")).status_code == 503


# -- 65: the store, and ages, tell what the policy hides


HIDDEN = {"BFF_EXPOSE_FIELDS": "id,type,taskIdentifier,createdAt,updatedAt"}


async def test_65_store_holds_no_hidden_id_and_no_address(replicas: Replicas) -> None:
    changes = HIDDEN | {"BFF_VERIFY": "local,upstream"}
    one, two = await replicas.several(2, **changes)
    opaque = sign(claims(time.time(), *read("chat-2"), act={"sub": "ann"}), ROOT_KEY)
    for world in (one, two):
        for id_ in ("chat-1", "chat-closed", "nobody"):
            assert (await world.get(id_)).status_code in (200, 404)
        assert (await world.get("chat-2", token=opaque)).status_code == 200
        await world.get("chat-1", token="bad.bad.bad")
    await purge(one, "chat-1")
    await written(one, two)

    stored = contents(replicas.engine)
    text = b"\n".join(key + b" " + value for key, value in stored.items())

    assert any(key.startswith(b"bff1:w:address") for key in stored)
    assert b"session_demo" in text, "copies are stored"
    for hidden in ("chat-", "nobody", "2026-02-01", "ann", "127.0.0.1"):
        assert hidden.encode() not in text, hidden
    # Anyone can try all addresses.
    for counted in ("127.0.0.1", ("127.0.0.1",), b"127.0.0.1"):
        for guess in (repr(counted), str(counted)):
            assert hashlib.sha256(guess.encode()).hexdigest()[:24].encode() not in text


async def test_65_age_of_answers_does_not_tell_a_hidden_closed_at(world: World) -> None:
    await world.start(**HIDDEN)
    cached = []
    for _ in range(2):
        responses = [await world.get(id_) for id_ in ("chat-1", "chat-closed")]
        cached += [response.headers["cache-status"] for response in responses]
        await world.settle()
        world.clock.advance(3)

    assert cached[0::2] == cached[1::2] == ["bff; fwd=miss; stored", "bff; hit; detail=stale"]


# -- 66: a request id counts requests


async def test_66_request_ids_tell_nothing_of_other_requests(world: World) -> None:
    responses = [await world.browser.get("/healthz") for _ in range(200)]
    ids = [response.headers["x-request-id"] for response in responses]

    assert len(set(ids)) == 200
    assert all(re.fullmatch("[0-9a-f]{16}", id_) for id_ in ids)
    numbers = [int(id_, 16) for id_ in ids]
    rising = sum(a < b for a, b in pairwise(numbers))
    assert 50 < rising < 150, "not in order"
    for position in range(16):
        assert len({id_[position] for id_ in ids}) > 4, "no part stays the same"


# -- 67: the last of two equal members counts


@pytest.mark.parametrize(
    "body",
    [
        '{"jti": "one", "jti": "two"}',
        '{"jti": "one", "\\u006ati": "two"}',
        '{"subject": "ann", "ttl": 5, "ttl": 6}',
    ],
)
async def test_67_revocation_with_a_repeated_member_is_refused(world: World, body: str) -> None:
    json_type = {"content-type": "application/json"}
    response = await world.ops.post("/revocations", headers=json_type, content=body)

    assert response.status_code == 400
    assert len(world.service.gateway.revocations) == 0


def test_67_command_with_a_repeated_option_is_refused() -> None:
    tried = set()
    for name, command in main.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and not (option.multiple or option.is_flag):
                word = option.opts[0]
                done = CliRunner().invoke(main, [name, word, "5", word, "6"])
                assert (done.exit_code, f"Give {word} once" in done.stderr) == (2, True), name
                tried.add(word)

    assert {"--jti", "--actor", "--issued-before", "--ttl", "--ops", "--port", "--url"} < tried


async def test_67_announcement_with_a_repeated_field_is_ignored(replicas: Replicas) -> None:
    (world,) = await replicas.several(1)
    assert (await world.ops.post("/revocations", json={"jti": "one"})).status_code == 200
    revocations = world.service.gateway.revocations
    text = revocations.all()[0].encode()
    with replicas.engine.client() as client:
        fields = ["revocation", text.replace("one", "two"), "revocation", text.replace("one", "3")]
        client.execute_command("XADD", keys.stream("revocations"), "*", *fields)
    await until(lambda: world.telemetry.counts["bff_store_commands", "foreign"] == 1)

    assert {one.value for one in revocations.all()} == {"one"}

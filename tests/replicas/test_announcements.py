"""Purges and revocations reach every replica, also after an outage."""

import asyncio
import contextlib
import time

import pytest
from support.engines import Engine
from support.faulty_store import REFUSALS, FaultyStore
from support.replicas import RealClock, Relay, Replicas, heartbeat, purge, until
from support.world import OFF, World, read
from valkey import ResponseError

from bff import metrics
from bff.replicas import keys
from bff.replicas.codec import conceal
from bff.replicas.sharing import Sharing
from bff.replicas.valkey import StoreError
from bff.tokens.revocations import parse

PURGES, REVOCATIONS = keys.stream("purges"), keys.stream("revocations")


async def test_revocation_reaches_replicas_that_start_later(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF)
    token = one.token(*read("chat-1"), jti="lost")
    statuses = [(await world.get("chat-1", token=token)).status_code for world in (one, two)]
    assert statuses == [200, 200]

    response = await one.ops.post("/revocations", json={"jti": "lost"})
    assert response.status_code == 200
    (three,) = await replicas.several(1, **OFF)

    assert len(three.service.gateway.revocations) == 1, "read before the first request"
    for world in (one, two, three):
        revocations = world.service.gateway.revocations
        await until(lambda revocations=revocations: len(revocations) == 1)
        assert (await world.get("chat-1", token=token)).json()["code"] == "token_revoked"
        other = world.token(*read("chat-1"), jti="kept")
        assert (await world.get("chat-1", token=other)).status_code == 200


async def test_unconfirmed_undoing_is_sent_again(replicas: Replicas) -> None:
    async with FaultyStore(replicas.engine.port) as store:
        one = await replicas.add(**OFF | {"BFF_STORE_URL": store.url})
        two = await replicas.add(**OFF)
        token = one.token(*read("chat-1"), jti="back")

        async def undo() -> int:
            response = await one.ops.request("DELETE", "/revocations", json={"jti": "back"})
            return response.status_code

        assert await undo() == 404
        assert (await one.ops.post("/revocations", json={"jti": "back"})).status_code == 200
        await until(lambda: len(two.service.gateway.revocations) == 1)
        store.refuse["XADD"] = REFUSALS["full"]
        assert await undo() == 503
        assert (await two.get("chat-1", token=token)).json()["code"] == "token_revoked"
        store.heal()
        assert await undo() == 200

        await until(lambda: all(kept.undone for kept in two.service.gateway.revocations.all()))
        assert (await two.get("chat-1", token=token)).status_code == 200


async def test_replica_reads_revocations_before_it_serves(engine: Engine) -> None:
    with engine.client() as store:
        engine.empty()
        pipeline = store.pipeline()
        for number in range(5_000):
            revocation = parse({"jti": f"token-{number}"}, time.time()).encode()
            pipeline.xadd(REVOCATIONS, {"revocation": revocation})
        pipeline.execute()
    clock = RealClock()
    clock.wall = time.time()

    async with World(clock, BFF_STORE_URL=engine.url) as world:
        assert len(world.service.gateway.revocations) == 5_000


async def test_replica_receives_purges_it_missed_while_cut_off(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    for world in (one, two):
        await world.get("chat-1")
    with replicas.engine.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    await purge(one, "chat-1")

    await until(lambda: not two.service.gateway.cache._entries)


async def test_listener_reads_a_restarted_store_from_the_start(own_replicas: Replicas) -> None:
    """Also if its clock is behind: a message may be new though its number is lower."""
    one, two = await own_replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    await purge(one, "chat-closed")  # so that both have a position in the stream
    for world in (one, two):
        await world.get("chat-1")
    cache = two.service.gateway.cache
    earlier = cache.find("default", "chat-1", 0)
    own_replicas.engine.kill()
    await heartbeat(one, two)
    assert not one.service.sharing.up
    assert not two.service.sharing.up
    namespace = one.service.sharing.namespaces["default"]
    sharing = one.service.sharing
    assert isinstance(sharing, Sharing)
    assert sharing.store.key.value is not None
    id_ = conceal(sharing.store.key.value, "chat-1")
    announced = False
    while not announced:  # a heartbeat that is faster begins the stream with a higher number
        own_replicas.engine.kill()
        own_replicas.engine.start()
        with own_replicas.engine.client() as client, contextlib.suppress(ResponseError):
            client.xadd(PURGES, {"place": namespace.origin, "id": id_}, id="1-1")
            announced = True
    await until(lambda: one.service.sharing.up and two.service.sharing.up)

    await until(lambda: cache.find("default", "chat-1", 0) is not earlier)


async def test_listener_survives_foreign_messages(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF, BFF_CACHE_TTL="60")
    await two.get("chat-1")
    with replicas.engine.client() as client:
        for key in (PURGES, REVOCATIONS):
            client.xadd(key, {b"\xff": b"\xff"})
            client.xadd(key, {"revocation": "[]", "id": "chat-1"})
            client.xadd(key, {"revocation": '{"before": 1' + "0" * 400 + "}"})
            client.xadd(key, {"place": two.service.sharing.namespaces["default"].origin, "id": ""})

    await purge(one, "chat-1")
    await until(lambda: not two.service.gateway.cache._entries)

    await two.get("chat-1")
    with replicas.engine.client() as client:
        client.delete(PURGES)
        client.sadd(PURGES, "foreign")
        await until(lambda: client.type(PURGES) != b"set")
        assert client.xlen(REVOCATIONS) > 4, "the other stream stays"
    await purge(one, "chat-1")
    await until(lambda: not two.service.gateway.cache._entries)


async def test_listener_recovers_after_a_non_valkey_answer(replicas: Replicas) -> None:
    """The address leads to another server for a moment; then the replica reads on."""

    async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(b"+OK\r\n" * 20)
        writer.close()

    impostor = await asyncio.start_server(answer_ok, "127.0.0.1", 0)
    async with impostor, Relay(replicas.engine.port) as relay:
        (port,) = {socket.getsockname()[1] for socket in impostor.sockets}
        with pytest.raises(StoreError, match="is not a Valkey server"):
            await replicas.add(BFF_STORE_URL=f"valkey://127.0.0.1:{port}")
        one, two = await replicas.add(), await replicas.add(BFF_STORE_URL=relay.url)
        opened = relay.opened
        relay.target = port
        relay.cut()
        await until(lambda: not two.service.sharing.up)
        await until(lambda: relay.opened >= opened + 4)
        assert (await two.get("chat-1")).status_code == 200
        relay.target = replicas.engine.port
        relay.cut()
        await until(lambda: two.service.sharing.up)
        assert (await one.ops.post("/revocations", json={"jti": "lost"})).status_code == 200
        await until(lambda: len(two.service.gateway.revocations) == 1)
    assert not two.telemetry.counts[metrics.BACKGROUND_RESTARTS, "store_listener"]

"""The marker of the store's data, and who may call the data complete."""

import time

import pytest
from support.replicas import Replicas, events, heartbeat, until
from support.world import OFF

from bff.metrics import BACKGROUND_RESTARTS
from bff.replicas import keys, scripts
from bff.replicas.republisher import Republisher, _parse
from bff.tokens.revocations import parse


def marker(replicas: Replicas) -> str:
    return replicas.engine.execute("GET", keys.MARKER)


def test_marker_that_no_gateway_wrote_counts_as_absent() -> None:
    assert _parse(b"complete 0af") == (b"complete", b"0af")
    assert _parse(b"partial 1") == (b"partial", b"1")
    for foreign in (None, b"", b"complete", b"complete ", b"complete X", b"\xff", b"7"):
        assert _parse(foreign) == (None, None)


async def test_complete_data_is_left_alone(replicas: Replicas) -> None:
    worlds = [await replicas.add(**OFF)]
    before = marker(replicas)
    worlds += await replicas.several(2, **OFF)
    for _ in range(3):
        await heartbeat(*worlds)

    assert marker(replicas) == before


@pytest.mark.parametrize(
    "junk", ["", "foreign", "7", "complete", "complete X Y", "foreign {name}", "complete 0AF"]
)
async def test_foreign_marker_is_replaced(replicas: Replicas, junk: str) -> None:
    (world,) = await replicas.several(1, **OFF)
    name = marker(replicas).partition(" ")[2]
    replicas.engine.execute("SET", keys.MARKER, junk.format(name=name))
    await heartbeat(world)

    await until(lambda: marker(replicas).startswith("complete "))


@pytest.mark.parametrize("there", ["", "partial 0af", "complete 0af"])
async def test_nothing_is_republished_to_other_data(replicas: Replicas, there: str) -> None:
    stream, engine = keys.stream("unused"), replicas.engine
    engine.execute("SET", keys.MARKER, there)

    engine.execute(
        "EVAL", scripts.REPUBLISH, 3, keys.MARKER, keys.REPUBLISHER, stream,
        *("0bf", "this replica", 1000, 10, "last", "lost"),
    )  # fmt: skip

    assert engine.execute("GET", keys.MARKER) == there
    assert engine.execute("EXISTS", stream, keys.REPUBLISHER) == "0"


async def test_marker_of_another_type_is_replaced(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    replicas.engine.execute("DEL", keys.MARKER)
    replicas.engine.execute("SADD", keys.MARKER, "foreign")
    await heartbeat(world)
    assert world.service.sharing.store.connection.up

    await until(lambda: replicas.engine.execute("TYPE", keys.MARKER) == "string")
    await until(lambda: marker(replicas).startswith("complete "))


async def test_revocations_that_the_store_has_are_not_repeated(replicas: Replicas) -> None:
    worlds = await replicas.several(3, **OFF)
    for n in range(5):
        await worlds[0].ops.post("/revocations", json={"jti": f"lost-{n}"})
    for world in worlds:
        revocations = world.service.gateway.revocations
        await until(lambda revocations=revocations: len(revocations) == 5)
    replicas.engine.empty()
    replicas.engine.execute("DEL", keys.MARKER)
    await heartbeat(*worlds)

    def confirmed(republisher: Republisher) -> bool:
        return republisher._confirmed == marker(replicas).encode()

    for world in worlds:
        await until(lambda world=world: confirmed(world.service.sharing.store.republisher))
    kept = replicas.engine.execute("XRANGE", keys.stream("revocations"), "-", "+")
    assert kept.count("revocation") == 5


@pytest.mark.parametrize("stream", ["revocations", "purges"])
async def test_lost_stream_is_noticed_by_a_heartbeat(replicas: Replicas, stream: str) -> None:
    """A store that evicts may lose it alone."""
    (world,) = await replicas.several(1, **OFF)
    await world.ops.post("/revocations", json={"jti": "lost"})
    before = marker(replicas)
    replicas.engine.execute("DEL", keys.stream(stream))
    await heartbeat(world)
    assert marker(replicas) != before

    new = await replicas.add(**OFF)
    assert len(new.service.gateway.revocations) == 1


async def test_new_data_is_read_from_its_first_message(replicas: Replicas) -> None:
    """The clock of a promoted server may be behind, so a number may be lower than the last one."""
    (world,) = await replicas.several(1, **OFF)
    await world.ops.post("/revocations", json={"jti": "known"})
    known, stream = world.service.gateway.revocations, keys.stream("revocations")
    late = [parse({"jti": name}, time.time()).encode() for name in ("low", "high")]

    replicas.engine.execute("DEL", stream)
    for number, text in zip(("1-1", f"{int(time.time() + 60)}000-0"), late, strict=True):
        replicas.engine.execute("XADD", stream, number, "revocation", text)
    replicas.engine.execute("SET", keys.MARKER, "complete 0af")
    await heartbeat(world)

    await until(lambda: len(known) == 3)


@pytest.mark.parametrize("junk", [None, "foreign", "another type"])
async def test_lost_store_key_is_noticed_by_a_heartbeat(
    replicas: Replicas, junk: str | None
) -> None:
    """A replica that starts would make another one, and hear of no purge."""
    (world,) = await replicas.several(1, **OFF)
    with replicas.engine.client() as client:
        (name,) = client.keys("bff1:*:sealed:*")
        sealed = client.strlen(name)
        client.delete(name)
        if junk == "foreign":
            client.set(name, junk)
        elif junk:
            client.sadd(name, junk)
        await heartbeat(world)
        await heartbeat(world)

        await until(lambda: client.type(name) == b"string" and client.strlen(name) == sealed)
    new = await replicas.add(**OFF)
    assert new.service.sharing.store.key.value == world.service.sharing.store.key.value


@pytest.mark.parametrize("lasts", [None, 3600])
async def test_turn_that_no_gateway_began_ends_at_once(
    replicas: Replicas, lasts: int | None
) -> None:
    (world,) = await replicas.several(1, **OFF)
    with replicas.engine.client() as client:
        client.set(keys.REPUBLISHER, "foreign", ex=lasts)
    replicas.engine.execute("DEL", keys.MARKER)
    await heartbeat(world)

    await until(lambda: marker(replicas).startswith("complete "))


async def test_new_data_is_logged_once_by_each_running_replica(replicas: Replicas) -> None:
    worlds = await replicas.several(2, **OFF)
    assert not any(events(world, "store_data_begun") for world in worlds)

    replicas.engine.empty()
    replicas.engine.execute("DEL", keys.MARKER)
    for _ in range(3):
        await heartbeat(*worlds)
    for world in worlds:
        await until(lambda world=world: events(world, "store_data_begun"))
    worlds.append(await replicas.add(**OFF))
    await heartbeat(*worlds)
    logged = [[line["level"] for line in events(world, "store_data_begun")] for world in worlds]
    assert logged == [["warning"], ["warning"], []]


async def test_failure_is_logged_once_however_many_heartbeats_come(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of loops begins it again, with its pauses; a heartbeat does not."""
    (world,) = await replicas.several(1, **OFF)
    republisher: Republisher = world.service.sharing.store.republisher
    agree, world.service.background._restart_seconds = republisher._key.agree, 0.001

    async def fail() -> None:
        raise ValueError

    monkeypatch.setattr(republisher._key, "agree", fail)
    republisher._confirmed = None
    restarts, key = world.telemetry.counts, (BACKGROUND_RESTARTS, "store_revocations")
    for number in range(1, 4):
        await heartbeat(world)
        await until(lambda number=number: restarts[key] >= number)
    assert len(events(world, "background_failed")) == 1

    monkeypatch.setattr(republisher._key, "agree", agree)
    await until(lambda: republisher._confirmed == marker(replicas).encode())

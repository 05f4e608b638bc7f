"""Loads and their results that are sent together: one command, and each caller gets its part."""

import asyncio
from typing import Any

import pytest
from support.replicas import Replicas, until
from support.world import OFF

from bff.demo.upstream import session
from bff.replicas import joint_commands, keys, scripts
from bff.replicas.joint_commands import JointLoad
from bff.replicas.link import Command
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.store import Store

FREE = SharedBudget("one", 0, 0.0)
IDS = [f"many-{n}" for n in range(10)]


def record_commands(store: Store) -> list[Command]:
    """Collect the commands that *store* sends from now on."""
    link, sent = store.connection._requests, []
    submit = link.submit

    def submitted(batch: list[tuple[Command, Any]]) -> None:
        sent.extend(command for command, _ in batch)
        submit(batch)

    link.submit = submitted
    return sent


def loads_of(sent: list[Command]) -> list[int]:
    """Count the loads of each command that starts loads."""
    return [(command[2] - 3) // 2 for command in sent if command[1] == scripts.LOAD]


async def several(replicas: Replicas, count: int, **changes: str) -> list[Any]:
    worlds = await replicas.several(count, **OFF | {"BFF_CACHE_TTL": "60"} | changes)
    for n, id_ in enumerate(IDS):
        replicas.upstream.environments[0].add(session(100 + n, id_))
    return worlds


async def test_loads_that_start_together_are_one_command(replicas: Replicas) -> None:
    one, two = await several(replicas, 2)
    sent = record_commands(one.service.sharing.store)

    responses = await asyncio.gather(*map(one.get, IDS))
    await until(lambda: one.telemetry.counts["bff_shared_copies", "kept"] == len(IDS))

    assert [response.json()["externalId"] for response in responses] == IDS
    assert loads_of(sent) == [len(IDS)]
    kept = [command for command in sent if command[1] == scripts.KEEP]
    assert 1 <= len(kept) < len(IDS)
    responses = await asyncio.gather(*map(two.get, IDS))
    assert [response.json()["externalId"] for response in responses] == IDS
    assert two.telemetry.counts["bff_shared_copies", "used"] == len(IDS)
    assert len(replicas.upstream.seen) == len(IDS)


async def test_full_command_gets_no_more_callers(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint_commands, "_MAX_CALLERS", 4)
    (world,) = await several(replicas, 1)
    sent = record_commands(world.service.sharing.store)

    responses = await asyncio.gather(*map(world.get, IDS))

    assert [response.json()["externalId"] for response in responses] == IDS
    assert sum(loads_of(sent)) == len(IDS)
    assert max(loads_of(sent)) == 4


async def test_sent_command_gets_no_more_callers(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    store = world.service.sharing.store
    sent = record_commands(store)

    for name in ("bff1:{one}:a", "bff1:{one}:b"):
        async with asyncio.timeout(10):
            result = await store.load(name, "t", 1.0, fresh=0.0, budget=FREE, timeout=2.0)
        assert result is not None
        assert result.claimed

    assert loads_of(sent) == [1, 1]


@pytest.mark.parametrize(
    "answer",
    [7, b"text", [], ["text"], [1, [0, None]], [1, 5, 6], [1, ["0", None, 1, 1], [0, None, 1, 1]]],
)
async def test_answer_of_no_valkey_server_ends_the_wait(answer: Any) -> None:
    command = JointLoad(FREE, 1.0)
    waits = [command.add(name, "t", 0.0) for name in ("a", "b")]

    command.end([answer])

    assert [wait.result() for wait in waits] == [None, None]


async def test_answer_with_too_few_parts_ends_every_wait() -> None:
    command = JointLoad(FREE, 1.0)
    waits = [command.add(name, "t", 0.0) for name in ("a", "b")]

    command.end([[1, [0, None, -2, 0]]])

    assert waits[0].result().claimed
    assert waits[1].result() is None


async def test_caller_that_leaves_takes_no_answer_of_others(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    store = world.service.sharing.store

    async def load(name: str) -> Any:
        return await store.load(name, "t", 1.0, fresh=0.0, budget=FREE, timeout=2.0)

    leaves = asyncio.create_task(load("bff1:{one}:a"))
    stays = asyncio.create_task(load("bff1:{one}:b"))
    await asyncio.sleep(0)
    leaves.cancel()

    async with asyncio.timeout(10):
        assert (await stays).claimed
    assert store.up


async def test_foreign_claim_harms_no_result_of_the_same_command(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    store, results = world.service.sharing.store, dict[str, str]()
    names = ["bff1:{one}:a", "bff1:{one}:b"]
    loads = [
        await store.load(name, "t", 9.0, fresh=0.0, budget=FREE, timeout=2.0) for name in names
    ]
    with replicas.engine.client() as client:
        client.delete(keys.claim(names[0]))
        client.lpush(keys.claim(names[0]), "foreign")
        client.delete(names[1])
        client.lpush(names[1], "foreign")
        sent = record_commands(store)
        for name, load in zip(names, loads, strict=True):
            store.keep(
                [name],
                b"bff1 1 value",
                token="t",
                claimed=load.time,
                until=load.time / 1e6 + 60,
                done=lambda result, name=name: results.update({name: result}),
            )
        await until(lambda: len(results) == len(names))

        assert [command[2] for command in sent] == [4], "one command"
        assert results == {names[0]: "superseded", names[1]: "kept"}
        assert client.get(names[1]) == b"bff1 1 value"
        client.delete(*names, *map(keys.claim, names))


async def test_results_of_two_nodes_are_two_commands(replicas: Replicas) -> None:
    """A command of a cluster may only use keys of one node."""
    (world,) = await replicas.several(1, **OFF)
    store = world.service.sharing.store
    sent = record_commands(store)

    for name in ("bff1:{one}:a", "bff1:{one}:b", "bff1:{two}:a"):
        store.keep([name], b"", token="t", claimed=1, until=2.0, done=lambda _: None)
    await until(lambda: len(sent) == 2)

    assert sorted(command[2] for command in sent) == [2, 4]


async def test_denied_loads_are_as_many_as_the_budget_lacks(replicas: Replicas) -> None:
    (world,) = await several(replicas, 1, BFF_UPSTREAM_BUDGET="3/minute")
    sent = record_commands(world.service.sharing.store)

    responses = await asyncio.gather(*map(world.get, IDS))

    statuses = [response.status_code for response in responses]
    assert (statuses.count(200), statuses.count(503)) == (3, 7)
    assert loads_of(sent)[0] > 3, "one command held loads that the budget allowed and denied"

"""Replicas on a real store, in this process: what they share, and what they do without it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from engines import ENGINES, Engine
from world import FRIENDLY, OFF, World, Clock, read
import time

from bff.demo.upstream import session


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
    replies = await asyncio.gather(
        *(worlds[n % 4].get("chat-1", token=token) for n in range(200))
    )
    statuses = [reply.status_code for reply in replies]
    print(statuses)
    assert statuses.count(200) == 50
    assert statuses.count(429) == 150

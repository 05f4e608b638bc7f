"""Peeks of several replicas: one for all, by one budget, and alone while the store is down."""

import asyncio

from support.replicas import Replicas
from support.world import World

from bff.limits.budget import Budget
from bff.live.answering import Peek


class Upstream:
    """Counts the peeks that a replica makes."""

    def __init__(self, world: World, *, idle: bool = True) -> None:
        self.world, self.idle, self.asked = world, idle, 0

    async def ask(self) -> Peek:
        self.asked += 1
        await asyncio.sleep(0.01)
        return Peek(self.idle, self.world.service.now)

    async def peek(self, budget: Budget, name: str = "session_1") -> Peek | None:
        sharing = self.world.service.sharing
        return await sharing.peek("default", name, budget, 2.0, self.ask)


async def test_one_replica_peeks_for_all(replicas: Replicas) -> None:
    one, two = [Upstream(world) for world in await replicas.several(2)]
    budgets = [Budget(5, name="peeks") for _ in range(2)]
    results = await asyncio.gather(one.peek(budgets[0]), two.peek(budgets[1]))
    await one.peek(budgets[0], "session_2")

    assert all(result is not None and result.idle for result in results)
    assert one.asked + two.asked == 2, "one for each session"


async def test_replicas_spend_one_budget(replicas: Replicas) -> None:
    one, two = [Upstream(world) for world in await replicas.several(2)]
    budgets = [Budget(2, 60.0, name="peeks") for _ in range(2)]
    results = [await one.peek(budgets[0], f"session_{n}") for n in range(2)]
    denied = await two.peek(budgets[1], "session_9")

    assert None not in results
    assert (denied, one.asked, two.asked) == (None, 2, 0)


async def test_replica_without_the_store_spends_its_own_part(own_replicas: Replicas) -> None:
    world = await own_replicas.add()
    one, budget = Upstream(world), Budget(1, 60.0, name="peeks")
    world.service.sharing.namespaces = {}
    results = [await one.peek(budget), await one.peek(budget)]

    assert [result is not None for result in results] == [True, False]

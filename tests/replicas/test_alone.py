"""A gateway without a store shares nothing, and needs no other code for it."""

import inspect
from typing import Any

import pytest
from support.world import Clock

from bff.limits.budget import Budget
from bff.replicas.alone import Alone, OwnLimits
from bff.replicas.shared_limits import SharedLimits
from bff.replicas.shared_news import SharedNews
from bff.replicas.shared_peeks import SharedPeeks
from bff.replicas.sharing import Sharing

pytestmark = pytest.mark.anyio


async def test_budget_belongs_to_this_process(clock: Clock) -> None:
    alone, budget = Alone(clock).limits, Budget(2, 1.0)

    waits = [await alone.spend("default", budget, timeout=0.0) for _ in range(3)]

    assert waits == [0.0, 0.0, 1.0]
    clock.advance(1.0)
    assert await alone.spend("default", budget, timeout=0.0) == 0.0


PARTS = {"announce": SharedNews.announce, "peek": SharedPeeks.peek}
"""Methods that `Sharing` has from its parts."""


@pytest.mark.parametrize(("own", "other"), [(Alone, Sharing), (OwnLimits, SharedLimits)])
def test_every_method_has_the_arguments_of_the_shared_one(own: type, other: type) -> None:
    for name, method in inspect.getmembers(own, inspect.isfunction):
        if not name.startswith("_"):
            shared: Any = PARTS.get(name) or getattr(other, name)
            assert list(inspect.signature(method).parameters) == list(
                inspect.signature(shared).parameters
            ), name

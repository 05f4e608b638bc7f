"""Peeks that replicas share: one a session and TTL, paid by a budget of all replicas."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from bff.clock import Clock
from bff.limits.budget import Budget
from bff.live.answering import Peek
from bff.replicas.codec import Namespace
from bff.replicas.lookups import PeekLookup
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.shared_limits import SharedLimits
from bff.replicas.shared_loads import SharedLoads, SharedLookup
from bff.replicas.store import Store


@dataclass(eq=False)
class SharedPeeks:
    """Makes peeks, each by one replica for all.

    Args:
        store: where results and claims are.
        loads: makes them.
        limits: spends the budget while the store cannot tell.
        namespaces: by environment name; an environment without one shares nothing.
        clock: reads the two clocks.
    """

    store: Store
    loads: SharedLoads
    limits: SharedLimits
    namespaces: Callable[[], Mapping[str, Namespace]]
    clock: Clock

    async def peek(
        self,
        environment: str,
        id_: str,
        budget: Budget,
        ttl: float,
        ask: Callable[[], Awaitable[Peek]],
    ) -> Peek | None:
        """Get a peek of the last *ttl* seconds: another replica's, or the one that *ask* makes.

        Returns:
            None if the *budget* is spent.
        """
        namespace = self.namespaces().get(environment)

        async def spend(wait: float | None, timeout: float) -> Peek | None:
            if wait is None:
                wait = await self.limits.spend(environment, budget, timeout=timeout)
            elif wait <= 0:
                budget.spend(self.clock()[0])  # this replica counts it too: the store may go down
            return await ask() if wait <= 0 else None

        if namespace is None or not self.store.up:
            return await spend(None, self.limits.timeout)
        lookup: SharedLookup[Peek | None] = PeekLookup(
            namespace=namespace,
            key=self.store.key.agreed,
            session_id=id_,
            budget=SharedBudget(namespace.origin, budget.limit, budget.seconds, budget.name),
            fresh_for=ttl,
            clock=self.clock,
            is_current=lambda: self.namespaces().get(environment) is namespace,
        )
        peek, _, _ = await self.loads.get(lookup, spend)
        return peek

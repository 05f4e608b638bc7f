"""The limits of callers and the budget of loads, which all replicas spend together."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from typing import Any, Final

from bff import metrics
from bff.clock import Clock
from bff.limits.budget import Budget
from bff.limits.rate import Window
from bff.replicas.codec import limit_name
from bff.replicas.shared_budget import Denials, SharedBudget
from bff.replicas.store import Store
from bff.replicas.valkey import if_available

_REPORT_SECONDS: Final = 0.05
"""Seconds in which a replica reports once to the store how many loads upstream allows. The store
counts the loads of all replicas itself, so a report tells it only what the customer has spent."""
_FEW_LOADS: Final = 100
"""A replica reports each answer that leaves fewer loads."""


class SharedLimits:
    """Leases the limits of callers from the store, and spends the budget of loads there.

    While the store is down each replica spends its part of both.

    Args:
        store: the store through which replicas share.
        clock: reads the two clocks.
        spawn: runs a coroutine to its end in a task of its own.
        count: counts a metric.

    Attributes:
        origins: the name of each environment's budget in the store. An environment whose id is not
            fetched yet has none, and shares no budget.
        denials: the budgets that the store lately said are spent.
        timeout: seconds that a request may wait for the store.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        count: Callable[..., None],
    ) -> None:
        self.origins: Mapping[str, str] = {}
        self.denials = Denials()
        self.timeout = store.timeout / 2
        self._store = store
        self._clock = clock
        self._spawn = spawn
        self._count = count
        self._reported: dict[str, tuple[float, float]] = {}
        """When this replica last reported the allowance of upstream, and the end of its period."""

    @property
    def replicas(self) -> int:
        """How many replicas ran when the store was last up."""
        return self._store.replicas

    @property
    def up(self) -> bool:
        """Whether the store is up."""
        return self._store.up

    # -- limits of callers

    def lease(self, window: Window, want: int) -> "asyncio.Task[None]":
        """Lease *want* more of a window that all replicas share, in a task that ends soon."""
        return self._spawn(self._lease(window, want))

    async def _lease(self, window: Window, want: int) -> None:
        limiter, (sent, _) = window.limiter, self._clock()
        digest = limit_name(self._store.key.agreed, window.key)
        lease = await if_available(
            self._store.take(
                f"{limiter.name}:{limiter.limit}/{limiter.seconds}:{digest}",
                limit=limiter.limit,
                want=want,
                seconds=limiter.seconds,
                timeout=self.timeout,
            )
        )
        if lease is None:
            window.lease_failed(self._clock()[0])
            return
        granted, rest, seconds = lease
        self._count(metrics.LEASES, limiter.name)
        # Counted from before the command was sent, so it ends no later than the store's window.
        window.grant(self, want, granted, rest, sent + seconds)

    # -- the budget of loads

    def wait(self, environment: str, budget: Budget, now: float, ahead: int = 0) -> float:
        """Return the seconds until one more load may start, after *ahead* others; 0 for now.

        While the store is up, only the store decides: a wait is known once it has denied a load.
        """
        if environment not in self.origins or not self.up:
            budget.replicas = self.replicas
            return budget.wait(now, ahead)
        pace = budget.seconds / budget.limit if budget.limit else 0.0
        shared = None if self.denials.none else self._budget(environment, budget)
        return ahead * pace + (self.denials.wait(shared, now) if shared else 0.0)

    async def spend(self, environment: str, budget: Budget, *, timeout: float) -> float:
        """Spend one load, waiting at most *timeout* seconds for the store.

        Returns:
            The seconds to wait instead, or 0 if the load may start.
        """
        shared, wait = self._budget(environment, budget), None
        if shared is not None and self.up:
            if remembered := self.denials.ask(shared, self._clock()[0]):
                return remembered
            async with self._store.turns:
                wait = await if_available(self._store.spend(shared, timeout=timeout))
            if wait:
                self.denials.record(shared, self._clock()[0], wait)
            elif wait is not None:
                self.denials.forget(shared)
        if wait is None:
            budget.replicas = self.replicas
            wait = budget.wait(self._clock()[0])
        if wait <= 0:
            budget.spend(self._clock()[0])
        return wait

    def _budget(self, environment: str, budget: Budget) -> SharedBudget | None:
        """The budget as all replicas know it; None if this environment shares nothing."""
        origin = self.origins.get(environment)
        if origin is None:
            return None
        return SharedBudget(origin, budget.limit, budget.seconds, budget.name)

    def observe(self, environment: str, *, limit: int, remaining: int, reset: float) -> None:
        """Share what upstream reports of its bucket; the lower half belongs to the customer."""
        origin = self.origins.get(environment)
        if origin is None or not self.up:
            return
        loads, (now, _) = remaining - limit // 2, self._clock()
        reported, ends = self._reported.get(origin, (-inf, -inf))
        recent = now - reported < _REPORT_SECONDS and abs(now + reset - ends) < 1.0
        if not recent or loads < _FEW_LOADS:
            self._reported[origin] = now, now + reset
            self._store.allow(origin, loads, reset)

    def pause(self, environment: str, seconds: float) -> None:
        """Share that no load may start for *seconds*, because upstream answered 429."""
        if self.up and environment in self.origins:
            self._store.pause(self.origins[environment], seconds)

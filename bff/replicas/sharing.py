"""Many replicas that behave as one: one copy, one load, one limit, one budget for all.

While the store is down each replica decides alone: it shares no copies and loads, and it divides
limits and budget by the number of replicas that ran when the store was last up.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from bff import metrics
from bff.clock import Clock
from bff.errors import Refusal
from bff.limits.budget import Budget
from bff.limits.rate import Window
from bff.replicas.codec import Namespace, decode_copy
from bff.replicas.lookups import CopyLookup, IntrospectionLookup, LoadRequest, Outcome
from bff.replicas.shared_loads import PURGE_MEMORY_SECONDS, SharedLoads
from bff.replicas.store import Store
from bff.replicas.valkey import if_available
from bff.sessions.copy import Copy
from bff.tokens.introspected import Introspection

_RETRY_SECONDS: Final = 1.0
"""Seconds that a stale copy is answered after a failed load, before the next load."""


class Sharing:
    """Shares copies, limits, budget, purges and revocations with the other replicas.

    Args:
        store: where they share it; `start` opens it.
        namespaces: by environment name.
        make: makes a copy: environment, id, external id, body, closed, loaded.
        negative_ttl: seconds that an absence is kept.
        deadline: seconds to wait for another replica's load.
        clock: the two times.
        spawn: runs a coroutine to its end in a task of its own.
        tokens: makes tokens that no other replica makes.
        count: counts a metric.
        on_purge: deletes a session of an environment in this process.
        on_revocation: applies a revocation that this or another replica announced.

    Attributes:
        timeout: seconds; a request may wait this long for leases, and as long again for a load.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespaces: Mapping[str, Namespace],
        make: Callable[[str, str, str | None, bytes, bool, float], Copy],
        negative_ttl: float,
        deadline: float,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        tokens: Callable[[], str],
        count: Callable[..., None],
        on_purge: Callable[[str, str], None],
        on_revocation: Callable[[str], object],
    ) -> None:
        self.store = store
        self.namespaces = namespaces
        self.negative_ttl = negative_ttl
        self.timeout = store.timeout / 2
        self._make = make
        self._clock = clock
        self._spawn = spawn
        self._count = count
        self._on_purge = on_purge
        self._on_revocation = on_revocation
        self._loads = SharedLoads(
            store,
            timeout=self.timeout,
            deadline=deadline,
            clock=clock,
            spawn=spawn,
            tokens=tokens,
            count=count,
        )

    @property
    def up(self) -> bool:
        """Whether the store is up."""
        return self.store.up

    @property
    def replicas(self) -> int:
        """How many replicas ran when the store was last up."""
        return self.store.replicas

    async def start(self) -> None:
        """Connect and listen.

        Raises:
            StoreError: the store cannot be used now; the connection keeps trying until `stop`.
        """
        await self.store.open(self._receive)

    def apply(self, namespaces: Mapping[str, Namespace], negative_ttl: float) -> None:
        """Change settings; loads in flight are not stored for other replicas."""
        self.namespaces, self.negative_ttl = namespaces, negative_ttl

    async def stop(self) -> None:
        """Disconnect."""
        await self.store.close()

    def mark_down(self) -> None:
        """Count the store as down: a request waited for it as long as a request may."""
        self.store.mark_down()

    # -- limits

    def lease(self, window: Window, want: int) -> "asyncio.Task[None]":
        """Lease *want* more of a window that all replicas share, in a task that ends soon."""
        return self._spawn(self._lease(window, want))

    async def _lease(self, window: Window, want: int) -> None:
        limiter, (sent, _) = window.limiter, self._clock()
        digest = hashlib.sha256(repr(window.key).encode()).hexdigest()[:32]
        lease = await if_available(
            self.store.take(
                f"{limiter.name}:{limiter.limit}/{limiter.seconds}:{digest}",
                limit=limiter.limit,
                want=want,
                seconds=limiter.seconds,
                timeout=self.timeout,
            )
        )
        if lease is None:
            window.lease_failed()
            return
        granted, rest, seconds = lease
        self._count(metrics.LEASES, limiter.name)
        # Counted from before the command was sent, so it ends no later than the store's window.
        window.grant(self, want, granted, rest, sent + seconds)

    # -- the budget

    async def spend(self, environment: str, budget: Budget, *, timeout: float) -> float:
        """Spend one load, waiting at most *timeout* seconds for the store.

        Returns:
            The seconds to wait instead, or 0 if the load may start.
        """
        namespace, wait = self.namespaces.get(environment), None
        if namespace is not None:
            wait = await if_available(
                self.store.spend(
                    namespace.origin, limit=budget.limit, seconds=budget.seconds, timeout=timeout
                )
            )
        if wait is None:
            budget.replicas = self.replicas
            wait = budget.wait(self._clock()[0])
        if wait <= 0:
            budget.spend(self._clock()[0])
        return wait

    def observe(self, environment: str, *, limit: int, remaining: int, reset: float) -> None:
        """Share what upstream reports of its bucket; the lower half belongs to the customer."""
        if self.up and environment in self.namespaces:
            self.store.allow(self.namespaces[environment].origin, remaining - limit // 2, reset)

    def pause(self, environment: str, seconds: float) -> None:
        """Share that upstream wants no load for *seconds*."""
        if self.up and environment in self.namespaces:
            self.store.pause(self.namespaces[environment].origin, seconds)

    # -- copies and introspections

    async def load(self, request: LoadRequest) -> tuple[Outcome, bool]:
        """Get a session: another replica's copy if it is fresh, or the one load of all replicas.

        Returns:
            The outcome, and whether this replica fetched it from upstream.
        """
        namespace = self.namespaces.get(request.environment)
        if namespace is None:  # a reload removed the environment
            return await request.ask(self.timeout), True
        lookup = CopyLookup(
            namespace=namespace,
            request=request,
            make=self._make,
            negative_ttl=self.negative_ttl,
            clock=self._clock,
            is_current=lambda: self.namespaces.get(request.environment) is namespace,
        )
        outcome, previous, loaded = await self._loads.get(lookup, request.ask)
        if (
            loaded
            and isinstance(outcome, Refusal)
            and outcome.code != "not_found"
            and isinstance(previous, Copy)
        ):
            now, _ = self._clock()
            if now - previous.loaded < request.lifetime(previous):
                # A refusal for lack of budget says when the next load may start: it may be sooner.
                retry_after = outcome.retry_after or _RETRY_SECONDS
                previous.retry = now + min(retry_after, _RETRY_SECONDS)
                return previous, False
        return outcome, loaded

    async def introspect(
        self,
        environment: str,
        digest: bytes,
        id_: str,
        ask: Callable[[], Awaitable[Introspection]],
    ) -> Introspection:
        """Get upstream's answer on a token: another replica's, or the one that *ask* gets.

        Args:
            environment: the token's.
            digest: of the token.
            id_: the id by which the session is requested.
            ask: asks upstream.
        """
        namespace = self.namespaces.get(environment)
        if namespace is None:  # a reload removed the environment
            return await ask()
        lookup = IntrospectionLookup(
            namespace=namespace,
            digest=digest,
            session_id=id_,
            clock=self._clock,
            is_current=lambda: self.namespaces.get(environment) is namespace,
        )
        introspection, _, _ = await self._loads.get(lookup, lambda _: ask())
        return introspection

    # -- purges and revocations

    async def purge(self, environment: str, id_: str) -> None:
        """Delete a session in the store and in every replica, under both its ids.

        Raises:
            StoreUnavailable: other replicas may keep their copies.
        """
        namespace = self.namespaces[environment]
        await _purge(self.store, namespace.copies, id_)
        await self.store.publish(
            "purges", place=namespace.origin, rules=namespace.projection, id=id_
        )

    async def revoke(self, revocation: str) -> None:
        """Announce a revocation to every replica, including those that start later.

        Raises:
            StoreUnavailable: other replicas may not know it.
        """
        await self.store.publish("revocations", revocation=revocation)

    async def republish(self, revocations: Sequence[str]) -> None:
        """Announce *revocations* to a store that lost its data."""
        await if_available(self._republish(revocations))

    async def _republish(self, revocations: Sequence[str]) -> None:
        if revocations and await self.store.is_empty("revocations"):
            for revocation in revocations:
                await self.revoke(revocation)

    def _receive(self, message: dict[str, str]) -> None:
        if "revocation" in message:
            self._on_revocation(message["revocation"])
        for environment, namespace in self.namespaces.items():
            if message.get("place") == namespace.origin and "id" in message:
                self._on_purge(environment, message["id"])
                if message.get("rules") != namespace.projection:
                    # The sender has another policy or version, and deleted other copies.
                    purge = _purge(self.store, namespace.copies, message["id"])
                    self._spawn(if_available(purge))


async def _purge(store: Store, prefix: str, id_: str) -> None:
    """Delete a stored copy under all its ids."""
    for other in await _purge_id(store, prefix, id_):
        await _purge_id(store, prefix, other)


async def _purge_id(store: Store, prefix: str, id_: str) -> list[str]:
    """Delete the stored copy under one id; returns its other ids."""
    value = await store.purge(prefix, id_, remembered=PURGE_MEMORY_SECONDS)
    stored = decode_copy(prefix, id_, value) if value is not None else None
    if stored is None or stored.missing:
        return []
    return [other for other in (stored.id, stored.external_id) if other and other != id_]

"""Many replicas that behave as one: one copy, one load, one limit, one budget for all.

While the store is down each replica decides alone. It shares no copies and loads. It divides limits
and budget by the number of replicas that ran when the store was last up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

from bff.clock import Clock
from bff.errors import Refusal
from bff.replicas.announcements import STREAMS
from bff.replicas.codec import Namespace, conceal, copy_name, decode_copy, reveal
from bff.replicas.lookups import CopyLookup, IntrospectionLookup, LoadRequest, Outcome
from bff.replicas.purge_log import PurgeLog
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.shared_limits import SharedLimits
from bff.replicas.shared_loads import SharedLoads
from bff.replicas.shared_news import SharedNews
from bff.replicas.shared_peeks import SharedPeeks
from bff.replicas.store import Store
from bff.replicas.valkey import StoreUnavailable
from bff.sessions.copy import Copy
from bff.tokens.introspected import Introspection

_RETRY_SECONDS: Final = 1.0
"""Seconds after a failed load in which the gateway serves the stale copy and starts no load."""


class Sharing:
    """Shares copies, purges and revocations with the other replicas; `limits` shares the rest.

    Args:
        store: the store through which they share; `start` opens it.
        deadline: seconds to wait for another replica's load.
        clock: reads the two clocks.
        spawn: runs a coroutine to its end in a task of its own.
        tokens: makes tokens that no other replica makes.
        count: counts a metric.
        on_purge: deletes a session of an environment in this process.
        on_revocation: applies a revocation that this or another replica announced.
        on_news: see `SharedNews`.

    Attributes:
        limits: what callers and loads may spend in all replicas together.
        namespaces: by environment name. An environment whose id is not fetched yet has none and
            shares nothing, because replicas with other secret keys would make other names.
        negative_ttl: seconds that an absence is kept.
        announce: see `SharedNews`.
        peek: see `SharedPeeks`.
        timeout: seconds; a request may wait this long for leases, and as long again for a load.
    """

    def __init__(
        self,
        store: Store,
        *,
        deadline: float,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        tokens: Callable[[], str],
        count: Callable[..., None],
        on_purge: Callable[[str, str], None],
        on_revocation: Callable[[str], object],
        on_news: Callable[..., None],
    ) -> None:
        self.store = store
        self.namespaces: Mapping[str, Namespace] = {}
        self.negative_ttl = 0.0
        self.timeout = store.timeout / 2
        self._clock = clock
        self._on_purge = on_purge
        self._on_revocation = on_revocation
        self._purges = PurgeLog(STREAMS["purges"] - 1)
        self.limits = SharedLimits(store, clock=clock, spawn=spawn, count=count)
        self._loads = SharedLoads(
            store,
            denials=self.limits.denials,
            timeout=self.timeout,
            deadline=deadline,
            clock=clock,
            tokens=tokens,
            count=count,
        )
        self._news = SharedNews(
            store, namespaces=lambda: self.namespaces, clock=clock, spawn=spawn, received=on_news
        )
        self.announce = self._news.announce
        self.peek = SharedPeeks(
            store,
            loads=self._loads,
            limits=self.limits,
            namespaces=lambda: self.namespaces,
            clock=clock,
        ).peek

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

    def apply(
        self, namespaces: Mapping[str, Namespace], negative_ttl: float, secrets: Sequence[bytes]
    ) -> None:
        """Change settings; loads in flight are not stored for other replicas.

        *secrets* are the secret keys of all environments.
        """
        self.namespaces, self.negative_ttl = namespaces, negative_ttl
        self.limits.origins = {name: one.origin for name, one in namespaces.items()}
        self.store.key.secrets = secrets  # the next heartbeat agrees on the key with them

    async def stop(self) -> None:
        """Disconnect."""
        await self.store.close()

    def check(self) -> None:
        """Check the store now: a request waited for it as long as a request may."""
        self.store.check()

    # -- copies and introspections

    async def load(self, request: LoadRequest) -> tuple[Outcome, bool]:
        """Get a session: another replica's copy if it is fresh, or the one load of all replicas.

        Returns:
            The outcome, and whether this replica fetched it from upstream.
        """
        namespace, budget = self.namespaces.get(request.environment), request.budget
        if namespace is None or not self.up:
            return await request.ask(None, self.timeout), True
        key = self._key
        lookup = CopyLookup(
            name=copy_name(prefix := namespace.copies_prefix, request.id, key),
            prefix=prefix,
            key=key,
            budget=SharedBudget(namespace.origin, budget.limit, budget.seconds),
            request=request,
            negative_ttl=self.negative_ttl,
            is_purged=partial(self._purges.is_purged, namespace.origin),
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
                # The budget may allow the next load sooner.
                retry_after = outcome.retry_after or _RETRY_SECONDS
                previous.retry_at = now + min(retry_after, _RETRY_SECONDS)
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
            digest: the token's SHA-256.
            id_: the id by which the session is requested.
            ask: asks upstream.
        """
        namespace = self.namespaces.get(environment)
        if namespace is None:
            return await ask()
        lookup = IntrospectionLookup(
            namespace=namespace,
            digest=digest,
            session_id=id_,
            clock=self._clock,
            is_current=lambda: self.namespaces.get(environment) is namespace,
        )
        introspection, _, _ = await self._loads.get(lookup, lambda *_: ask())
        return introspection

    # -- purges and revocations

    async def purge(self, environment: str, id_: str) -> None:
        """Delete a session in the store and in every replica, under both its ids.

        The announcement ends the use of its copies, whatever their policy and version. The copies
        that this replica can name are deleted from the store too.

        Raises:
            StoreUnavailable: other replicas may keep their copies.
        """
        namespace = self.namespaces.get(environment)
        if namespace is None or not self.up:
            raise StoreUnavailable
        prefix, key = namespace.copies_prefix, self._key
        number = await self.store.publish(
            "purges", place=namespace.origin, id=conceal(key, id_).decode()
        )
        self._apply_purge(namespace.origin, id_, number)
        value, _ = await self.store.read(copy_name(prefix, id_, key), timeout=self.store.timeout)
        stored = None if value is None else decode_copy(prefix, id_, value, key=key)
        ids = {id_} if stored is None else {id_, stored.id, stored.external_id or id_}
        for one in ids:
            self.store.drop(copy_name(prefix, one, key))

    async def revoke(self, revocation: str) -> None:
        """Announce a revocation to every replica, including those that start later.

        Raises:
            StoreUnavailable: other replicas may not know it.
        """
        await self.store.publish("revocations", revocation=revocation)

    def _receive(self, number: str, message: dict[str, str]) -> None:
        if "revocation" in message:
            self._on_revocation(message["revocation"])
        elif "news" in message:
            self._news.receive(message["origin"], message["news"])
        elif "data" in message:
            # The store lost data, so it may have copies that were purged, and not the purges.
            self._purges.forget(number)
        elif "place" in message:
            id_ = reveal(self._key, message["id"].encode())
            self._apply_purge(message["place"], id_, number)

    def _apply_purge(self, origin: str, id_: str, number: str) -> None:
        if not self._purges.add(origin, id_, number):
            return  # it is this replica's own announcement
        for environment, namespace in self.namespaces.items():
            if namespace.origin == origin:
                self._on_purge(environment, id_)

    @property
    def _key(self) -> bytes:
        return self.store.key.agreed

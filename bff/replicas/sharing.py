"""Many replicas that behave as one: shared copies and verdicts, one load, one limit, one budget.

Each of them works when the store is away: copies and loads are then this process's own, and of
limits and budget it takes the share of one replica among those that were last there.

A copy in the store is what a browser may see and nothing else: it is projected before it comes
here. It carries what it is (format, version, policy, environment, both ids) and a digest; what does
not fit the question is dropped and counted. It also carries when it was loaded; of that and of what
the store says, the greater age counts, so that neither a clock that is off nor a command that was
slow to arrive makes a copy younger.

A verdict grants access, so there a digest would not do: it is sealed with a key that only gateways
of the same secret key can make, and stands under a name made with it too. Whoever has the store
reads of no token, and grants none anything.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

from bff import metrics
from bff.errors import Refusal
from bff.limits.budget import Budget
from bff.limits.rate import Window
from bff.replicas.codec import (
    ForeignError,
    Namespace,
    _introspection_name,
    decode,
    decode_introspection,
    encode,
    encode_introspection,
    encode_missing,
)
from bff.replicas.valkey import Store, StoreUnavailable
from bff.sessions.copy import Copy
from bff.tokens.introspected import UNDECIDED, Introspection

CLAIM_SECONDS: Final = 1.0
"""A replica that dies during a load keeps the others from loading that session for so long."""
_POLL_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)
_RETRY_SECONDS: Final = 1.0
_PURGE_MEMORY_SECONDS: Final = 60.0
"""Longer than any load takes."""
Outcome = Copy | Refusal
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What a load needs to know of the gateway.

    Attributes:
        ask: asks upstream; told how many seconds it may wait for the store.
        fresh: whether a copy can be answered as it is.
        lifetime: seconds after its load for which a copy may be of any use.
    """

    environment: str
    id: str
    ask: Callable[[float], Awaitable[Outcome]]
    fresh: Callable[[Copy, float], bool]
    lifetime: Callable[[Copy], float]


class Sharing:
    """What a replica has to do with the others.

    Args:
        store: where they meet; `start` opens it.
        namespaces: by environment name.
        make: makes a copy: environment, id, external id, body, closed, loaded.
        negative_ttl: seconds that an absence is known.
        deadline: seconds to wait for another replica's load.
        clock: the two times.
        spawn: runs something to its end, whoever leaves meanwhile.
        tokens: makes a text that nobody else makes.
        count: counts a metric.
        on_purge: told which session of which environment has to go from this process.
        on_revocation: told what `revoke` told, here or elsewhere.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespaces: Mapping[str, Namespace],
        make: Callable[[str, str, str | None, bytes, bool, float], Copy],
        negative_ttl: float,
        deadline: float,
        clock: Callable[[], tuple[float, float]],
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        tokens: Callable[[], str],
        count: Callable[..., None],
        on_purge: Callable[[str, str], None],
        on_revocation: Callable[[str], None],
    ) -> None:
        self.store = store
        self.namespaces = namespaces
        self.negative_ttl = negative_ttl
        self._make = make
        self._patience = deadline
        self._clock = clock
        self._spawn = spawn
        self._tokens = tokens
        self._count = count
        self._on_purge = on_purge
        self._on_revocation = on_revocation
        # A request may wait for leases and then for a load: half of its time for each.
        self.timeout = store.timeout / 2

    @property
    def up(self) -> bool:
        """Whether the store can be had."""
        return self.store.up

    @property
    def replicas(self) -> int:
        """How many replicas were there when the store was last seen."""
        return self.store.replicas

    async def start(self) -> None:
        """Connect and listen.

        Raises:
            StoreError: the store cannot be used now; it is tried again all the same.
        """
        await self.store.open(self._heard)

    def apply(self, namespaces: Mapping[str, Namespace], negative_ttl: float) -> None:
        """Go on by other settings; loads under way are kept by nobody else."""
        self.namespaces, self.negative_ttl = namespaces, negative_ttl

    async def stop(self) -> None:
        """Disconnect."""
        await self.store.close()

    def mark_down(self) -> None:
        """Count the store as unavailable: a request waited for it as long as it may."""
        self.store.mark_down()

    # -- limits

    def lease(self, window: Window, want: int) -> "asyncio.Task[None]":
        """Take *want* more of a window that all replicas share; ends soon, whatever happens."""
        return self._spawn(self._lease(window, want))

    async def _lease(self, window: Window, want: int) -> None:
        limiter, (sent, _) = window.limiter, self._clock()
        digest = hashlib.sha256(repr(window.key).encode()).hexdigest()[:32]
        try:
            given, rest, seconds = await self.store.take(
                f"{limiter.name}:{limiter.limit}/{limiter.seconds}:{digest}",
                limit=limiter.limit,
                want=want,
                seconds=limiter.seconds,
                timeout=self.timeout,
            )
        except StoreUnavailable:
            window.lease_failed()
        else:
            self._count(metrics.LEASES, limiter.name)
            # Counted from before it was asked, so that it never ends later here than there.
            window.grant(self, want, given, rest, sent + seconds)

    # -- the budget

    async def spend(self, environment: str, budget: Budget, *, timeout: float) -> float:
        """Spend one load; returns the seconds to wait instead, or 0 if it may begin.

        The store is waited for *timeout* seconds.
        """
        namespace, wait = self.namespaces.get(environment), None
        try:
            if namespace is not None:
                wait = await self.store.spend(
                    namespace.origin, limit=budget.limit, seconds=budget.seconds, timeout=timeout
                )
        except StoreUnavailable:
            pass
        if wait is None:
            budget.replicas = self.replicas
            wait = budget.wait(self._clock()[0])
        if wait <= 0:
            budget.spend(self._clock()[0])
        return wait

    def observe(self, environment: str, *, limit: int, remaining: int, reset: float) -> None:
        """Share what upstream said of its bucket."""
        if self.up and environment in self.namespaces:
            self.store.allow(self.namespaces[environment].origin, remaining - limit // 2, reset)

    def pause(self, environment: str, seconds: float) -> None:
        """Share that upstream wants nothing for *seconds*."""
        if self.up and environment in self.namespaces:
            self.store.pause(self.namespaces[environment].origin, seconds)

    # -- copies and loads

    async def load(self, request: LoadRequest) -> tuple[Outcome, bool]:
        """Get a session: another replica's copy if it is fresh, or a load that no other makes.

        Returns:
            What was found, and whether it was this replica that asked upstream for it.
        """
        where = self.namespaces.get(request.environment)
        if where is None:  # a change of settings removed it meanwhile
            return await request.ask(self.timeout), True

        def is_answer(found: Outcome) -> bool:
            return isinstance(found, Refusal) or request.fresh(found, self._clock()[0])

        lookup: SharedLookup[Outcome] = SharedLookup(
            where.copies,
            request.id,
            metric=metrics.SHARED_COPIES,
            decode=partial(self._decode, where.copies, request),
            is_answer=is_answer,
        )
        outcome, known, ours, claim = await self._look_up(lookup, request.ask)
        if not ours:
            return outcome, False
        copy = known if isinstance(known, Copy) else None
        if claim is not None:
            write = partial(self._write, where.copies, request, outcome, copy)
            self._spawn(self._keep(where, request.environment, lookup, claim, write))
        if isinstance(outcome, Refusal) and outcome.code != "not_found" and copy is not None:
            now, _ = self._clock()
            if now - copy.loaded < request.lifetime(copy):
                # Over the budget it is soon the next one's turn.
                copy.retry = now + min(outcome.retry_after or _RETRY_SECONDS, _RETRY_SECONDS)
                return copy, False
        return outcome, True

    async def _look_up(
        self, lookup: "SharedLookup[T]", ask: Callable[[float], Awaitable[T]]
    ) -> "tuple[T, T | None, bool, _Claim | None]":
        """Find what another replica brought, or *ask* while no other does.

        Returns:
            What it came to; what was found before, for what that is worth; whether it was asked
            for here, and the claim under which that was.
        """
        deadline, token = Deadline(self.timeout, self._clock), self._tokens()
        claim: _Claim | None = None
        found: T | None = None
        try:
            found = await self._read(lookup, deadline)
            if found is None or not lookup.is_answer(found):
                claimed = await self._claim(lookup, token, deadline)
                claim, found = claimed
            if found is not None and lookup.is_answer(found):
                if claim is not None:
                    self.store.release(lookup.namespace, lookup.id, token)
                self._count(lookup.metric, "used")
                return found, found, False, None
        except StoreUnavailable:
            found = None  # then this process asks, as if it were alone
        holding = claim and self._spawn(self._hold(lookup.namespace, lookup.id, token))
        try:
            return await ask(deadline.left), found, True, claim
        finally:
            if holding:
                holding.cancel()

    async def _read(self, lookup: "SharedLookup[T]", deadline: "Deadline") -> T | None:
        sent, _ = self._clock()
        value, seconds = await deadline.wait(
            self.store.read(lookup.namespace, lookup.id, timeout=deadline.left)
        )
        return self._found(lookup, value, seconds, sent)

    async def _claim(
        self, lookup: "SharedLookup[T]", token: str, deadline: "Deadline"
    ) -> "tuple[_Claim | None, T | None]":
        """Claim the right to ask, or wait until who has it brings something or gives up."""
        began, turn, left = self._clock()[0], 0, deadline.left
        while True:
            # It is the other's load that is waited for: of the questions only the last costs time.
            deadline.left, (sent, _) = left, self._clock()
            held, value, seconds, time = await deadline.wait(
                self.store.claim(lookup.namespace, lookup.id, token, CLAIM_SECONDS, timeout=left)
            )
            found = self._found(lookup, value, seconds, sent)
            if held:
                return _Claim(token, time, self._clock()[0]), found
            if found is not None and lookup.is_answer(found):
                return None, found
            if sent - began > self._patience:
                return None, found
            await asyncio.sleep(_POLL_SECONDS[min(turn, len(_POLL_SECONDS) - 1)])
            turn += 1

    async def _hold(self, namespace: str, id_: str, token: str) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 3)
            self.store.hold(namespace, id_, token, CLAIM_SECONDS)

    async def _keep(
        self,
        where: Namespace,
        environment: str,
        lookup: "SharedLookup[T]",
        claim: "_Claim",
        write: "Callable[[int], _Written | None]",
    ) -> None:
        """Keep what was brought, for all; then let others ask."""
        now, _ = self._clock()
        # The rules may have changed: nobody could tell by which of them it was projected, or let
        # pass. And of what was purged during a very long load, the store knows nothing any more.
        current = self.namespaces.get(environment) is where
        recent = now - claim.known <= _PURGE_MEMORY_SECONDS
        written = write(claim.time) if current and recent else None
        try:
            if written is not None and written.ends > now:
                result = await self.store.keep(
                    lookup.namespace,
                    [lookup.id, *written.others],
                    written.value,
                    token=claim.token,
                    claimed=claim.time,
                    until=claim.at(written.ends),
                )
                self._count(lookup.metric, result)
        except StoreUnavailable:
            pass
        finally:
            self.store.release(lookup.namespace, lookup.id, claim.token)

    def _write(
        self,
        namespace: str,
        request: LoadRequest,
        outcome: Outcome,
        known: Copy | None,
        claimed: int,
    ) -> "_Written | None":
        now, wall = self._clock()
        if isinstance(outcome, Copy):
            lifetime = request.lifetime(outcome)
            loaded = wall - (now - outcome.loaded)
            value = encode(namespace, outcome, lifetime, loaded, claimed)
            others = {id_ for _, id_ in outcome.keys} - {request.id}
            return _Written(value, others, outcome.loaded + lifetime)
        if outcome.code != "not_found":
            return None
        if known is not None:
            for id_ in {id_ for _, id_ in known.keys} - {request.id}:
                self.store.drop(namespace, id_)
        value = encode_missing(namespace, request.id, self.negative_ttl, claimed)
        return _Written(value, set(), now + self.negative_ttl)

    def _found(
        self, lookup: "SharedLookup[T]", value: bytes | None, seconds: float, sent: float
    ) -> T | None:
        """Read a value that stands in the store for *seconds* more, and did when it was *sent* for.

        Of its own age and the one that the store tells the greater counts.
        """
        if value is None:
            return None
        now, wall = self._clock()

        def moment(written: float, lifetime: float) -> float:
            if seconds < 0:
                raise ForeignError  # ours end
            return sent - max(wall - written - (now - sent), lifetime - seconds, 0.0)

        try:
            return lookup.decode(value, moment)
        except ForeignError:
            self._count(lookup.metric, "dropped")
            self.store.drop(lookup.namespace, lookup.id)
            return None

    def _decode(
        self, namespace: str, request: LoadRequest, value: bytes, moment: "_Moment"
    ) -> Outcome | None:
        found = decode(namespace, request.id, value)
        if found is None:
            raise ForeignError
        loaded = moment(found.loaded, found.lifetime)
        if found.missing:
            recent = self._clock()[0] - loaded < self.negative_ttl
            return Refusal("not_found") if recent else None
        return self._make(
            request.environment,
            found.id,
            found.external_id,
            found.body,
            found.closed,
            loaded,
        )

    # -- verdicts

    async def introspect(
        self,
        environment: str,
        digest: bytes,
        id_: str,
        ask: Callable[[], Awaitable[Introspection]],
    ) -> Introspection:
        """Get upstream's word on a token and a session: told to another replica, or asked for.

        Args:
            environment: the token's.
            digest: the token's too.
            id_: by which the session is asked for.
            ask: puts the token to the test, if no other replica does.
        """
        where = self.namespaces.get(environment)
        if where is None:  # a change of settings removed it meanwhile
            return await ask()
        lookup = SharedLookup(
            where.introspections,
            _introspection_name(where, digest, id_),
            metric=metrics.SHARED_VERDICTS,
            decode=partial(self._decode_introspection, where, digest, id_),
            is_answer=lambda introspection: introspection.until > self._clock()[0],
        )
        introspection, _, _, claim = await self._look_up(lookup, lambda _: ask())
        if claim is not None:
            write = partial(self._write_introspection, where, digest, id_, introspection)
            self._spawn(self._keep(where, environment, lookup, claim, write))
        return introspection

    def _write_introspection(
        self, where: Namespace, digest: bytes, id_: str, introspection: Introspection, claimed: int
    ) -> "_Written | None":
        if introspection.code in UNDECIDED and introspection.code != "over_budget":
            return None  # a trouble of this replica, maybe: the next one tries
        now, wall = self._clock()
        value = encode_introspection(
            where, digest, introspection, wall - (now - introspection.spoken), claimed
        )
        others = {
            _introspection_name(where, digest, other) for other in introspection.ids if other != id_
        }
        return _Written(value, others, introspection.until)

    def _decode_introspection(
        self, where: Namespace, digest: bytes, id_: str, value: bytes, moment: "_Moment"
    ) -> Introspection:
        found = decode_introspection(where, digest, id_, value)
        if found is None:
            raise ForeignError
        return replace(found, spoken=moment(found.spoken, found.seconds))

    # -- purges

    async def purge(self, environment: str, id_: str) -> None:
        """Forget a session in every replica and in the store, under both its ids.

        Raises:
            Away: the store cannot be reached, so other replicas keep what they have.
        """
        namespace = self.namespaces[environment]
        for other in await self._purge(namespace.copies, id_):
            await self._purge(namespace.copies, other)
        await self.store.publish(
            "purges", place=namespace.origin, rules=namespace.projection, id=id_
        )

    async def revoke(self, revocation: str) -> None:
        """Tell every replica of a revocation, also those that start later.

        Raises:
            Away: the store cannot be reached, so other replicas do not know.
        """
        await self.store.publish("revocations", revocation=revocation)

    async def republish(self, revocations: Sequence[str]) -> None:
        """Tell a store that has forgotten them, for it started again without its data."""
        try:
            if revocations and await self.store.is_silent("revocations"):
                for revocation in revocations:
                    await self.revoke(revocation)
        except StoreUnavailable:
            pass  # it is told when it comes back

    async def _purge(self, copies: str, id_: str) -> list[str]:
        value = await self.store.purge(copies, id_, remembered=_PURGE_MEMORY_SECONDS)
        found = decode(copies, id_, value) if value is not None else None
        if found is None or found.missing:
            return []
        return [other for other in (found.id, found.external_id) if other and other != id_]

    def _heard(self, message: dict[str, str]) -> None:
        if "revocation" in message:
            self._on_revocation(message["revocation"])
        for environment, namespace in self.namespaces.items():
            if message.get("place") == namespace.origin and "id" in message:
                self._on_purge(environment, message["id"])
                if message.get("rules") != namespace.projection:
                    # Whoever purged has another policy or version, and sees other copies.
                    self._spawn(self._purge_quietly(namespace.copies, message["id"]))

    async def _purge_quietly(self, copies: str, id_: str) -> None:
        try:
            for other in await self._purge(copies, id_):
                await self._purge(copies, other)
        except StoreUnavailable:
            pass


_Moment = Callable[[float, float], float]
"""When something happened, on the clock that never jumps: of a value that tells when (Unix seconds)
and for how many seconds from then on it is of use."""


@dataclass(frozen=True, slots=True)
class SharedLookup(Generic[T]):
    """What is looked for in the store before upstream is asked.

    Attributes:
        metric: counts what becomes of it.
        decode: reads its value: None if that is of no use; raises `ForeignError`.
        is_answer: whether it will do, so that upstream need not be asked.
    """

    namespace: str
    id: str
    metric: str
    decode: Callable[[bytes, _Moment], T | None]
    is_answer: Callable[[T], bool]


@dataclass(frozen=True, slots=True)
class _Written:
    """A value for the store.

    Attributes:
        others: names that it stands under beside the claimed one.
        ends: when it is of no more use.
    """

    value: bytes
    others: set[str]
    ends: float


class Deadline:
    """How much longer one load may wait for the store itself."""

    __slots__ = ("_clock", "left")

    def __init__(self, seconds: float, clock: Callable[[], tuple[float, float]]) -> None:
        self.left = seconds
        self._clock = clock

    async def wait(self, answer: Awaitable[T]) -> T:
        asked, _ = self._clock()
        try:
            return await answer
        finally:
            self.left -= self._clock()[0] - asked


@dataclass(frozen=True, slots=True)
class _Claim:
    """The right to make one load.

    Attributes:
        time: microseconds on the store's clock, before the load.
        known: when that was heard here: a little later.
    """

    token: str
    time: int
    known: float

    def at(self, moment: float) -> float:
        """Seconds on the store's clock at *moment* here, or earlier: it is when copies end."""
        return self.time / 1e6 + moment - self.known

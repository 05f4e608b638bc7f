"""Many replicas that behave as one: shared copies, one load, one limit, one budget.

Each of them works when the store is away: copies and loads are then this process's own, and of
limits and budget it takes the share of one replica among those that were last there.

A copy in the store is what a browser may see and nothing else: it is projected before it comes
here. It carries what it is (format, version, policy, environment, both ids) and a digest; what does
not fit the question is dropped and counted. It also carries when it was loaded; of that and of what
the store says, the greater age counts, so that neither a clock that is off nor a command that was
slow to arrive makes a copy younger.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeGuard, TypeVar

from bff.cache import Copy
from bff.errors import Refusal
from bff.limits import Budget, Window
from bff.store import Away, Store

CLAIM_SECONDS: Final = 1.0
"""A replica that dies during a load keeps the others from loading that session for so long."""
_POLL_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)
_RETRY_SECONDS: Final = 1.0
_FORMAT: Final = b"bff1"
_PURGE_MEMORY_SECONDS: Final = 60.0
"""Longer than any load takes."""

Outcome = Copy | Refusal
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Space:
    """One environment in the store.

    Attributes:
        place: the same for every gateway of the environment: budget and purges.
        rules: differs between policies and versions: copies.
    """

    place: str
    rules: str

    @property
    def copies(self) -> str:
        """Where copies are: nobody else's are read."""
        return f"{self.place}:{self.rules}"


@dataclass(frozen=True, slots=True)
class Question:
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


class Fleet:
    """What a replica has to do with the others.

    Args:
        store: where they meet; `start` opens it.
        spaces: by environment name.
        make: makes a copy: environment, id, external id, body, closed, loaded.
        negative_ttl: seconds that an absence is known.
        patience: seconds to wait for another replica's load.
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
        spaces: Mapping[str, Space],
        make: Callable[[str, str, str | None, bytes, bool, float], Copy],
        negative_ttl: float,
        patience: float,
        clock: Callable[[], tuple[float, float]],
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        tokens: Callable[[], str],
        count: Callable[..., None],
        on_purge: Callable[[str, str], None],
        on_revocation: Callable[[str], None],
    ) -> None:
        self.store = store
        self.spaces = spaces
        self.negative_ttl = negative_ttl
        self._make = make
        self._patience = patience
        self._clock = clock
        self._spawn = spawn
        self._tokens = tokens
        self._count = count
        self._on_purge = on_purge
        self._on_revocation = on_revocation
        # A request may wait for leases and then for a load: half of its time for each.
        self.within = store.timeout / 2

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

    def adopt(self, spaces: Mapping[str, Space], negative_ttl: float) -> None:
        """Go on by other settings; loads under way are kept by nobody else."""
        self.spaces, self.negative_ttl = spaces, negative_ttl

    async def stop(self) -> None:
        """Disconnect."""
        await self.store.close()

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
                within=self.within,
            )
        except Away:
            window.unsettle()
        else:
            self._count("bff_leases", limiter.name)
            # Counted from before it was asked, so that it never ends later here than there.
            window.settle(self, want, given, rest, sent + seconds)

    # -- the budget

    async def spend(self, environment: str, budget: Budget, *, within: float) -> float:
        """Spend one load; returns the seconds to wait instead, or 0 if it may begin.

        The store is waited for *within* seconds.
        """
        space, wait = self.spaces.get(environment), None
        try:
            if space is not None:
                wait = await self.store.spend(
                    space.place, limit=budget.limit, seconds=budget.seconds, within=within
                )
        except Away:
            pass
        if wait is None:
            budget.replicas = self.replicas
            wait = budget.wait(self._clock()[0])
        if wait <= 0:
            budget.spend(self._clock()[0])
        return wait

    def observe(self, environment: str, *, limit: int, remaining: int, reset: float) -> None:
        """Share what upstream said of its bucket."""
        if self.up and environment in self.spaces:
            self.store.allow(self.spaces[environment].place, remaining - limit // 2, reset)

    def pause(self, environment: str, seconds: float) -> None:
        """Share that upstream wants nothing for *seconds*."""
        if self.up and environment in self.spaces:
            self.store.pause(self.spaces[environment].place, seconds)

    # -- copies and loads

    async def load(self, question: Question) -> tuple[Outcome, bool]:
        """Get a session: another replica's copy if it is fresh, or a load that no other makes.

        Returns:
            What was found, and whether it was this replica that asked upstream for it.
        """
        where = self.spaces.get(question.environment)
        if where is None:  # a change of settings removed it meanwhile
            return await question.ask(self.within), True
        space, patience = where.copies, _Patience(self.within, self._clock)
        token = self._tokens()
        claim: _Claim | None = None
        known: Copy | None = None
        found: Outcome | None
        try:
            found = await self._read(space, question, patience)
            if self._is_answer(found, question):
                self._count("bff_shared_copies", "used")
                return found, False
            claim, found = await self._claim(space, question, token, patience)
            if self._is_answer(found, question):
                if claim is not None:
                    self.store.release(space, question.id, token)
                self._count("bff_shared_copies", "used")
                return found, False
            known = found if isinstance(found, Copy) else None
        except Away:
            pass  # then this process loads, as if it were alone
        holding = claim and self._spawn(self._hold(space, question.id, token))
        try:
            outcome = await question.ask(patience.left)
        finally:
            if holding:
                holding.cancel()
        if claim is not None:
            self._spawn(self._keep(where, question, outcome, known, claim))
        if isinstance(outcome, Refusal) and outcome.code != "not_found" and known is not None:
            now, _ = self._clock()
            if now - known.loaded < question.lifetime(known):
                # Over the budget it is soon the next one's turn.
                known.retry = now + min(outcome.retry_after or _RETRY_SECONDS, _RETRY_SECONDS)
                return known, False
        return outcome, True

    def _is_answer(self, found: Outcome | None, question: Question) -> TypeGuard[Outcome]:
        if isinstance(found, Copy):
            return question.fresh(found, self._clock()[0])
        return found is not None

    async def _read(self, space: str, question: Question, patience: "_Patience") -> Outcome | None:
        sent, _ = self._clock()
        value, seconds = await patience.wait(
            self.store.read(space, question.id, within=patience.left)
        )
        return self._decode(space, question, value, seconds, sent)

    async def _claim(
        self, space: str, question: Question, token: str, patience: "_Patience"
    ) -> "tuple[_Claim | None, Outcome | None]":
        """Claim the load, or wait until whoever has it brings a copy or gives up."""
        began, turn, left = self._clock()[0], 0, patience.left
        while True:
            # It is the other's load that is waited for: of the questions only the last costs time.
            patience.left, (sent, _) = left, self._clock()
            held, value, seconds, time = await patience.wait(
                self.store.claim(space, question.id, token, CLAIM_SECONDS, within=left)
            )
            found = self._decode(space, question, value, seconds, sent)
            if held:
                return _Claim(token, time, self._clock()[0]), found
            if self._is_answer(found, question) or sent - began > self._patience:
                return None, found
            await asyncio.sleep(_POLL_SECONDS[min(turn, len(_POLL_SECONDS) - 1)])
            turn += 1

    async def _hold(self, space: str, id_: str, token: str) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 3)
            self.store.hold(space, id_, token, CLAIM_SECONDS)

    async def _keep(
        self,
        where: Space,
        question: Question,
        outcome: Outcome,
        known: Copy | None,
        claim: "_Claim",
    ) -> None:
        """Keep what a load brought, for all; then let others load."""
        now, wall = self._clock()
        space = where.copies
        # The rules may have changed: nobody could tell by which of them it was projected. And of
        # what was purged during a very long load, the store knows nothing any more.
        current = self.spaces.get(question.environment) is where
        if not current or now - claim.known > _PURGE_MEMORY_SECONDS:
            self.store.release(space, question.id, claim.token)
            return
        ids: list[str] = []
        value, ends = b"", now
        if isinstance(outcome, Copy):
            lifetime = question.lifetime(outcome)
            ends = outcome.loaded + lifetime
            value = encode(space, outcome, lifetime, wall - (now - outcome.loaded), claim.time)
            ids = [question.id, *({id_ for _, id_ in outcome.keys} - {question.id})]
        elif outcome.code == "not_found":
            ends = now + self.negative_ttl
            value = encode_missing(space, question.id, self.negative_ttl, claim.time)
            ids = [question.id]
            if known is not None:
                for id_ in {id_ for _, id_ in known.keys} - {question.id}:
                    self.store.drop(space, id_)
        try:
            if ends > now:
                result = await self.store.keep(
                    space, ids, value, token=claim.token, claimed=claim.time, until=claim.at(ends)
                )
                self._count("bff_shared_copies", result)
        except Away:
            pass
        finally:
            self.store.release(space, question.id, claim.token)

    def _decode(
        self, space: str, question: Question, value: bytes | None, seconds: float, sent: float
    ) -> Outcome | None:
        if value is None:
            return None
        now, wall = self._clock()
        found = decode(space, question.id, value)
        if found is None or seconds < 0:
            self._count("bff_shared_copies", "dropped")
            self.store.drop(space, question.id)
            return None
        age = max(wall - found.loaded - (now - sent), found.lifetime - seconds, 0.0)
        if found.missing:
            return Refusal("not_found") if age < self.negative_ttl else None
        return self._make(
            question.environment,
            found.id,
            found.external_id,
            found.body,
            found.closed,
            sent - age,
        )

    # -- purges

    async def purge(self, environment: str, id_: str) -> None:
        """Forget a session in every replica and in the store, under both its ids.

        Raises:
            Away: the store cannot be reached, so other replicas keep what they have.
        """
        space = self.spaces[environment]
        for other in await self._purge(space.copies, id_):
            await self._purge(space.copies, other)
        await self.store.publish("purges", place=space.place, rules=space.rules, id=id_)

    async def revoke(self, revocation: str) -> None:
        """Tell every replica of a revocation, also those that start later.

        Raises:
            Away: the store cannot be reached, so other replicas do not know.
        """
        await self.store.publish("revocations", revocation=revocation)

    async def retell(self, revocations: Sequence[str]) -> None:
        """Tell a store that has forgotten them, for it started again without its data."""
        try:
            if revocations and await self.store.is_silent("revocations"):
                for revocation in revocations:
                    await self.revoke(revocation)
        except Away:
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
        for environment, space in self.spaces.items():
            if message.get("place") == space.place and "id" in message:
                self._on_purge(environment, message["id"])
                if message.get("rules") != space.rules:
                    # Whoever purged has another policy or version, and sees other copies.
                    self._spawn(self._purge_quietly(space.copies, message["id"]))

    async def _purge_quietly(self, copies: str, id_: str) -> None:
        try:
            for other in await self._purge(copies, id_):
                await self._purge(copies, other)
        except Away:
            pass


class _Patience:
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


@dataclass(frozen=True, slots=True)
class Found:
    """A value of the store, read: `loaded` is Unix seconds."""

    body: bytes
    id: str
    external_id: str | None
    closed: bool
    missing: bool
    loaded: float
    lifetime: float


def encode(space: str, copy: Copy, lifetime: float, loaded: float, claimed: int) -> bytes:
    """Write *copy*, loaded at *loaded* (Unix seconds) and of use for *lifetime* seconds."""
    about = [space, copy.id, copy.external_id, copy.closed, False, float(loaded), float(lifetime)]
    return _seal(claimed, about, copy.body)


def encode_missing(space: str, id_: str, lifetime: float, claimed: int) -> bytes:
    """Write that there is no such session; how old that is, the store knows."""
    return _seal(claimed, [space, id_, None, False, True, inf, float(lifetime)], b"")


def _seal(claimed: int, about: list[Any], body: bytes) -> bytes:
    head, text = b"%b %d" % (_FORMAT, claimed), json.dumps(about).encode() + b"\n" + body
    return b"%b %b\n%b" % (head, _digest(head, text), text)


def _digest(head: bytes, text: bytes) -> bytes:
    return hashlib.sha256(head + b"\n" + text).hexdigest().encode()


def decode(space: str, id_: str, value: bytes) -> Found | None:
    """Read a value that stood under *id_* in *space*; None if it is not one of these."""
    seal, _, text = value.partition(b"\n")
    head, _, digest = seal.rpartition(b" ")
    if not head.startswith(_FORMAT + b" ") or digest != _digest(head, text):
        return None
    about, _, body = text.partition(b"\n")
    try:
        its_space, *fields = json.loads(about)
        found = Found(body, *fields)
    except (ValueError, TypeError, RecursionError):
        return None
    if its_space != space or id_ not in (found.id, found.external_id):
        return None
    # A seal is no signature: whoever writes one may have meant something else by it.
    kinds = [type(field) for field in fields]
    return found if kinds in _KINDS else None


_KINDS: Final = [[str, ids, bool, bool, float, float] for ids in (str, type(None))]
"""Of the fields of a `Found`, but for the body."""


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits that differ when any of *parts* does."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

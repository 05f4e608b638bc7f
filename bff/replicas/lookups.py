"""The lookups that replicas share: copies of sessions, introspections of tokens, and peeks.

A copy is projected before it is stored, so it holds only what a browser may see. Its ids are
concealed, and its name is made with the store key, which the store does not know. An introspection
grants access. So it carries a MAC that only gateways with the same secret key can make, and its
id is made with that key too. The store can neither reveal a token nor grant access.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, NamedTuple

from bff import metrics
from bff.clock import Clock
from bff.errors import Refusal
from bff.limits.budget import Budget
from bff.live.answering import Peek
from bff.replicas.codec import (
    ForeignError,
    Namespace,
    copy_name,
    decode_copy,
    decode_introspection,
    decode_peek,
    encode_copy,
    encode_introspection,
    encode_missing,
    encode_peek,
    introspection_name,
    peek_name,
)
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.shared_loads import Moment, PurgedError, Value
from bff.sessions.copy import Copy
from bff.tokens.introspected import UNDECIDED, Introspection

Outcome = Copy | Refusal


class LoadRequest(NamedTuple):
    """A load of one session.

    Attributes:
        budget: the environment's, which pays for the load.
        ask: fetches it from upstream. It gets two numbers of seconds: until the budget of all
            replicas allows the call (0 if it has paid, None if the store did not answer), and
            for which it may still wait for the store.
        fresh: whether a copy may be served without a load at a given time.
        fresh_for: seconds after its load for which `fresh` may allow a copy, at most.
        lifetime: seconds after its load for which some replica may serve a copy.
    """

    environment: str
    id: str
    budget: Budget
    ask: Callable[[float | None, float], Awaitable[Outcome]]
    fresh: Callable[[Copy, float], bool]
    fresh_for: float
    lifetime: Callable[[Copy], float]


class CopyLookup(NamedTuple):
    """A lookup of a session's copy, or of its absence.

    Attributes:
        prefix: the part of its keys before the id.
        key: the store key.
        negative_ttl: seconds that an absence is kept.
        is_purged: whether a session with these ids was purged since its load was claimed.
        is_current: whether the settings still give the environment this namespace.
    """

    name: str
    prefix: str
    key: bytes
    budget: SharedBudget
    request: LoadRequest
    negative_ttl: float
    is_purged: Callable[[Iterable[str], int], bool]
    clock: Clock
    is_current: Callable[[], bool]

    @property
    def metric(self) -> str:
        return metrics.SHARED_COPIES

    @property
    def fresh_for(self) -> float:
        return max(self.request.fresh_for, self.negative_ttl)

    def decode(self, value: bytes, moment: Moment) -> Outcome | None:
        stored = decode_copy(self.prefix, self.request.id, value, key=self.key)
        if stored is None:
            raise ForeignError
        if self.is_purged(filter(None, (stored.id, stored.external_id)), stored.claimed):
            raise PurgedError
        loaded = moment(stored.loaded, stored.lifetime)
        if stored.missing:
            recent = self.clock()[0] - loaded < self.negative_ttl
            return Refusal("not_found") if recent else None
        return Copy(
            self.request.environment,
            stored.id,
            stored.external_id,
            stored.body,
            stored.closed,
            loaded,
        )

    def is_answer(self, entry: Outcome) -> bool:
        return isinstance(entry, Refusal) or self.request.fresh(entry, self.clock()[0])

    def encode(self, outcome: Outcome, previous: Outcome | None, claimed: int) -> Value | None:
        now, wall = self.clock()
        if isinstance(outcome, Copy):
            lifetime = self.request.lifetime(outcome)
            loaded = wall - (now - outcome.loaded)
            data = encode_copy(self.prefix, outcome, lifetime, loaded, claimed, key=self.key)
            return Value(data, self._other_names(outcome), outcome.loaded + lifetime)
        if outcome.code != "not_found":
            return None
        data = encode_missing(
            self.prefix, self.request.id, self.negative_ttl, claimed, key=self.key
        )
        obsolete = self._other_names(previous) if isinstance(previous, Copy) else set()
        return Value(data, set(), now + self.negative_ttl, obsolete)

    def _other_names(self, copy: Copy) -> set[str]:
        requested = self.request.id
        return {copy_name(self.prefix, id_, self.key) for _, id_ in copy.keys if id_ != requested}


@dataclass(frozen=True, slots=True)
class IntrospectionLookup:
    """A lookup of upstream's answer on one token and one session.

    Attributes:
        digest: the token's SHA-256.
        session_id: the id by which the session is requested.
        is_current: whether the settings still give the environment this namespace.
    """

    metric: ClassVar = metrics.SHARED_INTROSPECTIONS
    fresh_for: ClassVar = inf
    """The expiry of a stored introspection is the end of its use."""

    namespace: Namespace
    digest: bytes
    session_id: str
    clock: Clock
    is_current: Callable[[], bool]

    @property
    def name(self) -> str:
        return introspection_name(self.namespace, self.digest, self.session_id)

    @property
    def budget(self) -> SharedBudget:
        return SharedBudget(self.namespace.origin, 0, 0.0)  # a call spends the token's quota

    def decode(self, value: bytes, moment: Moment) -> Introspection:
        stored = decode_introspection(self.namespace, self.digest, self.session_id, value)
        if stored is None:
            raise ForeignError
        return replace(stored, answered_at=moment(stored.answered_at, stored.seconds))

    def is_answer(self, entry: Introspection) -> bool:
        return entry.until > self.clock()[0]

    def encode(self, outcome: Introspection, _: Introspection | None, claimed: int) -> Value | None:
        if outcome.code in UNDECIDED and outcome.code != "over_budget":
            return None  # the trouble may be this replica's alone, so another replica may try
        now, wall = self.clock()
        answered_at = wall - (now - outcome.answered_at)
        data = encode_introspection(self.namespace, self.digest, outcome, answered_at, claimed)
        others = set(outcome.ids) - {self.session_id}
        names = {introspection_name(self.namespace, self.digest, id_) for id_ in others}
        return Value(data, names, outcome.until)


@dataclass(frozen=True, slots=True)
class PeekLookup:
    """A lookup of a peek. Nothing is stored for a peek that failed: another replica may try.

    Attributes:
        key: the store key.
        session_id: the friendly id.
        fresh_for: seconds from the begin of a peek in which no other is made.
        is_current: whether the settings still give the environment this namespace.
    """

    metric: ClassVar = metrics.SHARED_PEEKS

    namespace: Namespace
    key: bytes
    session_id: str
    budget: SharedBudget
    fresh_for: float
    clock: Clock
    is_current: Callable[[], bool]

    @property
    def name(self) -> str:
        return peek_name(self.namespace.peeks_prefix, self.session_id, self.key)

    def decode(self, value: bytes, moment: Moment) -> Peek:
        stored = decode_peek(self.namespace.peeks_prefix, self.session_id, value, key=self.key)
        if stored is None:
            raise ForeignError
        idle, began, lifetime = stored
        return Peek(idle, moment(began, lifetime))

    def is_answer(self, entry: Peek | None) -> bool:
        return entry is not None and self.clock()[0] - entry.began < self.fresh_for

    def encode(self, outcome: Peek | None, _: Peek | None, claimed: int) -> Value | None:
        if outcome is None:
            return None
        now, wall = self.clock()
        began = wall - (now - outcome.began)
        data = encode_peek(
            self.namespace.peeks_prefix,
            self.session_id,
            (outcome.idle, began),
            self.fresh_for,
            claimed,
            key=self.key,
        )
        return Value(data, set(), outcome.began + self.fresh_for)

"""Tokens that only upstream can verify: the gateway calls it with the token itself.

Until upstream has answered, there is a claimant and no caller: its claims can only refuse it, and
each request with its token counts as one with a bad token. So an address that invents tokens
reaches its limit before many of them reach upstream. Only this module makes a caller of a claimant.
"""

import asyncio
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final

from bff import metrics
from bff.clock import Clock
from bff.config.runtime import RuntimeConfig
from bff.copies.loader import Loader
from bff.copies.single_flight import SingleFlight
from bff.errors import ErrorCode, Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import LOADED
from bff.gateway.context import RequestContext
from bff.gateway.pending import Pending, Resumable, Served, wait_for
from bff.limits.rate import Unlimited, UnlimitedWindow, Window
from bff.replicas.alone import AnySharing
from bff.response import Response
from bff.sessions.copy import Copy
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller, Claimant, accepted
from bff.tokens.introspected import (
    ACCEPTED_SECONDS,
    AUTHENTIC,
    OK,
    Introspection,
    Introspections,
    refusal_seconds,
)

MAX_IN_FLIGHT: Final = 50
"""Introspections at once: half of the connections upstream, so that loads have the rest."""
MAX_OF_CALLER: Final = 25
"""Introspections of one person at once, so that a long list leaves half of them to others."""

_MAX_TRIES: Final = 3
"""While upstream fails, a token is verified about at most this many of its sessions in turn."""
_OF_ONE_SESSION: Final = frozenset(("upstream_unavailable", "upstream_invalid"))
"""Codes of refusals that may concern one session alone."""
Outcome = Copy | Refusal | None
"""The session's copy, a refusal, or None if another replica made the call."""
NO_CHARGE: Final[Window] = UnlimitedWindow(Unlimited("bad-token"), None, inf, leased=False)
"""Stands for a token that is not charged, because it is authentic. A limit that is off charges with
another object, `UNLIMITED_WINDOW`."""
Subject = Caller | Claimant
"""The holder of a token that upstream verifies, once for each session."""


@dataclass(frozen=True, slots=True)
class PendingIntrospection:
    """Waits for upstream's answer about a token and a session."""

    request: RequestContext
    subject: Subject
    session_id: str
    task: "asyncio.Task[Outcome]"
    collapsed: bool
    """Whether another request started the introspection."""
    charge: Window
    """It is refunded if the token proves to be authentic."""
    introspector: "Introspector"
    fallback: None = None
    load: None = None

    async def wait(self, gateway: Resumable) -> None:
        """Wait for upstream's answer."""
        await wait_for(gateway, self.request, [self])

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide by upstream's answer; only an accepted token has a caller."""
        served = self.result(gateway)
        if isinstance(served, Refusal):
            # In upstream's trouble the token may be forged: it must not learn what is revoked.
            if served.code in AUTHENTIC:
                gateway.admission.refuse_revoked_session(
                    self.request, self.subject, self.session_id
                )
            return gateway.answers.refusal(self.request, served)
        caller = verified(self.subject)
        self.request.environment = caller.environment
        if served is None:
            return gateway.answer(self.request, caller, self.session_id)
        return gateway.answer_with(self.request, caller, self.session_id, served)

    def result(self, gateway: Resumable) -> Served | Refusal | None:
        """Return the outcome, and charge it: the token is verified only now."""
        brought = self.introspector.conclude(self, self.task.result())
        if not isinstance(brought, Copy):
            return brought
        if gateway.cache.is_purged(brought):
            return None
        if gateway.admission.is_session_revoked(self.request, self.subject, brought):
            return Refusal("unauthorized")
        return brought, LOADED[False, self.collapsed]


@dataclass(frozen=True, slots=True)
class PendingCaller:
    """Waits until upstream has verified a token; then the request is decided for its caller.

    The introspection is about any session that the token names, not about the request. The answer
    to the request is decided after it, when there is a caller.
    """

    introspection: PendingIntrospection
    others: tuple[str, ...]
    """More named sessions, for a failure that may concern the first one alone."""

    @property
    def request(self) -> RequestContext:
        """The request that it is for."""
        return self.introspection.request

    async def wait(self, gateway: Resumable) -> None:
        """Wait for upstream's answer."""
        await self.introspection.wait(gateway)

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide the request for its caller, if there is one now."""
        pending = self.introspection
        result = pending.result(gateway)
        if isinstance(result, Refusal) and result.code not in AUTHENTIC:
            if self.others and result.code in _OF_ONE_SESSION:
                return pending.introspector.verify(self.request, pending.subject, self.others)
            return gateway.answers.refusal(self.request, result)
        return gateway.serve(self.request, verified(pending.subject))


def _refusal(code: ErrorCode, seconds: float) -> Refusal:
    """Make the refusal of an introspection that holds for *seconds* more."""
    return Refusal(code, retry_after=seconds if code == "over_budget" else None)


def verified(subject: Subject) -> Caller:
    """Return the caller; only for a token that upstream has just verified."""
    return subject if isinstance(subject, Caller) else accepted(subject)


@dataclass(eq=False)
class Introspector:
    """Asks upstream about tokens. Requests with the same token and session share one call."""

    introspections: Introspections
    in_flight: "SingleFlight[tuple[bytes, str], Outcome]"
    loader: Loader
    sharing: AnySharing
    telemetry: Telemetry
    clock: Clock
    _config: RuntimeConfig = field(init=False)
    _admission: Admission = field(init=False)
    _running: Counter[Hashable] = field(default_factory=Counter, init=False)
    """Introspections in flight, by person."""

    def apply(self, config: RuntimeConfig, admission: Admission) -> None:
        """Use *config* from now on."""
        self._config, self._admission = config, admission

    def caller(self, claimant: Claimant, now: float) -> Caller | None:
        """Return the caller, if upstream verified the token in the last minute."""
        return accepted(claimant) if self.introspections.verified(claimant.digest, now) else None

    def is_accepted(self, caller: Caller, session_id: str, now: float) -> bool:
        """Whether the caller's token is verified for this session."""
        digest = caller.digest
        return digest is None or self.introspections.accepted(digest, session_id, now)

    def admits_chat(self, caller: Caller, session_id: str, now: float) -> bool:
        """Whether upstream has verified the caller's token, and nothing speaks against this chat.

        A chat may be followed before its session exists (404), and a token that only sends messages
        may not read the session (403). Such a refusal of a load says nothing against the chat.
        """
        digest = caller.digest
        if digest is None or self.introspections.accepted(digest, session_id, now):
            return True
        code, _ = self.introspections.refused(digest, session_id, now) or ("", 0.0)
        return code == "not_found" or (
            code == "unauthorized" and not caller.granted.covers(session_id)
        )

    def count_refused(self, request: RequestContext, subject: Subject) -> None:
        """Count a request that was refused before anyone verified its token.

        Raises:
            Refused: ``rate_limited``.
        """
        if not self._is_authentic(subject, request.now):
            self._admission.charge_unverified(request)

    def _is_authentic(self, subject: Subject, now: float) -> bool:
        """Whether upstream verified the token recently, so that it is not counted as a bad one."""
        digest = subject.digest
        return digest is None or self.introspections.authentic(digest, now)

    def verify(
        self, request: RequestContext, subject: Subject, named: tuple[str, ...]
    ) -> PendingCaller:
        """Let upstream verify a token, about the first *named* session for which it does not fail.

        Raises:
            Refused: as `start`.
        """
        session_id, *rest = named[:_MAX_TRIES]
        try:
            return PendingCaller(self.start(request, subject, session_id), tuple(rest))
        except Refused as refused:
            if not rest or refused.refusal.code not in _OF_ONE_SESSION:
                raise
        return self.verify(request, subject, tuple(rest))

    def start(
        self, request: RequestContext, subject: Subject, session_id: str
    ) -> PendingIntrospection:
        """Introspect a token, or join the introspection in flight.

        Raises:
            Refused: upstream refused the token recently, too many introspections are in flight, or
                the address has sent too many bad tokens.
        """
        digest, now = subject.digest or b"", request.now
        refused = self.introspections.refused(digest, session_id, now)
        if refused is not None:
            raise Refused.of(self._refused(request, subject, _refusal(*refused), NO_CHARGE))
        task, charge = self.in_flight.get((digest, session_id)), NO_CHARGE
        collapsed = task is not None
        if task is None:
            person = subject.limit_key(request.address)
            charge = self._charge(request, subject, self._running[person])
            work = self._introspect(subject, session_id, request.token, charge)
            task = self.in_flight.start((digest, session_id), work)
            self._running[person] += 1
            task.add_done_callback(lambda _: self._ended(person))
        return PendingIntrospection(request, subject, session_id, task, collapsed, charge, self)

    def _ended(self, person: Hashable) -> None:
        self._running[person] -= 1
        if not self._running[person]:
            del self._running[person]

    def _charge(self, request: RequestContext, subject: Subject, running: int) -> Window:
        """Charge an introspection that is about to start, while *running* others of its person."""
        if len(self.in_flight) >= MAX_IN_FLIGHT or running >= MAX_OF_CALLER:
            raise Refused("over_budget", retry_after=1)
        if self._is_authentic(subject, request.now):
            return NO_CHARGE
        return self._admission.charge_unverified(request)

    async def _introspect(
        self, subject: Subject, session_id: str, token: bytes, charge: Window
    ) -> Outcome:
        """Load the session with the browser's token, or take another replica's introspection.

        The token's `sub` is this environment's id, so the session is of this environment and fills
        the shared copy as every load does. The call does not change health and budget: both are
        about the secret key, and the call uses the browser's token.

        Returns:
            The outcome; None if another replica had the token accepted, because replicas share an
            introspection and not its session.
        """
        digest, config = subject.digest or b"", self._config
        environment = config.environments[subject.environment]
        outcome: Outcome = None

        async def ask() -> Introspection:
            nonlocal outcome
            get = partial(environment.upstream.get_as, token)
            outcome, _ = await self.loader.fetch(environment, session_id, get)
            now, wall = self.clock()
            if isinstance(outcome, Refusal):
                seconds = refusal_seconds(outcome.code, outcome.retry_after)
                introspection = Introspection(outcome.code, (session_id,), now, seconds)
            else:
                names = dict.fromkeys((session_id, outcome.id, outcome.external_id or outcome.id))
                seconds = min(subject.expires - wall, ACCEPTED_SECONDS)
                introspection = Introspection(OK, tuple(names), now, seconds)
            self.telemetry.count(metrics.TOKEN_TESTS, introspection.code)
            return introspection

        introspection = await self.sharing.introspect(environment.name, digest, session_id, ask)
        now, wall = self.clock()
        code, since = introspection.code, introspection.answered_at
        if outcome is None and code != OK:  # another replica's refusal
            outcome = _refusal(code, introspection.until - now)
        is_authentic = code in (OK, *AUTHENTIC)
        if is_authentic:
            charge.refund()
        if (self._config.verifier, self._config.origins) != (config.verifier, config.origins):
            return outcome
        if code == OK:
            seconds = subject.expires - wall + now - since
            self.introspections.accept(digest, introspection.ids, since, seconds)
        else:
            self.introspections.refuse(digest, session_id, since, code, introspection.seconds)
        if is_authentic and isinstance(subject, Claimant):
            self._config.verifier.remember(token, subject)
        return outcome

    def conclude(self, pending: PendingIntrospection, outcome: Outcome) -> Outcome:
        """Charge the caller or the address for a request that waited for an introspection."""
        request = pending.request
        if isinstance(outcome, Refusal):
            return self._refused(request, pending.subject, outcome, pending.charge)
        try:
            self._admission.charge_caller(request, verified(pending.subject))
        except Refused as limited:
            return limited.refusal
        return outcome

    def _refused(
        self, request: RequestContext, subject: Subject, refusal: Refusal, charge: Window
    ) -> Refusal:
        """Charge for upstream's refusal; returns the refusal for the browser."""
        try:
            if refusal.code in AUTHENTIC:
                self._admission.charge_caller(request, verified(subject))
            elif charge is NO_CHARGE and refusal.code == "token_invalid":
                self._admission.charge_bad_token(request, refusal)
            elif charge is NO_CHARGE:
                self.count_refused(request, subject)
            elif refusal.code == "token_invalid":
                self.telemetry.count(metrics.BAD_TOKENS, refusal.code)
        except Refused as limited:
            return limited.refusal
        return refusal

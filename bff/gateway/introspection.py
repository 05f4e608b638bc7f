"""Tokens that only upstream can verify: the gateway calls it with the token itself.

Until upstream has answered, a token counts as bad: an address that invents tokens meets its limit
before upstream meets the tokens. The gateway uses the claims of such a token only to refuse it.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from bff import metrics
from bff.clock import Clock
from bff.config.runtime import RuntimeConfig
from bff.copies.loader import Loader
from bff.copies.single_flight import SingleFlight
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.aliases import NAMED
from bff.gateway.answers import loaded
from bff.gateway.context import RequestContext
from bff.gateway.pending import Pending, Resumable, Served, conclude_member, wait_for
from bff.replicas.alone import AnySharing
from bff.response import Response
from bff.sessions.copy import Copy
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.introspected import (
    ACCEPTED_SECONDS,
    AUTHENTIC,
    OK,
    UNDECIDED,
    Introspection,
    Introspections,
    refusal_seconds,
)
from bff.tokens.scopes import Grant

MAX_IN_FLIGHT: Final = 50
"""Introspections at once: half of the connections upstream, so that loads have the rest."""

Outcome = Copy | Refusal | None
"""The session's copy, a refusal, or None if another replica made the call."""


class Charge(Protocol):
    """A charge that is refunded if the token proves to be authentic."""

    def refund(self) -> None:
        """Refund it."""


class _NoCharge:
    """An authentic token is not charged to the bad-token limit."""

    def refund(self) -> None:
        """Refund nothing."""


NO_CHARGE: Final[Charge] = _NoCharge()


@dataclass(frozen=True, slots=True)
class PendingIntrospection:
    """Waits for what upstream says of a token and a session."""

    request: RequestContext
    caller: Caller[Grant]
    session_id: str
    task: "asyncio.Task[Outcome]"
    collapsed: bool
    """Another request started it."""
    charge: Charge
    config: RuntimeConfig
    introspector: "Introspector"
    fallback: None = None

    async def wait(self, gateway: Resumable) -> None:
        """Wait for upstream's answer."""
        await wait_for(gateway, self.request, [self])

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide by upstream's answer."""
        return conclude_member(gateway, self, self.caller)

    def result(self, gateway: Resumable) -> Served | Refusal | None:
        """Return the outcome for this caller, and charge it: its token is verified only now."""
        outcome = self.introspector.conclude(self, self.task.result())
        if not isinstance(outcome, Copy):
            return outcome
        if gateway.cache.is_purged(outcome):
            return None
        if gateway.admission.is_session_revoked(self.request, self.caller, outcome):
            return Refusal("unauthorized")
        return outcome, loaded(stale=False, collapsed=self.collapsed)


class Introspector:
    """Asks upstream about tokens, once however many requests wait for the answer."""

    def __init__(
        self,
        introspections: Introspections,
        *,
        in_flight: "SingleFlight[tuple[bytes, str], Outcome]",
        loader: Loader,
        sharing: AnySharing,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._introspections = introspections
        self._in_flight = in_flight
        self._loader = loader
        self._sharing = sharing
        self._telemetry = telemetry
        self._clock = clock
        self._config: RuntimeConfig
        self._admission: Admission

    def apply(self, config: RuntimeConfig, admission: Admission) -> None:
        """Use *config* from now on."""
        self._config, self._admission = config, admission

    def is_accepted(self, caller: Caller[Grant], session_id: str, now: float) -> bool:
        """Whether the caller's token is verified for this session."""
        digest = caller.digest
        return digest is None or self._introspections.accepted(digest, session_id, now)

    def is_authentic(self, caller: Caller[Grant], now: float) -> bool:
        """Whether the caller's token is verified to be one of upstream's, for any session."""
        digest = caller.digest
        return digest is None or self._introspections.authentic(digest, now)

    def start(
        self, request: RequestContext, caller: Caller[Grant], session_id: str
    ) -> PendingIntrospection:
        """Introspect a token, or join the introspection in flight.

        Raises:
            Refused: upstream refused it lately, or too many are in flight, or the address has too
                many bad tokens.
        """
        digest, now = caller.digest or b"", request.now
        refused = self._introspections.refused(digest, session_id, now)
        if refused is not None:
            code, seconds = refused
            retry_after = seconds if code == "over_budget" else None
            refusal = Refusal(code, retry_after=retry_after)
            raise Refused.of(self._refused(request, caller, refusal, NO_CHARGE))
        task, charge = self._in_flight.get((digest, session_id)), NO_CHARGE
        collapsed = task is not None
        if task is None:
            charge = self._charge(request, caller)
            work = self._introspect(caller, session_id, request.token, charge)
            task = self._in_flight.start((digest, session_id), work)
        return PendingIntrospection(
            request, caller, session_id, task, collapsed, charge, self._config, self
        )

    def _charge(self, request: RequestContext, caller: Caller[Grant]) -> Charge:
        """Charge an introspection that is about to start."""
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            raise Refused("over_budget", retry_after=1)
        request.guess.charge()
        if request.guess.charged or self.is_authentic(caller, request.now):
            return NO_CHARGE
        window = self._admission.bad_token_window(request)
        if window.exhausted:
            request.window = window
            raise Refused("rate_limited")
        window.charge()
        return window

    async def _introspect(
        self, caller: Caller[Grant], session_id: str, token: bytes, charge: Charge
    ) -> Outcome:
        """Load the session with the browser's token, or take another replica's introspection.

        The token's `sub` is this environment's id, so the session is of this environment and fills
        the shared copy as every load does. Health and budget are the secret key's: they learn
        nothing from it.

        Returns:
            None if another replica made the call: it shares the result, not the session.
        """
        digest, config = caller.digest or b"", self._config
        environment = config.environments[caller.environment]
        outcome: Outcome = None

        async def ask() -> Introspection:
            nonlocal outcome
            get = partial(environment.upstream.get_as, token)
            outcome, _ = await self._loader.fetch(environment, session_id, get)
            now, wall = self._clock()
            if isinstance(outcome, Refusal):
                seconds = refusal_seconds(outcome.code, outcome.retry_after)
                introspection = Introspection(outcome.code, (session_id,), now, seconds)
            else:
                names = dict.fromkeys((session_id, outcome.id, outcome.external_id or outcome.id))
                seconds = min(caller.expires - wall, ACCEPTED_SECONDS)
                introspection = Introspection(OK, tuple(names), now, seconds)
            self._telemetry.count(metrics.TOKEN_TESTS, introspection.code)
            return introspection

        introspection = await self._sharing.introspect(environment.name, digest, session_id, ask)
        now, wall = self._clock()
        if outcome is None and introspection.code != OK:  # another replica's refusal
            seconds = introspection.until - now
            retry_after = seconds if introspection.code == "over_budget" else None
            outcome = Refusal(introspection.code, retry_after=retry_after)
        if introspection.code in (OK, *AUTHENTIC):
            charge.refund()
        if (self._config.verifier, self._config.origins) == (config.verifier, config.origins):
            self._keep(introspection, caller, session_id, token, now, wall)
        return outcome

    def _keep(
        self,
        introspection: Introspection,
        caller: Caller[Grant],
        session_id: str,
        token: bytes,
        now: float,
        wall: float,
    ) -> None:
        digest, since = caller.digest or b"", introspection.answered_at
        if introspection.code == OK:
            seconds = caller.expires - wall + now - since
            self._introspections.accept(digest, introspection.ids, since, seconds)
            self._config.verifier.remember(token, caller)
        else:
            self._introspections.refuse(
                digest, session_id, since, introspection.code, introspection.seconds
            )

    def conclude(self, pending: PendingIntrospection, outcome: Outcome) -> Outcome:
        """Charge the caller, or the address, for one request that waited."""
        request = pending.request
        if isinstance(outcome, Refusal):
            return self._refused(request, pending.caller, outcome, pending.charge)
        try:
            self._admission.charge_caller(request, pending.caller)
        except Refused as limited:
            return limited.refusal
        if outcome is None:
            request.guess.refund()  # no load was made for it, and the next one may be
        return outcome

    def _refused(
        self, request: RequestContext, caller: Caller[Grant], refusal: Refusal, charge: Charge
    ) -> Refusal:
        """Charge for upstream's refusal; returns the refusal for the browser."""
        try:
            if refusal.code == "token_invalid":
                # Upstream looks at the token first, so this tells nothing about the session.
                charged = charge is not NO_CHARGE or request.guess.charged
                request.guess = NAMED
                if charged:
                    self._telemetry.count(metrics.BAD_TOKENS, refusal.code)
                else:
                    self._admission.charge_bad_token(request, refusal)
            elif refusal.code not in UNDECIDED:
                self._admission.charge_caller(request, caller)
        except Refused as limited:
            return limited.refusal
        return refusal

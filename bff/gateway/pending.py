"""Answers that have to wait: for loads, for the members of a list, for leases.

`Gateway.decide` returns a `Pending` where the answer is not in memory. `Gateway.finish` awaits its
`wait`, admits the request again, and asks `conclude` for the answer, until there is a response.
Nothing is decided in `wait`. So no outcome of a wait, a refusal included, reaches a browser whose
token expired, lost its key or was revoked meanwhile.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final, Protocol

from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.load_queue import TURN_SECONDS, QueuedLoad
from bff.errors import Refusal
from bff.gateway.admission import Admission
from bff.gateway.answers import LOADED, STALE_IF_ERROR, Answers, CacheOutcome
from bff.gateway.context import RequestContext
from bff.limits.rate import Window
from bff.replicas.alone import AnySharing
from bff.request import RequestHead
from bff.response import Response
from bff.sessions.copy import Copy
from bff.tokens.caller import Caller, Holder

_UNAUTHORIZED: Final = HTTPStatus.UNAUTHORIZED

FALLBACK_SECONDS: Final = 1.0
"""Seconds that a request with a usable older copy waits for a newer one. A page of a list waits as
long for the turns of loads."""

Served = tuple[Copy, CacheOutcome]
"""A copy to answer with, and where it comes from."""


class Resumable(Protocol):
    """The part of the gateway that a pending answer needs."""

    config: RuntimeConfig
    admission: Admission
    answers: Answers
    cache: Cache
    sharing: AnySharing

    def clock(self) -> tuple[float, float]:
        """Read the two clocks."""

    def decide(self, head: RequestHead, now: float, wall: float) -> "Response | Pending":
        """Decide a request from its start."""

    def serve(self, request: RequestContext, caller: Caller) -> "Response | Pending":
        """Decide a request of a caller whose token is verified."""

    def answer(
        self, request: RequestContext, caller: Caller, session_id: str
    ) -> "Response | Pending":
        """Answer from the shared copy, or wait for its load."""

    def answer_with(
        self, request: RequestContext, caller: Caller, session_id: str, served: "Served"
    ) -> "Response | Pending":
        """Answer from a copy, or with the events of its session."""


class Pending(Protocol):
    """An answer that has to be waited for."""

    @property
    def request(self) -> RequestContext:
        """The request that it is for."""

    async def wait(self, gateway: Resumable) -> None:
        """Wait. Decides nothing and raises nothing."""

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide after the wait, for a request that was admitted again.

        Raises:
            Refused: the wait ended in a refusal.
            LeasePending: a limit has to be leased before it can be charged.
        """


class PendingMember(Protocol):
    """A wait for one session: alone, or as a member of a list."""

    @property
    def request(self) -> RequestContext:
        """The request that it is for."""

    @property
    def session_id(self) -> str:
        """The id of the request."""

    @property
    def task(self) -> "asyncio.Future[Copy | Refusal] | asyncio.Task[Copy | Refusal | None]":
        """The work that the request waits for; it goes on when the browser leaves."""

    @property
    def load(self) -> QueuedLoad | None:
        """The load that the request waits for; it may be queued. None for an introspection."""

    @property
    def fallback(self) -> Copy | None:
        """An older copy that may be served if the load fails."""

    def result(self, gateway: Resumable) -> Served | Refusal | None:
        """Return the outcome for this caller; None if the session has to be looked up again."""


@dataclass(frozen=True, slots=True)
class PendingLoad:
    """Waits for the load of a session's copy."""

    request: RequestContext
    caller: Caller
    session_id: str
    load: QueuedLoad
    fallback: Copy | None
    collapsed: bool
    """Another request started the load."""

    @property
    def task(self) -> "asyncio.Future[Copy | Refusal]":
        """The future of the load's outcome."""
        return self.load.outcome

    async def wait(self, gateway: Resumable) -> None:
        """Wait for the load."""
        await wait_for(gateway, self.request, [self])

    def call_back(self, gateway: Resumable, then: Callable[[], None]) -> Callable[[], None]:
        """Call *then* at the end of the wait, which is that of `wait` without a task.

        Returns what to call if the browser leaves; it does nothing after the end.
        """
        return _LoadWait(self, gateway, then).leave_early

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide on the copy's own ids."""
        if self.fallback is not None and not self.task.done() and not self._fallback(gateway):
            wait_on([self])
            return replace(self, fallback=None, collapsed=True)  # the fallback is too old by now
        request, caller = self.request, self.caller
        served = outcome(gateway, self, caller)
        if served is None:  # the copy was purged
            return gateway.answer(request, caller, self.session_id)
        if isinstance(served, Refusal):
            if served.retry_after is not None:
                self.load.keep(served.retry_after)
            return gateway.answers.refusal(request, served)
        return gateway.answer_with(request, caller, self.session_id, served)

    def result(self, gateway: Resumable) -> Served | Refusal | None:
        """Return the new copy, else the fallback, else the refusal of the load."""
        brought: Copy | Refusal
        if self.task.done():
            brought = self.task.result()
        else:  # its turn came too late, or not yet
            brought = Refusal("over_budget", retry_after=self.load.expected(self.request.now))
        fallback = self._fallback(gateway)
        served: Served
        if isinstance(brought, Copy):
            served = brought, LOADED[self.fallback is not None, self.collapsed]
        elif fallback and brought.code != "not_found":
            served = fallback, STALE_IF_ERROR
        else:
            return brought
        if gateway.cache.is_purged(served[0]):
            return None
        if gateway.admission.is_session_revoked(self.request, self.caller, served[0]):
            return Refusal("unauthorized")
        return served

    def _fallback(self, gateway: Resumable) -> Copy | None:
        copy, cache = self.fallback, gateway.cache
        return copy if copy is not None and cache.is_usable(copy, self.request.now) else None


class _LoadWait:
    """A wait for a load without a task.

    It uses no closures. They would refer to one another, so only the garbage collector could free
    what a miss leaves.
    """

    __slots__ = ("_began", "_gateway", "_pending", "_then", "_timer")

    def __init__(self, pending: PendingLoad, gateway: Resumable, then: Callable[[], None]) -> None:
        self._pending, self._gateway, self._then = pending, gateway, then
        self._began = pending.request.now
        self._timer: asyncio.TimerHandle | None = None
        load, fallback = pending.load, pending.fallback
        if fallback is not None or not load.spent:
            seconds = load.longest_wait(self._began) if fallback is None else FALLBACK_SECONDS
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end_if_queued)
        load.outcome.add_done_callback(self._end)

    def leave_early(self) -> None:
        """Stop, because the browser has left."""
        if self._stop():
            leave([self._pending], again=False)

    def _end_if_queued(self) -> None:
        load = self._pending.load
        if not load.outcome.done() and (self._pending.fallback is not None or load.queued):
            self._end()

    def _end(self, _: object = None) -> None:
        self._stop()
        leave([self._pending], again=True)
        request, (now, _) = self._pending.request, self._gateway.clock()
        request.waited = (request.waited or 0.0) + now - self._began
        self._then()

    def _stop(self) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        return self._pending.load.outcome.remove_done_callback(self._end) > 0


def outcome(gateway: Resumable, pending: PendingMember, holder: Holder) -> Served | Refusal | None:
    """Take the result of a wait for one session.

    A refusal of a revoked session becomes ``unauthorized``: it reveals nothing else.

    Raises:
        Refused: ``unauthorized``: the session is revoked.
    """
    served = pending.result(gateway)
    if isinstance(served, Refusal) and served.status != _UNAUTHORIZED:
        gateway.admission.refuse_revoked_session(pending.request, holder, pending.session_id)
    return served


async def wait_for(
    gateway: Resumable,
    request: RequestContext,
    members: Sequence[PendingMember],
    timeout: float | None = None,
    *,
    first: bool = False,
) -> None:
    """Wait for all loads, or for the *first*; for queued loads at most *timeout* seconds.

    Without *timeout*, they get the longest wait of their loads. If every load has a fallback, the
    wait takes at most `FALLBACK_SECONDS`.
    """
    began, _ = gateway.clock()
    if timeout is None:
        timeout = max((m.load.longest_wait(began) for m in members if m.load), default=TURN_SECONDS)
    until = asyncio.FIRST_COMPLETED if first else asyncio.ALL_COMPLETED
    again = False
    try:
        await _wait_for_loads(members, timeout, began, until)
        again = True
    finally:  # also when the browser has left
        leave(members, again=again)
    request.waited = (request.waited or 0.0) + gateway.clock()[0] - began


def wait_on(members: Sequence[PendingMember]) -> None:
    """Count the request as waiting for these loads again: `wait_for` ended its last wait."""
    for member in members:
        if member.load is not None:
            member.load.waiting += 1


def leave(members: Sequence[PendingMember], *, again: bool) -> None:
    """Count the request no longer; *again* says that it may come again for these loads."""
    for member in members:
        if member.load is not None:
            member.load.leave(again=again)


async def _wait_for_loads(
    members: Sequence[PendingMember], seconds: float, now: float, until: str
) -> None:
    if all(member.fallback for member in members):
        seconds = min(seconds, FALLBACK_SECONDS)
    near = [m.task for m in members if m.load is None or m.load.expected(now) <= seconds]
    if near:
        done, _ = await asyncio.wait(near, timeout=seconds, return_when=until)
        if done and until == asyncio.FIRST_COMPLETED:
            return
    in_flight = [
        m.task for m in members if not m.fallback and not (m.load is not None and m.load.queued)
    ]
    if in_flight:
        await asyncio.wait(in_flight, return_when=until)


@dataclass(frozen=True, slots=True)
class PendingLease:
    """Waits until replicas have granted a part of a limit; nothing is charged yet."""

    request: RequestContext
    window: Window
    lease: "asyncio.Task[None]"
    deadline: float
    """When the request stops waiting for leases, on the clock that never jumps."""

    async def wait(self, gateway: Resumable) -> None:
        """Wait for the lease, at most until the deadline."""
        left = self.deadline - gateway.clock()[0]
        await asyncio.wait([self.lease], timeout=max(0.0, left))

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide from the start, without the lease if that is late."""
        now, wall = gateway.clock()
        if now >= self.deadline or not self.lease.done():
            self.window.count_alone(now)
            gateway.sharing.check()
        answer = gateway.decide(self.request.head, now, wall)
        if isinstance(answer, PendingLease):
            return replace(answer, deadline=self.deadline)
        return answer

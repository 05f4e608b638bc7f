"""The things that an answer may have to wait for.

`Gateway.decide` returns a `Pending` where the answer is not in memory. `Gateway.finish` resumes it
until there is a response. `resume` does the waiting; the decision after the wait is the gateway's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from bff.config.runtime import RuntimeConfig
from bff.errors import Refusal
from bff.gateway.admission import Admission
from bff.gateway.answers import STALE_IF_ERROR, Answers, CacheOutcome, loaded
from bff.gateway.context import RequestContext
from bff.replicas.alone import AnySharing
from bff.request import RequestHead
from bff.response import Response
from bff.sessions.copy import Copy
from bff.tokens.caller import Caller
from bff.tokens.scopes import Grant

FALLBACK_SECONDS: Final = 1.0
"""Seconds that a request waits for a newer copy while an older, usable one is at hand."""

Served = tuple[Copy, CacheOutcome]
"""A copy to answer with, and where it comes from."""


class Resumable(Protocol):
    """The part of the gateway that a pending answer needs."""

    config: RuntimeConfig
    admission: Admission
    answers: Answers
    sharing: AnySharing

    def clock(self) -> tuple[float, float]:
        """Read the two clocks."""

    def decide(self, head: RequestHead, now: float, wall: float) -> "Response | Pending":
        """Decide a request from its start."""

    def answer(
        self, request: RequestContext, caller: Caller[Grant], session_id: str
    ) -> "Response | Pending":
        """Answer from the shared copy, or wait for its load."""


class Pending(Protocol):
    """An answer that has to be waited for."""

    @property
    def request(self) -> RequestContext:
        """The request that it is for."""

    async def resume(self, gateway: Resumable) -> "Response | Pending":
        """Wait, then decide.

        Raises:
            Refused: the wait ended in a refusal.
            LeasePending: a limit has to be leased before it can be charged.
        """


class Abandonable(Pending, Protocol):
    """A pending answer that decides apart from its wait."""

    @property
    def config(self) -> RuntimeConfig | None:
        """The configuration by which the gateway decided to wait; None to conclude in any case."""

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Decide after the wait, for a request that was admitted again."""


def resume_admitted(gateway: Resumable, pending: Abandonable) -> "Response | Pending":
    """Admit a request again after a wait, then decide.

    Meanwhile the token may have expired or been revoked, its key removed, the settings changed.
    """
    request = pending.request
    request.now, request.wall = gateway.clock()
    if pending.config is None:
        return pending.conclude(gateway)
    if pending.config is not gateway.config:
        return gateway.decide(request.head, request.now, request.wall)
    gateway.admission.authenticate(request)
    return pending.conclude(gateway)


class PendingMember(Protocol):
    """A wait for one session: alone, or as a member of a list."""

    @property
    def request(self) -> RequestContext:
        """The request that it is for."""

    @property
    def session_id(self) -> str:
        """The id of the request."""

    @property
    def config(self) -> RuntimeConfig:
        """The configuration by which the gateway decided to wait."""

    @property
    def task(self) -> "asyncio.Task[Copy | Refusal] | asyncio.Task[Copy | Refusal | None]":
        """The work that is waited for; it goes on when the browser leaves."""

    @property
    def fallback(self) -> Copy | None:
        """An older copy that may be served if the load fails."""

    def result(self, gateway: Resumable) -> Served | Refusal | None:
        """Returns the outcome for this caller; None if the session has to be looked up again."""


@dataclass(frozen=True, slots=True)
class PendingLoad:
    """Waits for the load of a session's copy."""

    request: RequestContext
    caller: Caller[Grant]
    session_id: str
    task: "asyncio.Task[Copy | Refusal]"
    fallback: Copy | None
    collapsed: bool
    """Another request started the load."""
    config: RuntimeConfig

    async def resume(self, gateway: Resumable) -> "Response | Pending":
        """Wait for the load; then decide on the copy's own ids."""
        return await resume_member(gateway, self, self.caller)

    def result(self, gateway: Resumable) -> Served | Refusal:
        """The new copy; failing that the fallback; failing that the reason."""
        brought = self.task.result() if self.task.done() else Refusal("upstream_timeout")
        served: Served
        if isinstance(brought, Copy):
            served = brought, loaded(stale=self.fallback is not None, collapsed=self.collapsed)
        elif self.fallback and brought.code != "not_found":
            served = self.fallback, STALE_IF_ERROR
        else:
            return brought
        if gateway.admission.is_session_revoked(self.request, self.caller, served[0]):
            return Refusal("unauthorized")
        return served


async def resume_member(
    gateway: Resumable, pending: PendingMember, caller: Caller[Grant]
) -> "Response | Pending":
    """Wait for one session, then decide again: the token, its key and the policy may be gone."""
    request = pending.request
    await wait_for(gateway, request, [pending])
    served = pending.result(gateway)
    if pending.config is not gateway.config:
        return decide_again(gateway, request, served)
    gateway.admission.refuse_revoked_token(request, caller)
    if served is None:
        return gateway.answer(request, caller, pending.session_id)
    if isinstance(served, Refusal):
        return gateway.answers.refusal(request, served)
    return gateway.answers.session(request, caller, *served)


async def wait_for(
    gateway: Resumable, request: RequestContext, members: Sequence[PendingMember]
) -> None:
    """Wait until all loads have ended, or shortly if each of them has a fallback."""
    began, _ = gateway.clock()
    timeout = FALLBACK_SECONDS if all(member.fallback for member in members) else None
    if timeout is None and len(members) == 1:
        await _ended(members[0].task)
    else:
        await asyncio.wait([member.task for member in members], timeout=timeout)
    request.now, request.wall = gateway.clock()
    request.waited = (request.waited or 0.0) + request.now - began


async def _ended(task: "asyncio.Task[Any]") -> None:
    """Wait until *task* has ended; a cancelled waiter does not cancel it.

    This costs a quarter of `asyncio.wait`, and nearly every miss waits for one task.
    """
    if task.done():
        return
    waiter = asyncio.get_running_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    try:
        await waiter
    finally:
        task.remove_done_callback(wake)


def decide_again(
    gateway: Resumable, request: RequestContext, served: Served | Refusal | None
) -> "Response | Pending":
    """Decide from the start, because the configuration changed during the wait.

    The cache keeps the loaded copy unless the new configuration forbids it, so upstream is not
    called twice.
    """
    if isinstance(served, Refusal):
        return gateway.answers.refusal(request, served)
    return gateway.decide(request.head, *gateway.clock())


@dataclass(frozen=True, slots=True)
class PendingLease:
    """Waits until replicas have granted a part of a limit; nothing is charged yet."""

    request: RequestContext
    lease: "asyncio.Task[None]"
    deadline: float
    """When the store counts as unavailable, on the clock that never jumps."""

    async def resume(self, gateway: Resumable) -> "Response | Pending":
        """Wait for the lease, and decide from the start."""
        left = self.deadline - gateway.clock()[0]
        await asyncio.wait([self.lease], timeout=max(0.0, left))
        if left <= 0 or not self.lease.done():
            gateway.sharing.mark_down()
        answer = gateway.decide(self.request.head, *gateway.clock())
        if isinstance(answer, PendingLease):
            return replace(answer, deadline=self.deadline)
        return answer

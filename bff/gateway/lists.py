"""A chat list: the sessions that a token names, a page at a time.

A list takes the same path as a session. Its query stands in place of the id, the sessions that the
token names in place of the check of scopes; each member then has the same copy, load and decision.
"""

from dataclasses import dataclass

from bff import metrics
from bff.config.runtime import RuntimeConfig
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import STALE_IF_ERROR, Answers
from bff.gateway.context import RequestContext
from bff.gateway.introspection import PendingIntrospection
from bff.gateway.members import WHOLE_REQUEST, Members
from bff.gateway.pending import (
    Pending,
    PendingLoad,
    PendingMember,
    Resumable,
    Served,
    outcome,
    wait_for,
)
from bff.response import Response
from bff.sessions import ids, list_query
from bff.sessions.copy import Copy
from bff.sessions.page import Listing
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.scopes import Grant


@dataclass(frozen=True, slots=True)
class PendingList:
    """Waits for the members that a page needs."""

    request: RequestContext
    caller: Caller[Grant]
    listing: Listing
    members: list[PendingMember]
    lists: "Lists"
    config: RuntimeConfig

    async def wait(self, gateway: Resumable) -> None:
        """Wait for the members."""
        await wait_for(gateway, self.request, self.members)

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Make the page; more members may follow, where some are missing or filtered out."""
        request, caller = self.request, self.caller
        self.listing.forget(
            unless=lambda copy: gateway.is_usable(copy, request.now),
            purged=gateway.cache.is_purged,
        )
        for member in self.members:
            try:
                served = outcome(gateway, member, caller)
            except Refused as refused:
                served = refused.refusal
            if isinstance(served, Refusal) and served.code in WHOLE_REQUEST:
                return gateway.answers.refusal(request, served)
            if served is not None:
                self.listing.outcomes[member.session_id] = self.lists.count(served)
            if isinstance(served, tuple) and served[1] is STALE_IF_ERROR:
                self.listing.in_memory.add(member.session_id)
        return self.lists.answer(request, caller, self.listing, b"fwd=miss")


class Lists:
    """Decides lists by one configuration."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        admission: Admission,
        answers: Answers,
        members: Members,
        telemetry: Telemetry,
    ) -> None:
        self._config = config
        self._visible = config.visible
        self._admission = admission
        self._answers = answers
        self._members = members
        self._telemetry = telemetry

    def decide(self, request: RequestContext, caller: Caller[Grant]) -> Response | PendingList:
        """Decide a list.

        Raises:
            Refused: ``bad_request``, ``unauthorized``, ``rate_limited`` or one of its members'.
        """
        query = list_query.parse(request.head.query, visible=self._visible, wall=request.wall)
        if caller.granted.every:
            raise Refused(
                "unauthorized",
                "A list holds the sessions that the token names: mint it with one scope "
                "read:sessions:<id> for each of them",
            )
        named = ids.named(caller.granted)
        if not named:
            raise Refused("unauthorized")
        self._admission.charge_caller(request, caller)
        return self.answer(request, caller, Listing(query, named, caller.key, request.wall), b"hit")

    def answer(
        self, request: RequestContext, caller: Caller[Grant], listing: Listing, cache_status: bytes
    ) -> Response | PendingList:
        """Answer with a page from memory, or say which members have to be waited for."""
        members: list[PendingMember] = []

        def find(session_id: str) -> Copy | Refusal | None:
            outcome = listing.outcomes.get(session_id)
            if outcome is None:
                served = self._members.find(request, caller, session_id)
                if isinstance(served, PendingLoad | PendingIntrospection):
                    members.append(served)
                    return None
                outcome = listing.outcomes[session_id] = self.count(served)
                listing.in_memory.add(session_id)
            return outcome

        page = listing.page(find)
        if page is None:
            return PendingList(request, caller, listing, members, self, self._config)
        return self._answers.list_page(request, caller, page, cache_status)

    def count(self, served: Served | Refusal) -> Copy | Refusal:
        """Count what the cache did for a member."""
        if isinstance(served, Refusal):
            return served
        copy, outcome = served
        self._telemetry.count(metrics.CACHE, copy.environment, outcome.label)
        return copy

"""A chat list: the sessions that a token names, a page at a time.

A list takes the same path as a session, with two differences: a query replaces the id, and the
sessions that the token names replace the check of scopes. Each member has the same copy, load and
decision as a session that is requested alone.
"""

from dataclasses import dataclass
from typing import Final

from bff import metrics
from bff.config.runtime import RuntimeConfig
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import HIT, STALE, STALE_IF_ERROR, Answers, CacheOutcome
from bff.gateway.context import RequestContext
from bff.gateway.introspection import PendingIntrospection
from bff.gateway.live import Live, PendingListener, without_pages
from bff.gateway.members import WHOLE_REQUEST, Members
from bff.gateway.pending import (
    FALLBACK_SECONDS,
    Pending,
    PendingLoad,
    PendingMember,
    Resumable,
    Served,
    leave,
    outcome,
    wait_for,
)
from bff.response import Response
from bff.sessions import ids, list_query
from bff.sessions.copy import Copy
from bff.sessions.list_answer import Listing, is_late
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller

LATE_SECONDS: Final = 3.0
"""Seconds that a page waits for the turns of loads if it only tries late sessions again. It waits
longer than other pages, because it is the last chance to show these sessions."""
Sources = dict[str, CacheOutcome]
"""Where the copies of a list come from, by named id."""


@dataclass(frozen=True, slots=True)
class PendingList:
    """Waits for the members that a page needs."""

    request: RequestContext
    caller: Caller
    listing: Listing
    sources: "Sources"
    members: list[PendingMember]
    lists: "Lists"

    async def wait(self, gateway: Resumable) -> None:
        """Wait for the members. The rounds of one page share one bound on the wait.

        A later round waits for no load beyond it. Otherwise copies that expire one after another
        during the wait could prolong it again and again.
        """
        bound = LATE_SECONDS if self.listing.only_late else FALLBACK_SECONDS
        left = bound - (self.request.waited or 0.0)
        late = [member for member in self.members if left <= 0 and member.load is not None]
        leave(late, again=True)
        members = [member for member in self.members if member not in late]
        await wait_for(gateway, self.request, members, max(0.0, left))

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Make the page. If members are missing or filtered out, it may wait for others."""
        request, caller = self.request, self.caller
        self.listing.forget(
            unless=lambda copy: gateway.cache.is_usable(copy, request.now),
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
                self.lists.keep(self.request, self.listing, self.sources, member.session_id, served)
            if isinstance(served, tuple) and served[1] is STALE_IF_ERROR:
                self.listing.in_memory.add(member.session_id)
        return self.lists.answer(request, caller, self.listing, self.sources)


@dataclass(eq=False)
class Lists:
    """Decides lists by one configuration."""

    config: RuntimeConfig
    admission: Admission
    answers: Answers
    members: Members
    live: Live
    telemetry: Telemetry

    def decide(self, request: RequestContext, caller: Caller) -> Response | Pending:
        """Decide a list.

        Raises:
            Refused: ``bad_request``, ``unauthorized``, ``rate_limited``, or a refusal of a member
                that is one of `WHOLE_REQUEST`.
        """
        is_live = self.live.is_for(request)
        query = list_query.parse(
            request.head.query,
            visible=self.config.visible,
            wall=request.wall,
            has_pages=not is_live,
        )
        if caller.granted.every:
            raise Refused(
                "unauthorized",
                "A list holds the sessions that the token names: mint it with one scope "
                "read:sessions:<id> for each of them",
            )
        named = ids.named(caller.granted)
        if is_live:
            query = without_pages(query, named)
        self.admission.charge_caller(request, caller)
        return self.answer(request, caller, Listing(query, named, caller.key, request.wall), {})

    def answer(
        self, request: RequestContext, caller: Caller, listing: Listing, sources: Sources
    ) -> Response | Pending:
        """Answer with a page from memory, or return the members to wait for."""
        members: list[PendingMember] = []

        def find(session_id: str) -> Copy | Refusal | None:
            result = listing.outcomes.get(session_id)
            if result is None:
                served = self.members.find(request, caller, session_id)
                if isinstance(served, PendingLoad | PendingIntrospection):
                    members.append(served)
                    return None
                result = self.keep(request, listing, sources, session_id, served)
                listing.in_memory.add(session_id)
            return result

        # The loads of members without a copy start first, whatever their position in the list.
        with self.members.hold(caller):
            page = listing.page(find)
        if page is None:
            return PendingList(request, caller, listing, sources, members, self)
        if page.refusal is None and self.live.is_for(request):
            shown = dict(zip(page.shown, page.copies, strict=True))
            return PendingListener(
                request, caller, self.live, listing.named, shown, page.unavailable, listing.query
            )
        cache_status = _summarize([sources[id_] for id_ in page.shown])
        return self.answers.list_page(request, caller, page, cache_status)

    def keep(
        self,
        request: RequestContext,
        listing: Listing,
        sources: Sources,
        session_id: str,
        served: Served | Refusal,
    ) -> Copy | Refusal:
        """Keep the outcome of one member, and count what the cache did for it."""
        if isinstance(served, Refusal):
            result: Copy | Refusal = served
            if served.code != "not_found":
                label = "late" if is_late(served) else "unavailable"
                self.telemetry.count(metrics.CACHE, request.environment, label)
        else:
            result, source = served
            sources[session_id] = source
            self.telemetry.count(metrics.CACHE, request.environment, source.label)
        listing.outcomes[session_id] = result
        return result


def _summarize(sources: list[CacheOutcome]) -> bytes:
    """Write the Cache-Status of a page (RFC 9211): what was loaded, and how old the rest is."""
    loaded = [one.cache_status for one in sources if one not in (HIT, STALE, STALE_IF_ERROR)]
    status, detail = b"hit", b""
    if loaded:
        status = b"fwd=miss" if any(b"miss" in one for one in loaded) else b"fwd=stale"
    for one in (STALE_IF_ERROR, STALE):
        if one in sources:
            detail = one.cache_status.removeprefix(HIT.cache_status)
            break
    return status + detail

"""Ids in the other form: the browser requests the friendly id, the token names the external id.

An id that the token does not name is looked up nowhere: not in the cache, not in the store, not
upstream. The gateway looks up the sessions that the token names, and compares their two ids with
the requested one. So a guess costs the same, and gets the same answer, whether or not the session
exists. Trouble in a lookup does not depend on the requested id, so the browser may learn
of it.
"""

from dataclasses import dataclass
from typing import Final

from bff.copies.load_queue import TURN_SECONDS
from bff.copies.pairs import Pairs
from bff.errors import Refusal, Refused
from bff.gateway.context import RequestContext
from bff.gateway.members import WHOLE_REQUEST, Members
from bff.gateway.pending import (
    Pending,
    PendingMember,
    Resumable,
    leave,
    outcome,
    wait_for,
    wait_on,
)
from bff.limits.rate import UNLIMITED_WINDOW
from bff.response import Response
from bff.sessions import ids
from bff.sessions.copy import Copy
from bff.tokens.caller import Caller

MAX_UNKNOWN: Final = 20
"""Named sessions that are looked up for one request, at most: a list's default page size."""
_NO_SESSION: Final = frozenset(("not_found", "unauthorized"))
"""Codes of refusals that show that a named session is not the requested one."""


@dataclass(frozen=True, slots=True)
class PendingAlias:
    """Waits for named sessions, one of which may be the requested one.

    A request for a session that the token names is answered as soon as its ids are known. Every
    other request waits for all of them, so its time reveals nothing about the requested id.
    """

    request: RequestContext
    caller: Caller
    session_id: str
    outcomes: dict[str, Refusal]
    """The refusal of each named session whose lookup has failed, by id."""
    members: list[PendingMember]
    aliases: "Aliases"

    async def wait(self, gateway: Resumable) -> None:
        """Wait for the next named session. All waits of a request share the bound on one turn."""
        left = max(0.0, TURN_SECONDS - (self.request.waited or 0.0))
        await wait_for(gateway, self.request, self.members, left, first=True)

    def conclude(self, gateway: Resumable) -> "Response | Pending":
        """Answer with the requested session or, once all ids are known, with a refusal."""
        # If no lookup has ended, the turns of all loads come too late.
        ended = [member for member in self.members if member.task.done()] or [*self.members]
        for member in ended:
            self.members.remove(member)
        wait_on(self.members)
        for member in ended:
            answer = self._conclude(gateway, member)
            if answer is not None:
                leave(self.members, again=False)
                return answer
        if not self.members:
            return gateway.answers.refusal(self.request, self.refusal())
        return self

    def _conclude(self, gateway: Resumable, member: PendingMember) -> "Response | Pending | None":
        """Return the answer if one named session decides it."""
        request, caller = self.request, self.caller
        try:
            served = outcome(gateway, member, caller)
        except Refused as refused:
            served = refused.refusal
        if isinstance(served, Refusal):
            if served.code in WHOLE_REQUEST:
                return gateway.answers.refusal(request, served)
            self.outcomes[member.session_id] = served
        elif served is None:  # the copy is still to be looked up
            if self.aliases.look_up(self, member.session_id):
                return gateway.answer(request, caller, member.session_id)
        elif has_id(served[0], self.session_id):
            return gateway.answer_with(request, caller, member.session_id, served)
        return None

    def refusal(self) -> Refusal:
        """Return the refusal for a request that no named session matches: trouble, or 403.

        Its headers show no limit, as in a 403 that needed no lookup.
        """
        self.request.window = UNLIMITED_WINDOW
        for refusal in self.outcomes.values():
            if refusal.code not in _NO_SESSION:
                return refusal
        return Refusal("unauthorized")


@dataclass(eq=False)
class Aliases:
    """Finds the named session that an id in the other form belongs to."""

    pairs: Pairs
    members: Members

    def candidates(self, caller: Caller, session_id: str) -> str | list[str]:
        """Return the named id of the session with *session_id*, or the named ids to look up.

        The pairs of all named ids are read, whatever *session_id* is; it only decides the match.

        Raises:
            Refused: ``unauthorized``: there is no id to look up, or there are too many.
        """
        unknown = []
        for named in ids.named_in_other_form(caller.granted, session_id):
            if self.pairs.other(caller.environment, named) == session_id:
                return named
            if not self.pairs.has(caller.environment, named):
                unknown.append(named)
        if len(unknown) > MAX_UNKNOWN:
            raise Refused("unauthorized", "Ask by the id of the session that the token names")
        if not unknown:
            raise Refused("unauthorized")
        return unknown

    def find(self, request: RequestContext, caller: Caller, session_id: str) -> str | PendingAlias:
        """Return the named id of the session with *session_id*, or wait until it is known.

        Raises:
            Refused: ``unauthorized``, or a refusal of the lookups.
        """
        request.window = UNLIMITED_WINDOW  # a 403 shows no limit, whatever was charged before
        candidates = self.candidates(caller, session_id)
        if isinstance(candidates, str):
            return candidates
        pending = PendingAlias(request, caller, session_id, {}, [], self)
        with self.members.hold(caller):
            for named in candidates:
                if self.look_up(pending, named):
                    leave(pending.members, again=False)
                    return named
        if not pending.members:
            raise Refused.of(pending.refusal())
        return pending

    def look_up(self, pending: PendingAlias, named: str) -> bool:
        """Look up one named session, or wait for it; returns whether it is the requested one.

        Raises:
            Refused: a refusal that every other named session would meet as well.
        """
        member = self.members.find(pending.request, pending.caller, named)
        if isinstance(member, Refusal):
            pending.outcomes[named] = member
            return False
        # The ids of a session never change, so those of an older copy still hold.
        if isinstance(member, tuple):
            return has_id(member[0], pending.session_id)
        if member.fallback is not None:
            leave([member], again=True)
            return has_id(member.fallback, pending.session_id)
        pending.members.append(member)
        return False


def has_id(copy: Copy, id_: str) -> bool:
    """Whether *id_* is one of the ids of the copy's session."""
    return id_ in (copy.id, copy.external_id)

"""Live session state: who may listen, what each listener sees of a change, and what ends it.

A listener takes the path of a poll until there is an answer; then the answer is an event stream.
From then on it is like a poll that is repeated at each change: the token, the settings and the
revocations are checked again, and `answers` authorizes the caller for the copy's own ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.pairs import Pairs
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import Answers
from bff.gateway.context import RequestContext
from bff.gateway.introspection import Introspector
from bff.gateway.pending import Resumable
from bff.gateway.routes import LIST
from bff.limits.client_address import is_trusted
from bff.live import events
from bff.live.answering import Answering, NoAnswering
from bff.live.listener import Listener
from bff.live.listeners import FOLLOWED_BY_EACH, MAX_FOLLOWED, Listeners, Show
from bff.response import Response
from bff.sessions import list_query
from bff.sessions.copy import Copy
from bff.sessions.list_answer import unavailable_members
from bff.sessions.list_query import Query
from bff.tokens.caller import Caller
from bff.tokens.revocations import Revocations


@dataclass(slots=True, eq=False)
class Grounds:
    """The facts that allowed a listener; they are checked at each event, and twice a second.

    Attributes:
        config: the settings by which it was checked last.
        changes: how many revocations there were then.
    """

    request: RequestContext
    caller: Caller
    query: Query
    config: RuntimeConfig
    changes: int
    listener: Listener | None = None


@dataclass(slots=True, eq=False)
class PendingListener:
    """Hands a listener to the server, which then owns it. It waits for nothing.

    The server takes over streams only after a wait, so a hit need not look for one.

    Attributes:
        names: the sessions that it follows.
        shown: those that it shows now.
        unavailable: those that cannot be loaded now.
        query: a list's; by default it filters nothing.
    """

    request: RequestContext
    caller: Caller
    live: "Live"
    names: Sequence[str]
    shown: Mapping[str, Copy]
    unavailable: Mapping[str, Refusal] = field(default_factory=dict)
    query: Query = field(default_factory=Query)

    async def wait(self, gateway: Resumable) -> None:
        """Wait for nothing."""

    def conclude(self, gateway: Resumable) -> Response:  # noqa: ARG002
        """Open the stream.

        Raises:
            Refused: ``too_many_streams``, ``overloaded`` or ``unauthorized``.
        """
        return self.live.open(self)


@dataclass(eq=False)
class Live:
    """Decides about listeners by one configuration.

    Args:
        listeners: those that are open.
        pairs: the ids of sessions that loads brought.
        answering: whether agents are answering.
    """

    config: RuntimeConfig
    admission: Admission
    answers: Answers
    cache: Cache
    introspector: Introspector
    revocations: Revocations
    pairs: Pairs
    listeners: Listeners
    answering: Answering | NoAnswering

    # -- the beginning

    def is_for(self, request: RequestContext) -> bool:
        """Whether a request is for an event stream. A HEAD gets the head of a poll."""
        head = request.head
        return head.fields.events and self.config.live.enabled and head.method == "GET"

    def open(self, pending: PendingListener) -> Response:
        """Open a listener.

        Raises:
            Refused: ``too_many_streams``, ``overloaded`` or ``unauthorized``.
        """
        request, caller, config = pending.request, pending.caller, self.config
        key = caller.environment, caller.limit_key(request.address)
        bounds, head = config.live.bounds, request.head
        self.listeners.refuse(
            bounds,
            key,
            request.address,
            is_proxy=not head.fields.forwarded and is_trusted(head.peer, config.trusted_proxies),
        )
        if self.listeners.followed + len(pending.names) > bounds.streams * FOLLOWED_BY_EACH:
            raise Refused("overloaded", retry_after=1.0)
        grounds = Grounds(
            request,
            caller,
            pending.query,
            config,
            self.revocations.changes,
        )
        grounds.listener = listener = Listener(
            listeners=self.listeners,
            environment=caller.environment,
            caller=key,
            address=request.address,
            grounds=grounds,
            stamps=dict.fromkeys(pending.names, 0),
            began=request.now,
        )
        documents = []
        for name, copy in pending.shown.items():
            answering = self.answering.of(copy)
            documents.append(self.answers.event(request, caller, copy, answering))
            listener.set_stamp(name, events.stamp(copy.etag, answering))
        for name, refusal in pending.unavailable.items():
            listener.set_stamp(name, events.stamp_of_refusal(name, refusal.code))
        listener.opening = events.opening(request.request_id)
        if head.fields.last_event_id == events.event_id(listener.total):
            listener.opening += events.FRESH  # the browser has all of it
        else:
            unavailable = unavailable_members(pending.unavailable)
            listener.opening += events.sessions(documents, unavailable, listener.total)
            self.listeners.count("sessions")
        self.listeners.add(listener)
        if request.route is LIST and caller.has_actor:
            self.listeners.lists.add(listener, caller.granted.ids, caller.issued)
        for name, copy in pending.shown.items():  # other loads may have ended during the wait
            if self.newest(caller.environment, name, request.now)[0] is not copy:
                listener.postpone(name)
        return self.answers.events(request, listener)

    # -- changes

    def prepared(self, copy: Copy | None, now: float, wall: float) -> Show:
        """Prepare a change for all listeners that get it at this moment."""
        if copy is None:
            return partial(self._hide, now, wall)
        answering = self.answering.of(copy)
        return partial(self._show, copy, answering, events.stamp(copy.etag, answering), now, wall)

    def _hide(self, now: float, wall: float, listener: Listener, name: str) -> None:
        """Tell one listener that there is no such session."""
        grounds: Grounds = listener.grounds
        reason = self.why_ended(grounds, now, wall)
        if reason is not None:
            listener.end(reason)
        elif self._may_know(grounds.caller, name, now, wall):
            listener.hide(name)

    def _may_know(self, caller: Caller, name: str, now: float, wall: float) -> bool:
        """Whether a caller may learn that there is no session *name*, which the token names."""
        return self.introspector.is_accepted(caller, name, now) and not self._is_session_revoked(
            caller, name, wall
        )

    def _show(
        self,
        copy: Copy,
        answering: bool | None,  # noqa: FBT001
        stamp: int,
        now: float,
        wall: float,
        listener: Listener,
        _: str,
    ) -> None:
        """Show one change to one listener, if it may still see the session."""
        grounds: Grounds = listener.grounds
        reason = self.why_ended(grounds, now, wall)
        if reason is not None:
            listener.end(reason)
            return
        shown_as = listener.name_of(copy)
        if shown_as is None:
            return
        request, caller = grounds.request, grounds.caller
        if caller.digest is not None and not self.introspector.is_accepted(caller, shown_as, now):
            return  # upstream has not verified the token for this session
        request.now, request.wall = now, wall
        try:
            document = self.answers.event(request, caller, copy, answering)
        except Refused:  # a revocation; a session that is not shown causes no byte
            if listener.stamps[shown_as] > 0:
                listener.end("revoked")
            return
        if grounds.query.filters and not grounds.query.matches(json.loads(document), wall):
            listener.hide(shown_as)
        else:
            listener.show(shown_as, stamp, document)

    def version(self, copy: Copy, wall: float) -> int:
        """Make the stamp of what listeners see of a copy: its document, and if it has expired."""
        stamp = events.stamp(copy.etag, self.answering.of(copy))
        return -stamp if list_query.has_expired(copy.body, wall) else stamp

    def newest(self, environment: str, name: str, now: float) -> tuple[Copy | None, bool]:
        """Find the newest copy of a session; the flag says whether anything is known of it."""
        entry = self.cache.find(environment, name, now)
        if isinstance(entry, Copy):
            return entry, True
        return None, entry is not None

    # -- the end

    def why_ended(self, grounds: Grounds, now: float, wall: float) -> str | None:
        """Tell why a listener is not allowed any more, as metrics name it; None if it still is."""
        caller, config = grounds.caller, self.config
        if wall >= caller.expires:
            return "expired"
        if caller.digest is not None and not self._is_accepted(grounds, now):
            return "unverified"
        changes = self.revocations.changes
        if grounds.config is config and grounds.changes == changes and caller.keys_trusted(wall):
            return None  # nothing has changed since the last check
        reason = self._why_refused(grounds, wall)
        if reason is None:
            grounds.config, grounds.changes = config, changes
        return reason

    def _why_refused(self, grounds: Grounds, wall: float) -> str | None:
        caller, before, config = grounds.caller, grounds.config, self.config
        environment = config.environments.get(caller.environment)
        if (
            not config.live.enabled
            or environment is None
            or environment.origin != before.environments[caller.environment].origin
            or before.projection != config.projection
            or before.live.answering != config.live.answering
        ):
            return "policy"
        if self.revocations.any and any(
            self._is_session_revoked(caller, name, wall) for name in _shown(grounds)
        ):
            return "revoked"
        return self.admission.why_ended(grounds.request.token, caller, wall)

    def _is_session_revoked(self, caller: Caller, name: str, wall: float) -> bool:
        other = self.pairs.other(caller.environment, name)
        return self.revocations.session(name, other, caller.issued, wall)

    def _is_accepted(self, grounds: Grounds, now: float) -> bool:
        """Whether upstream has verified the token lately for all sessions that are shown."""
        return all(
            self.introspector.is_accepted(grounds.caller, name, now) for name in _shown(grounds)
        )


def without_pages(query: Query, names: Sequence[str]) -> Query:
    """Make the query of a listener: it shows all the sessions that a token names.

    Raises:
        Refused: ``bad_request``.
    """
    if len(names) > MAX_FOLLOWED:
        raise Refused(
            "bad_request", f"An event stream shows at most {MAX_FOLLOWED} sessions of a token"
        )
    return replace(query, size=MAX_FOLLOWED)


def _shown(grounds: Grounds) -> list[str]:
    """The ids whose sessions a listener shows."""
    assert grounds.listener is not None  # noqa: S101  `open` sets it
    return [name for name, stamp in grounds.listener.stamps.items() if stamp > 0]

"""The two routes of a chat: decides who may send a message and who may read the stream.

A chat route decides on both ids of a session, as far as they are known: ids never change, so the
pairs that loads brought are remembered. An id that the token names needs no load, because a page
may subscribe before its session exists. While a revocation by session is in force, the pair is
loaded first. Nothing is looked up for an id that the token does not name.
"""

import re
from collections.abc import Callable, Container, Hashable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from math import floor
from typing import Final

from bff.chat.appends import Appends
from bff.chat.streams import Streams
from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.pairs import Pairs
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.context import RequestContext
from bff.gateway.lookup import Lookup
from bff.gateway.pending import PendingLoad, Resumable, wait_for
from bff.gateway.routes import CHAT_IN, match_chat
from bff.limits.client_address import browser_address, is_trusted
from bff.live.answering import Answering, NoAnswering
from bff.request import RequestHead
from bff.sessions import ids
from bff.tokens.caller import Caller, Holder
from bff.tokens.revocations import Revocations
from bff.upstream.chats import StreamOptions

MAX_SECONDS: Final = 600
"""Seconds for which upstream keeps a stream open at most."""
DEFAULT_SECONDS: Final = 60
OVERDUE_SECONDS: Final = 30.0
"""Seconds after the end that the gateway requested. A stream that is open then has lost upstream
without a sign, so it would hold its caller's place until its token expires."""
_CURSOR: Final = re.compile(rb"[0-9]{1,16}")
_SECONDS: Final = re.compile(rb"[0-9]{1,9}")
_READ: Final = frozenset(
    (
        *(b"last-event-id", b"timeout-seconds", b"x-peek-settled", b"x-trigger-stream-start"),
        *(b"x-part-id", b"content-length"),
    )
)
"""Headers that only the routes of chats read; each may stand once."""
_PART_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Grounds:
    """The facts that allowed a stream; the gateway checks every moment whether they still hold."""

    caller: Caller
    token: bytes
    session_id: str
    origin: tuple[str | None, ...]
    shows_reason: bool
    session_changes: int
    """How often sessions had been revoked when the stream was allowed."""
    overdue: float
    """When upstream must have ended the stream, on the clock that never jumps."""


@dataclass(eq=False)
class Chats:
    """Decides by one configuration.

    Args:
        pairs: the ids of sessions that loads brought.
        counts: see `Telemetry.counts`.
        streams: the open streams.
        appends: the messages under way.
        part_ids: makes an id for a message that has none.
        pauses: by environment, until when upstream wants no messages.
        turns: learns of messages, and of turns that end.
    """

    config: RuntimeConfig
    admission: Admission
    revocations: Revocations
    lookup: Lookup
    pairs: Pairs
    counts: MutableMapping[tuple[str | int, ...], float]
    streams: Streams
    appends: Appends
    part_ids: Callable[[], str]
    pauses: dict[str, float]
    turns: Answering | NoAnswering

    def __post_init__(self) -> None:
        self.chat = self.config.chat

    # -- what both routes have in common

    def named_id(self, request: RequestContext, caller: Holder) -> str:
        """Read the id of the path, if the token allows the route for that session.

        Raises:
            Refused: ``invalid_session_id``, ``unauthorized``, or ``not_found`` for an id that
                upstream would read as another one.
        """
        match = match_chat(request.head.path)
        assert match is not None  # noqa: S101  the route was matched by it
        route, segment = match
        session_id = ids.parse_id(segment)
        granted = caller.granted.writes if route is CHAT_IN else caller.granted
        other = self.pairs.other(caller.environment, session_id)
        if granted is None or not granted.covers(session_id, other) or ids.CHANNELS in session_id:
            raise Refused("unauthorized")
        if ids.has_dots(session_id):
            raise Refused("invalid_session_id")
        if not ids.is_reachable(session_id):
            raise Refused("not_found")
        self.refuse_revoked_session(request, caller, session_id)
        return session_id

    def refuse_revoked_session(
        self, request: RequestContext, caller: Holder, session_id: str
    ) -> None:
        """Refuse a session that is revoked by either of its ids.

        Raises:
            Refused: ``unauthorized``.
        """
        other = self.pairs.other(caller.environment, session_id)
        if self.revocations.session(session_id, other, caller.issued, request.wall):
            raise Refused("unauthorized")

    def must_load(self, caller: Caller, session_id: str) -> bool:
        """Whether both ids have to be known first."""
        return self.revocations.any_session and not self.pairs.has(caller.environment, session_id)

    def ids_of(self, caller: Caller, session_id: str) -> tuple[str, ...]:
        """Both ids of a session, as far as they are known."""
        other = self.pairs.other(caller.environment, session_id)
        return (session_id,) if other is None else (session_id, other)

    def environment(self, caller: Caller) -> Environment:
        """The environment of a caller."""
        return self.config.environments[caller.environment]

    async def load_pair(
        self, gateway: Resumable, request: RequestContext, caller: Caller, session_id: str
    ) -> None:
        """Load a session, so that both its ids are known; a session that is not made yet has one.

        Raises:
            Refused: the load failed.
        """
        granted = caller.granted.writes if request.route is CHAT_IN else caller.granted
        assert granted is not None  # noqa: S101  `named_id` has refused it
        try:
            lookup = self.lookup.find(request, replace(caller, granted=granted), session_id)
        except Refused as refused:
            if refused.refusal.code != "not_found":
                raise
            return
        if isinstance(lookup, PendingLoad):
            await wait_for(gateway, request, [lookup])
            served = lookup.result(gateway)
            if isinstance(served, Refusal) and served.code != "not_found":
                raise Refused.of(served)

    # -- streams

    def admit_stream(self, request: RequestContext, caller: Caller) -> StreamOptions:
        """Charge a stream, and read what the browser chose of it.

        Raises:
            Refused: ``bad_request``, ``rate_limited``, ``overloaded`` or ``too_many_streams``.
        """
        options = _options(_single(request.head), caller.expires - request.wall)
        self.admission.charge_stream(request, caller)
        self.refuse_stream(request, caller)
        return options

    def refuse_stream(self, request: RequestContext, caller: Caller) -> None:
        """Refuse a stream for which there is no room.

        Raises:
            Refused: ``overloaded`` or ``too_many_streams``.
        """
        self.streams.refuse(
            self.chat.bounds,
            self.key(request, caller),
            request.address,
            is_proxy=not request.head.fields.forwarded and self._is_proxy(request.head),
        )

    def _is_proxy(self, head: RequestHead) -> bool:
        return is_trusted(head.peer, self.config.trusted_proxies)

    def key(self, request: RequestContext, caller: Caller) -> Hashable:
        """The key under which streams and messages of a caller are counted."""
        return caller.environment, caller.limit_key(request.address)

    def grounds(
        self, request: RequestContext, caller: Caller, session_id: str, options: StreamOptions
    ) -> Grounds:
        """The facts that allow a stream."""
        return Grounds(
            caller,
            request.token,
            session_id,
            self.environment(caller).origin,
            self.chat.shows_reason,
            self.revocations.session_changes,
            request.now + options.seconds + OVERDUE_SECONDS,
        )

    def why_ended(self, grounds: Grounds, now: float, wall: float) -> str | None:
        """Tell why a stream is not allowed any more, as metrics name it; None if it still is."""
        caller, config = grounds.caller, self.config
        if wall >= caller.expires:
            return "expired"
        if now >= grounds.overdue:
            return "upstream"
        environment = config.environments.get(caller.environment)
        if (
            not self.chat.enabled
            or environment is None
            or environment.origin != grounds.origin
            or (grounds.shows_reason and not self.chat.shows_reason)
        ):
            return "policy"
        if self.revocations.any and self._is_session_revoked(grounds, wall):
            return "revoked"
        return self.admission.why_ended(grounds.token, caller, wall)

    def _is_session_revoked(self, grounds: Grounds, wall: float) -> bool:
        caller, revocations = grounds.caller, self.revocations
        has_pair = self.pairs.has(caller.environment, grounds.session_id)
        if not has_pair and revocations.session_changes > grounds.session_changes:
            return True  # its other id may be revoked: the browser comes back and is decided anew
        other = self.pairs.other(caller.environment, grounds.session_id)
        return revocations.session(grounds.session_id, other, caller.issued, wall)

    # -- messages

    def refuse_large(self, request: RequestContext) -> None:
        """Refuse a message that is too large by its head.

        Raises:
            Refused: ``message_too_large``, or ``bad_request`` if a header is repeated.
        """
        length = _single(request.head).get(b"content-length", b"0")
        if len(length) > 15 or int(length) > self.chat.max_message_bytes:  # noqa: PLR2004  digits
            raise Refused("message_too_large")

    def refuse_paused(self, request: RequestContext, caller: Caller) -> None:
        """Refuse a message while upstream wants none.

        Raises:
            Refused: ``over_budget``.
        """
        rest = self.pauses.get(caller.environment, 0.0) - request.now
        if rest > 0:
            raise Refused("over_budget", retry_after=rest)

    def charge_message(
        self, request: RequestContext, caller: Caller, part: tuple[str, str], body: bytes
    ) -> None:
        """Charge a message, once for its session and part id.

        Raises:
            Refused: ``rate_limited``.
            LeasePending: quota has to be leased first; nothing was counted.
        """
        key = self.key(request, caller)
        if self.appends.is_charged(key, part, body):
            return
        self.admission.charge_message(request, caller)
        self.appends.charged(key, part, body)

    def part_id(self, request: RequestContext) -> str:
        """The id by which upstream stores a message once: the browser's, or one made now."""
        part_id = _single(request.head).get(b"x-part-id", b"")
        return part_id.decode() if _PART_ID.fullmatch(part_id) else self.part_ids()

    def browser_address(self, head: RequestHead) -> str:
        """The browser's address, whole."""
        return browser_address(head.peer, head.fields.forwarded, self.config.trusted_proxies)

    def proxy_headers(self, head: RequestHead) -> dict[str, str]:
        """The header lines of the trusted proxy that an identity repeats."""
        names = self.chat.identity_headers
        if not names or not self._is_proxy(head):
            return {}
        fields = _single(head, names)
        return {n.decode(): fields[n].decode("latin-1") for n in names if n in fields}


def _single(head: RequestHead, names: Container[bytes] = _READ) -> Mapping[bytes, bytes]:
    """The header fields *names* of a request.

    Raises:
        Refused: ``bad_request``: one of them is repeated.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in head.lines:
        if name in names:
            if name in fields:
                raise Refused("bad_request", f"Send one header {name.decode()}")
            fields[name] = value.strip(b" \t")
    return fields


def _options(fields: Mapping[bytes, bytes], rest: float) -> StreamOptions:
    """Read what a browser chose of a stream; its token lives for *rest* seconds more."""
    cursor = fields.get(b"last-event-id")
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise Refused("bad_request", "Last-Event-ID must have 1 to 16 digits")
    seconds = fields.get(b"timeout-seconds", b"")
    wish = int(seconds) if _SECONDS.fullmatch(seconds) else 0
    return StreamOptions(
        cursor=cursor,
        seconds=max(1, min(wish or DEFAULT_SECONDS, MAX_SECONDS, floor(rest))),
        peek=fields.get(b"x-peek-settled") == b"1",
        latest=fields.get(b"x-trigger-stream-start") == b"latest",
    )

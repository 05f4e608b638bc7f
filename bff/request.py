"""Reads the parts of a request that can change a decision, and no others."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bff.live.accept import prefers_events
from bff.sessions import ids

_READ = frozenset(
    (
        b"authorization",
        b"origin",
        b"if-none-match",
        b"x-forwarded-for",
        b"cookie",
        b"sec-fetch-site",
        b"accept",
        b"last-event-id",
    )
)
"""Names of the headers that are read."""


@dataclass(slots=True)
class HeaderFields:
    """The headers that are read; they do not depend on the path, so connections share them.

    Attributes:
        ambiguous: whether a header that may be sent only once is repeated.
        token: the token in `authorization`, if it is written in the usual way.
        events: whether `accept` prefers an event stream.
        last_event_id: of the last event that the browser has; a repeated one counts as absent.
    """

    origin: bytes | None = None
    authorization: bytes | None = None
    if_none_match: bytes | None = None
    forwarded: Sequence[bytes] = ()
    cookies: Sequence[bytes] = ()
    fetch_site: bytes | None = None
    ambiguous: bool = False
    token: bytes | None = None
    events: bool = False
    last_event_id: bytes | None = None

    @classmethod
    def read(cls, headers: Iterable[tuple[bytes, bytes]]) -> "HeaderFields":
        """Read *headers*, whose names are in lower case."""
        fields, accepts = cls(), []
        for name, value in headers:
            if name not in _READ:
                continue
            if name == b"authorization":
                fields.ambiguous |= fields.authorization is not None
                fields.authorization = value
                fields.token = value[7:].strip() if value.startswith(b"Bearer ") else None
            elif name == b"origin":
                fields.ambiguous |= fields.origin is not None
                fields.origin = value
            elif name == b"if-none-match":
                fields.if_none_match = value
            elif name == b"x-forwarded-for":
                fields.forwarded = (*fields.forwarded, value)
            elif name == b"cookie":
                fields.cookies = (*fields.cookies, value)
            elif name == b"accept":
                accepts.append(value)
            elif name == b"last-event-id":
                fields.last_event_id = value if fields.last_event_id is None else b""
            else:
                # A repeated Sec-Fetch-Site counts as absent.
                fields.fetch_site = value if fields.fetch_site is None else b""
        fields.events = prefers_events(accepts)
        return fields


_CHATS = b"/realtime/"
"""Prefix of the paths of chats, whose requests have further headers and bodies."""


@dataclass(slots=True)
class Body:
    """The body of a message, which is read once and only if the request may send it.

    Attributes:
        read: reads it: the bytes, or None if it has more than the bound. The server sets it.
        hold: counts the bytes that are read; False if there is no room for them in memory.
    """

    read: "Callable[[int, Callable[[int], bool]], Awaitable[bytes | None]] | None" = None
    hold: "Callable[[int], bool]" = field(default=lambda _: True)
    data: bytes | None = None

    async def receive(self, limit: int) -> bytes | None:
        """Return the body; None if it has more than *limit* bytes, and the rest is not read."""
        if self.data is None:
            if self.read is None:
                return b""
            self.data = await self.read(limit, self.hold)
        return self.data


@dataclass(slots=True)
class RequestHead:
    """The head of a request.

    Attributes:
        path: raw: percent-encoded, without query and fragment.
        peer: the address of the connection.
        id: the session's id, if its path segment needs no decoding; otherwise None.
        query: raw; only the list reads it.
        lines: all header lines of a request for a chat; empty for every other.
        body: the body of a message.
        served_by: the path that answers the request, as metrics name it.
    """

    method: str
    path: bytes
    fields: HeaderFields
    peer: str
    id: str | None = None
    query: bytes = b""
    served_by: str = "asgi"
    lines: Sequence[tuple[bytes, bytes]] = ()
    body: "Body | None" = None

    @classmethod
    def read(
        cls,
        method: str,
        path: bytes,
        query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        peer: str,
    ) -> "RequestHead":
        """Read the head of a request, whose header names are in lower case."""
        fields, id_ = HeaderFields.read(headers), ids.plain_id(path)
        if id_ is None and path.startswith(_CHATS):
            lines = list(headers)
            return cls(method, path, fields, peer, None, query, lines=lines, body=Body())
        return cls(method, path, fields, peer, id_, query)

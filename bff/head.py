"""What of a request is looked at, and nothing else ever is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bff import sessions

_LOOKED_AT = frozenset(
    (
        b"authorization",
        b"origin",
        b"if-none-match",
        b"x-forwarded-for",
        b"cookie",
        b"sec-fetch-site",
    )
)


@dataclass(slots=True)
class Head:
    """The head of a request."""

    method: str
    path: bytes
    """Raw: percent-encoded, without query and fragment."""
    peer: str
    origin: bytes | None = None
    authorization: bytes | None = None
    if_none_match: bytes | None = None
    forwarded: Sequence[bytes] = ()
    cookies: Sequence[bytes] = ()
    fetch_site: bytes | None = None
    ambiguous: bool = False
    """A header that may stand once only was repeated."""
    query: bytes = b""
    """Raw; only the list looks at it."""
    id: str | None = None
    """The session's, if the path is one whose segment needs no decoding."""
    token: bytes | None = None
    """From `authorization`, if that is written as everyone writes it."""
    lane: str = "asgi"
    """What answers it: for the count of answers."""

    @classmethod
    def read(
        cls,
        method: str,
        path: bytes,
        query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        peer: str,
    ) -> "Head":
        """Pick from *headers* (names in lower case) what a decision needs."""
        head = cls(method, path, peer, query=query, id=sessions.plain_id(path))
        for name, value in headers:
            if name not in _LOOKED_AT:
                continue
            if name == b"authorization":
                head.ambiguous |= head.authorization is not None
                head.authorization = value
                head.token = value[7:].strip() if value.startswith(b"Bearer ") else None
            elif name == b"origin":
                head.ambiguous |= head.origin is not None
                head.origin = value
            elif name == b"if-none-match":
                head.if_none_match = value
            elif name == b"x-forwarded-for":
                head.forwarded = (*head.forwarded, value)
            elif name == b"cookie":
                head.cookies = (*head.cookies, value)
            else:
                head.fetch_site = value if head.fetch_site is None else b""  # twice is no word
        return head

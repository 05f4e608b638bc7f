"""What of a request is looked at, and nothing else ever is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bff.sessions import ids

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
class HeaderFields:
    """What its header lines say: the same lines say the same, whatever is asked for."""

    origin: bytes | None = None
    authorization: bytes | None = None
    if_none_match: bytes | None = None
    forwarded: Sequence[bytes] = ()
    cookies: Sequence[bytes] = ()
    fetch_site: bytes | None = None
    ambiguous: bool = False
    """A header that may stand once only was repeated."""
    token: bytes | None = None
    """From `authorization`, if that is written as everyone writes it."""

    @classmethod
    def read(cls, headers: Iterable[tuple[bytes, bytes]]) -> "HeaderFields":
        """Pick from *headers* (names in lower case) what a decision needs."""
        fields = cls()
        for name, value in headers:
            if name not in _LOOKED_AT:
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
            else:
                # Twice is no word.
                fields.fetch_site = value if fields.fetch_site is None else b""
        return fields


@dataclass(slots=True)
class RequestHead:
    """The head of a request."""

    method: str
    path: bytes
    """Raw: percent-encoded, without query and fragment."""
    fields: HeaderFields
    peer: str
    id: str | None = None
    """The session's, if the path is one whose segment needs no decoding."""
    query: bytes = b""
    """Raw; only the list looks at it."""
    served_by: str = "asgi"
    """What answers it: for the count of answers."""

    @classmethod
    def read(
        cls,
        method: str,
        path: bytes,
        query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        peer: str,
    ) -> "RequestHead":
        """Pick from a request what a decision needs."""
        return cls(method, path, HeaderFields.read(headers), peer, ids.plain_id(path), query)

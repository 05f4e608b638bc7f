"""How copies and introspections are written to the store, and read back.

A value is `bff1 <claimed> <tag>`, a line end, and a text. *claimed* is when its load was claimed:
microseconds of the store's clock. The tag is a digest of the rest; it is an HMAC where the value
grants access. A reader drops a value with a wrong tag, or that does not match the request.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final

from bff.sessions.copy import Copy
from bff.tokens.introspected import Introspection

_FORMAT: Final = b"bff1"


@dataclass(frozen=True, slots=True)
class Namespace:
    """The names of one environment in the store.

    Attributes:
        origin: the same for every gateway of the environment: budget and purges.
        projection: differs between policies and versions: copies.
        mac_key: the same for gateways of one version, secret key and set of signing keys:
            introspections.
    """

    origin: str
    projection: str
    mac_key: bytes = field(repr=False)

    @property
    def copies(self) -> str:
        """Where copies are: those of another projection are never read."""
        return f"{self.origin}:{self.projection}"

    @property
    def introspections(self) -> str:
        """Where introspections are; their ids differ with the key."""
        return f"{self.origin}:verdicts"


class ForeignError(Exception):
    """A stored value was written by no gateway, or does not match the request."""


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """A copy as it was stored, or the absence of a session.

    Attributes:
        loaded: Unix seconds; infinite for an absence, whose age only the store knows.
        lifetime: seconds after *loaded* for which it is of use.
    """

    body: bytes
    id: str
    external_id: str | None
    closed: bool
    missing: bool
    loaded: float
    lifetime: float


_FIELD_TYPES: Final = [[str, type_, bool, bool, float, float] for type_ in (str, type(None))]
"""Types of the fields of a `StoredCopy`, without the body."""


def encode_copy(prefix: str, copy: Copy, lifetime: float, loaded: float, claimed: int) -> bytes:
    """Write *copy*, loaded at *loaded* (Unix seconds) and of use for *lifetime* seconds."""
    fields = [copy.id, copy.external_id, copy.closed, False, float(loaded), float(lifetime)]
    return _frame(claimed, json.dumps([prefix, *fields]).encode() + b"\n" + copy.body, _digest)


def encode_missing(prefix: str, id_: str, lifetime: float, claimed: int) -> bytes:
    """Write that there is no such session, for *lifetime* seconds."""
    fields = [id_, None, False, True, inf, float(lifetime)]
    return _frame(claimed, json.dumps([prefix, *fields]).encode() + b"\n", _digest)


def decode_copy(prefix: str, id_: str, value: bytes) -> StoredCopy | None:
    """Read a value stored under *prefix* and *id_*; None if it is not a copy of that session."""
    text = _unframe(value, _digest)
    if text is None:
        return None
    line, _, body = text.partition(b"\n")
    try:
        written_for, *fields = json.loads(line)
        stored = StoredCopy(body, *fields)
    except (ValueError, TypeError, RecursionError):
        return None
    if written_for != prefix or id_ not in (stored.id, stored.external_id):
        return None
    # Anyone can make a digest, so the types are not certain.
    return stored if [type(field) for field in fields] in _FIELD_TYPES else None


def introspection_id(namespace: Namespace, digest: bytes, id_: str) -> str:
    """Make the id of an introspection: without the key, nobody can tell token or session by it."""
    return hmac.digest(namespace.mac_key, b"name" + digest + id_.encode(), "sha256").hex()


def encode_introspection(
    namespace: Namespace,
    digest: bytes,
    introspection: Introspection,
    answered_at: float,
    claimed: int,
) -> bytes:
    """Write an introspection of the token with *digest*; *answered_at* is in Unix seconds."""
    fields = [introspection.code, introspection.ids, answered_at, introspection.seconds]
    return _frame(claimed, json.dumps(fields).encode(), partial(_mac, namespace, digest))


def decode_introspection(
    namespace: Namespace, digest: bytes, id_: str, value: bytes
) -> Introspection | None:
    """Read an introspection, with Unix seconds; None if it is not of this token and id."""
    text = _unframe(value, partial(_mac, namespace, digest))
    if text is None:
        return None
    code, ids, answered_at, seconds = json.loads(text)  # only a gateway can have written it
    return Introspection(code, tuple(ids), answered_at, seconds) if id_ in ids else None


def _frame(claimed: int, text: bytes, tag: Callable[[bytes], bytes]) -> bytes:
    head = b"%b %d" % (_FORMAT, claimed)
    return b"%b %b\n%b" % (head, tag(head + b"\n" + text), text)


def _unframe(value: bytes, tag: Callable[[bytes], bytes]) -> bytes | None:
    line, _, text = value.partition(b"\n")
    head, _, given = line.rpartition(b" ")
    authentic = hmac.compare_digest(given, tag(head + b"\n" + text))
    return text if authentic and head.startswith(_FORMAT + b" ") else None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _mac(namespace: Namespace, digest: bytes, text: bytes) -> bytes:
    return hmac.digest(namespace.mac_key, b"seal" + digest + text, "sha256").hex().encode()

"""How copies and introspections are written to the store, and read back.

A value is `bff1 <claimed> <tag>`, a line end, and a text. *claimed* is when its load was claimed:
microseconds of the store's clock. The tag is an HMAC of the rest. The text of a copy ends with its
body; everything else in a text is concealed, because it may hold what the policy hides: the second
id of a session, for example. A reader drops a value with a wrong tag, or that does not match the
request.
"""

import base64
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
        claimed: when its load was claimed: microseconds of the store's clock.
        loaded: Unix seconds; infinite for an absence, whose age only the store knows.
        lifetime: seconds after *loaded* for which it is of use.
    """

    body: bytes
    claimed: int
    id: str
    external_id: str | None
    closed: bool
    missing: bool
    loaded: float
    lifetime: float


_FIELD_TYPES: Final = [[str, type_, bool, bool, float, float] for type_ in (str, type(None))]
"""Types of the concealed fields of a `StoredCopy`."""


def copy_name(key: bytes, id_: str) -> str:
    """Make the name of a copy: without the store key, nobody can tell the session by it."""
    return hmac.digest(key, b"copy" + id_.encode(), "sha256").hex()[:32]


def limit_name(key: bytes, counted: object) -> str:
    """Make the name of what a limit counts: an address, for example."""
    return hmac.digest(key, b"limit" + repr(counted).encode(), "sha256").hex()[:32]


def encode_copy(
    prefix: str, copy: Copy, lifetime: float, loaded: float, claimed: int, *, key: bytes
) -> bytes:
    """Write *copy*, loaded at *loaded* (Unix seconds) and of use for *lifetime* seconds."""
    fields = [copy.id, copy.external_id, copy.closed, False, float(loaded), float(lifetime)]
    text = conceal(key, json.dumps([prefix, *fields])) + b"\n" + copy.body
    return _frame(claimed, text, partial(_tag, key))


def encode_missing(prefix: str, id_: str, lifetime: float, claimed: int, *, key: bytes) -> bytes:
    """Write that there is no such session, for *lifetime* seconds."""
    fields = [id_, None, False, True, inf, float(lifetime)]
    text = conceal(key, json.dumps([prefix, *fields])) + b"\n"
    return _frame(claimed, text, partial(_tag, key))


def decode_copy(prefix: str, id_: str, value: bytes, *, key: bytes) -> StoredCopy | None:
    """Read a value stored under *prefix* and *id_*; None if it is not a copy of that session."""
    claimed, text = _unframe(value, partial(_tag, key))
    if text is None:
        return None
    line, _, body = text.partition(b"\n")
    try:
        written_for, *fields = json.loads(reveal(key, line))
        stored = StoredCopy(body, claimed, *fields)
    except (ValueError, TypeError, RecursionError):
        return None
    if written_for != prefix or id_ not in (stored.id, stored.external_id):
        return None
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
    text = conceal(namespace.mac_key, json.dumps(fields))
    return _frame(claimed, text, partial(_mac, namespace, digest))


def decode_introspection(
    namespace: Namespace, digest: bytes, id_: str, value: bytes
) -> Introspection | None:
    """Read an introspection, with Unix seconds; None if it is not of this token and id."""
    _, text = _unframe(value, partial(_mac, namespace, digest))
    if text is None:
        return None
    # Only a gateway can have written it.
    code, ids, answered_at, seconds = json.loads(reveal(namespace.mac_key, text))
    return Introspection(code, tuple(ids), answered_at, seconds) if id_ in ids else None


def conceal(key: bytes, text: str) -> bytes:
    """Write *text* so that only who has *key* can read or change it; equal texts stay equal.

    The first bytes are an HMAC of the text. They seed the pad, so no two texts share a pad.
    """
    data = text.encode()
    seed = _seed(key, data)
    return base64.urlsafe_b64encode(seed + _pad(key, seed, data))


def reveal(key: bytes, concealed: bytes) -> str:
    """Read what `conceal` wrote.

    Raises:
        ValueError: it was not written with *key*.
    """
    data = base64.urlsafe_b64decode(concealed)
    seed = data[:_SEED_BYTES]
    text = _pad(key, seed, data[_SEED_BYTES:])
    if not hmac.compare_digest(seed, _seed(key, text)):
        raise ValueError("another key")
    return text.decode()


_SEED_BYTES: Final = 16


def _seed(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, b"seed" + data, "sha256")[:_SEED_BYTES]


def _pad(key: bytes, seed: bytes, data: bytes) -> bytes:
    blocks = range(0, len(data), 32)
    pad = b"".join(hmac.digest(key, b"pad%d " % block + seed, "sha256") for block in blocks)
    number = int.from_bytes(data, "big") ^ int.from_bytes(pad[: len(data)], "big")
    return number.to_bytes(len(data), "big")


def _frame(claimed: int, text: bytes, tag: Callable[[bytes], bytes]) -> bytes:
    head = b"%b %d" % (_FORMAT, claimed)
    return b"%b %b\n%b" % (head, tag(head + b"\n" + text), text)


def _unframe(value: bytes, tag: Callable[[bytes], bytes]) -> tuple[int, bytes | None]:
    line, _, text = value.partition(b"\n")
    head, _, given = line.rpartition(b" ")
    authentic = hmac.compare_digest(given, tag(head + b"\n" + text))
    if not (authentic and head.startswith(_FORMAT + b" ")):
        return 0, None
    return int(head.rpartition(b" ")[2]), text


def _tag(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, b"tag" + text, "sha256").hex().encode()


def _mac(namespace: Namespace, digest: bytes, text: bytes) -> bytes:
    return hmac.digest(namespace.mac_key, b"seal" + digest + text, "sha256").hex().encode()

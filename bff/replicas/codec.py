"""How copies and introspections are written to the store, and read back.

A value is the line `bff1 <claimed> <tag>`, followed by a text:

    claimed   when the replica claimed the load, in microseconds of the store's clock
    tag       an HMAC of everything else in the value
    text      of a copy: a concealed line, then the body of the copy as it is
              of an introspection: all of it concealed

The concealed parts may hold what the policy hides, such as the second id of a session. A reader
drops a value whose tag is wrong or that does not match the request.
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
    """The key prefixes of one environment in the store, and the key that seals its introspections.

    Attributes:
        origin: equal in all gateways of the environment, so they share budget and purges.
        projection: equal in gateways of one version and policy, so they share copies.
        sealing_key: conceals, signs and names introspections. It is equal in gateways of one
            version, secret key and set of signing keys, so they share introspections.
    """

    origin: str
    projection: str
    sealing_key: bytes = field(repr=False)

    @property
    def copies_prefix(self) -> str:
        """The key prefix of copies; a gateway never reads those of another projection."""
        return f"{{{self.origin}}}:{self.projection}"

    @property
    def introspections_prefix(self) -> str:
        """The key prefix of introspections; their ids are made with the sealing key."""
        return f"{{{self.origin}}}:verdicts"

    @property
    def peeks_prefix(self) -> str:
        """The key prefix of peeks, which all gateways of the environment share."""
        return f"{{{self.origin}}}:peeked"


class ForeignError(Exception):
    """A stored value was written by no gateway, or does not match the request."""


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """A copy in the store, or the entry that says that upstream has no such session (*missing*).

    Attributes:
        claimed: when the replica claimed the load, in microseconds of the store's clock.
        loaded: when the fetch began, by the clock of its replica (Unix seconds). Infinite if
            *missing*: the age of such an entry comes from its expiry in the store alone.
        lifetime: seconds after the load for which a replica may use the entry.
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
    """Make the name of a copy. Only a holder of the store key can tell which session it names."""
    return hmac.digest(key, b"copy" + id_.encode(), "sha256").hex()[:32]


def limit_name(key: bytes, counted: object) -> str:
    """Make the name of a limit's key, such as an address."""
    return hmac.digest(key, b"limit" + repr(counted).encode(), "sha256").hex()[:32]


def encode_copy(
    prefix: str, copy: Copy, lifetime: float, loaded: float, claimed: int, *, key: bytes
) -> bytes:
    """Write *copy*, loaded at *loaded* (Unix seconds), to be used for *lifetime* seconds."""
    fields = [copy.id, copy.external_id, copy.closed, False, float(loaded), float(lifetime)]
    text = conceal(key, json.dumps([prefix, *fields])) + b"\n" + copy.body
    return _frame(claimed, text, partial(_tag, key))


def encode_missing(prefix: str, id_: str, lifetime: float, claimed: int, *, key: bytes) -> bytes:
    """Write that upstream has no such session; readers use this for *lifetime* seconds."""
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


def peek_name(key: bytes, id_: str) -> str:
    """Make the name of a peek, as `copy_name` does."""
    return hmac.digest(key, b"peek" + id_.encode(), "sha256").hex()[:32]


def encode_peek(
    prefix: str, id_: str, peek: tuple[bool, float], lifetime: float, claimed: int, *, key: bytes
) -> bytes:
    """Write a *peek*: whether the session is idle, and when it began (Unix seconds)."""
    text = conceal(key, json.dumps([prefix, id_, *peek, float(lifetime)]))
    return _frame(claimed, text, partial(_tag, key))


def decode_peek(
    prefix: str, id_: str, value: bytes, *, key: bytes
) -> tuple[bool, float, float] | None:
    """Read a peek: idle, begin, lifetime; None if it is not one of that session."""
    _, text = _unframe(value, partial(_tag, key))
    if text is None:
        return None
    # The tag is right, so a gateway wrote it, and its form needs no check.
    written_for, of, idle, began, lifetime = json.loads(reveal(key, text))
    return (idle, began, lifetime) if (written_for, of) == (prefix, id_) else None


def introspection_id(namespace: Namespace, digest: bytes, id_: str) -> str:
    """Make the id of an introspection. Without the key it reveals neither token nor session."""
    return hmac.digest(namespace.sealing_key, b"name" + digest + id_.encode(), "sha256").hex()


def encode_introspection(
    namespace: Namespace,
    digest: bytes,
    introspection: Introspection,
    answered_at: float,
    claimed: int,
) -> bytes:
    """Write an introspection of the token with *digest*; *answered_at* is in Unix seconds."""
    fields = [introspection.code, introspection.ids, answered_at, introspection.seconds]
    text = conceal(namespace.sealing_key, json.dumps(fields))
    return _frame(claimed, text, partial(_mac, namespace, digest))


def decode_introspection(
    namespace: Namespace, digest: bytes, id_: str, value: bytes
) -> Introspection | None:
    """Read an introspection, with Unix seconds; None if it is not of this token and id."""
    _, text = _unframe(value, partial(_mac, namespace, digest))
    if text is None:
        return None
    # The tag is right, so a gateway wrote it, and its form needs no check.
    code, ids, answered_at, seconds = json.loads(reveal(namespace.sealing_key, text))
    return Introspection(code, tuple(ids), answered_at, seconds) if id_ in ids else None


def conceal(key: bytes, text: str) -> bytes:
    """Encrypt *text* with *key*, and make a change of the result detectable.

    Equal texts have equal results, so the store can compare them. The result begins with an HMAC
    of the text. The HMAC seeds the pad, so different texts have different pads.
    """
    data = text.encode()
    seed = _seed(key, data)
    return base64.urlsafe_b64encode(seed + _pad(key, seed, data))


def reveal(key: bytes, concealed: bytes) -> str:
    """Decrypt what `conceal` wrote.

    Raises:
        ValueError: it was written with another key, or changed.
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
    return hmac.digest(namespace.sealing_key, b"seal" + digest + text, "sha256").hex().encode()

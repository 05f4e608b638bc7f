"""How copies and introspections are written to the store, and read back.

A value is the line `bff1 <claimed> <tag>`, followed by a text:

    claimed   when the replica claimed the load, in microseconds of the store's clock
    tag       a MAC of everything else in the value, and of what the value is for
    text      of a copy: a concealed line, then the body of the copy as it is
              of an introspection: all of it concealed

The concealed parts may hold what the policy hides, such as the second id of a session. A reader
drops a value whose tag is wrong or that does not match the request.

The MAC is BLAKE2b with a key (RFC 7693): it is as strong as an HMAC and takes a third of the time.
"""

import base64
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b, shake_256
from math import inf
from typing import Final

from bff import strict_json
from bff.replicas import keys
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


def copy_name(prefix: str, id_: str, key: bytes) -> str:
    """Make the key of a copy. Only a holder of the store key can tell which session it names."""
    return keys.value(prefix, _mac(key, b"copy", id_.encode(), _NAME_BYTES).hex())


def limit_name(key: bytes, counted: object) -> str:
    """Make the name of a limit's key, such as an address."""
    return _mac(key, b"limit", repr(counted).encode(), _NAME_BYTES).hex()


def encode_copy(
    prefix: str, copy: Copy, lifetime: float, loaded: float, claimed: int, *, key: bytes
) -> bytes:
    """Write *copy*, loaded at *loaded* (Unix seconds), to be used for *lifetime* seconds."""
    fields = [copy.id, copy.external_id, copy.closed, False, float(loaded), float(lifetime)]
    text = conceal(key, strict_json.dumps(fields)) + b"\n" + copy.body
    return _frame(claimed, text, partial(_tag, key, prefix))


def encode_missing(prefix: str, id_: str, lifetime: float, claimed: int, *, key: bytes) -> bytes:
    """Write that upstream has no such session; readers use this for *lifetime* seconds."""
    fields = [id_, None, False, True, inf, float(lifetime)]
    text = conceal(key, json.dumps(fields)) + b"\n"
    return _frame(claimed, text, partial(_tag, key, prefix))


def decode_copy(prefix: str, id_: str, value: bytes, *, key: bytes) -> StoredCopy | None:
    """Read a value stored under *prefix* and *id_*; None if it is not a copy of that session."""
    claimed, text = _unframe(value, partial(_tag, key, prefix))
    if text is None:
        return None
    line, _, body = text.partition(b"\n")
    try:
        fields = json.loads(reveal(key, line))
        stored = StoredCopy(body, claimed, *fields)
    except (ValueError, TypeError, RecursionError):
        return None
    if id_ not in (stored.id, stored.external_id):
        return None
    return stored if [type(field) for field in fields] in _FIELD_TYPES else None


def peek_name(prefix: str, id_: str, key: bytes) -> str:
    """Make the key of a peek, as `copy_name` does."""
    return keys.value(prefix, _mac(key, b"peek", id_.encode(), _NAME_BYTES).hex())


def encode_peek(
    prefix: str,
    id_: str,
    peek: tuple[bool | None, float],
    lifetime: float,
    claimed: int,
    *,
    key: bytes,
) -> bytes:
    """Write a *peek*: `Peek.idle`, and when it began (Unix seconds)."""
    text = conceal(key, json.dumps([id_, *peek, float(lifetime)]))
    return _frame(claimed, text, partial(_tag, key, prefix))


def decode_peek(
    prefix: str, id_: str, value: bytes, *, key: bytes
) -> tuple[bool | None, float, float] | None:
    """Read a peek: idle, begin, lifetime; None if it is not one of that session."""
    _, text = _unframe(value, partial(_tag, key, prefix))
    if text is None:
        return None
    # The tag is right, so a gateway wrote it, and its form needs no check.
    of, idle, began, lifetime = json.loads(reveal(key, text))
    return (idle, began, lifetime) if of == id_ else None


def introspection_name(namespace: Namespace, digest: bytes, id_: str) -> str:
    """Make the key of an introspection. It reveals neither token nor session."""
    name = _mac(namespace.sealing_key, b"name", digest + id_.encode()).hex()
    return keys.value(namespace.introspections_prefix, name)


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
    return _frame(claimed, text, partial(_seal, namespace, digest))


def decode_introspection(
    namespace: Namespace, digest: bytes, id_: str, value: bytes
) -> Introspection | None:
    """Read an introspection, with Unix seconds; None if it is not of this token and id."""
    _, text = _unframe(value, partial(_seal, namespace, digest))
    if text is None:
        return None
    # The tag is right, so a gateway wrote it, and its form needs no check.
    code, ids, answered_at, seconds = json.loads(reveal(namespace.sealing_key, text))
    return Introspection(code, tuple(ids), answered_at, seconds) if id_ in ids else None


def conceal(key: bytes, text: str) -> bytes:
    """Encrypt *text* with *key*, and make a change of the result detectable.

    Equal texts have equal results, so the store can compare them. The result begins with a MAC
    of the text. The MAC seeds the pad, so different texts have different pads.
    """
    data = text.encode()
    seed = _mac(key, b"seed", data, _SEED_BYTES)
    return base64.urlsafe_b64encode(seed + _pad(key, seed, data))


def reveal(key: bytes, concealed: bytes) -> str:
    """Decrypt what `conceal` wrote.

    Raises:
        ValueError: it was written with another key, or changed.
    """
    data = base64.urlsafe_b64decode(concealed)
    seed = data[:_SEED_BYTES]
    text = _pad(key, seed, data[_SEED_BYTES:])
    if not hmac.compare_digest(seed, _mac(key, b"seed", text, _SEED_BYTES)):
        raise ValueError("another key")
    return text.decode()


_NAME_BYTES: Final = 16
_SEED_BYTES: Final = 16


def _mac(key: bytes, use: bytes, data: bytes, size: int = 32) -> bytes:
    """Return a MAC of *size* bytes. MACs of another *use* tell nothing about it."""
    return blake2b(data, digest_size=size, key=key, person=use).digest()


def _pad(key: bytes, seed: bytes, data: bytes) -> bytes:
    # SHAKE is made for output of any length, and a secret prefix makes it a pseudorandom function.
    pad = shake_256(b"pad" + key + seed).digest(len(data))
    number = int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")
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


def _tag(key: bytes, prefix: str, value: bytes) -> bytes:
    return _mac(key, b"tag", prefix.encode() + b"\n" + value).hex().encode()


def _seal(namespace: Namespace, digest: bytes, value: bytes) -> bytes:
    return _mac(namespace.sealing_key, b"seal", digest + value).hex().encode()

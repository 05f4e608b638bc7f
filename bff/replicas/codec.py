"""How copies and verdicts are written to the store, and read back."""

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
    """One environment in the store.

    Attributes:
        origin: the same for every gateway of the environment: budget and purges.
        projection: differs between policies and versions: copies.
        seal: the same for gateways of one version, secret key and set of keys: verdicts.
    """

    origin: str
    projection: str
    seal: bytes = field(repr=False)

    @property
    def copies(self) -> str:
        """Where copies are: nobody else's are read."""
        return f"{self.origin}:{self.projection}"

    @property
    def introspections(self) -> str:
        """Where verdicts are; their names tell those of others apart."""
        return f"{self.origin}:verdicts"


class ForeignError(Exception):
    """What stands in the store is not ours, or not what was looked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value of the store, read: `loaded` is Unix seconds."""

    body: bytes
    id: str
    external_id: str | None
    closed: bool
    missing: bool
    loaded: float
    lifetime: float


def encode(namespace: str, copy: Copy, lifetime: float, loaded: float, claimed: int) -> bytes:
    """Write *copy*, loaded at *loaded* (Unix seconds) and of use for *lifetime* seconds."""
    about = [
        namespace,
        copy.id,
        copy.external_id,
        copy.closed,
        False,
        float(loaded),
        float(lifetime),
    ]
    return _seal(claimed, json.dumps(about).encode() + b"\n" + copy.body, _digest)


def encode_missing(namespace: str, id_: str, lifetime: float, claimed: int) -> bytes:
    """Write that there is no such session; how old that is, the store knows."""
    about = [namespace, id_, None, False, True, inf, float(lifetime)]
    return _seal(claimed, json.dumps(about).encode() + b"\n", _digest)


def encode_introspection(
    where: Namespace, digest: bytes, introspection: Introspection, spoken: float, claimed: int
) -> bytes:
    """Write a *introspection* on a token, *spoken* then (Unix seconds)."""
    about = [introspection.code, introspection.ids, spoken, introspection.seconds]
    return _seal(claimed, json.dumps(about).encode(), partial(_introspection_seal, where, digest))


def decode_introspection(
    where: Namespace, digest: bytes, id_: str, value: bytes
) -> Introspection | None:
    """Read a verdict, `spoken` in Unix seconds; None if it is none of a gateway's on this token."""
    text = _unseal(value, partial(_introspection_seal, where, digest))
    if text is None:
        return None
    code, ids, spoken, seconds = json.loads(text)  # whoever sealed it wrote this
    return Introspection(code, tuple(ids), spoken, seconds) if id_ in ids else None


def _introspection_name(where: Namespace, digest: bytes, id_: str) -> str:
    return hmac.digest(where.seal, b"name" + digest + id_.encode(), "sha256").hex()


def _introspection_seal(where: Namespace, digest: bytes, text: bytes) -> bytes:
    return hmac.digest(where.seal, b"seal" + digest + text, "sha256").hex().encode()


def _seal(claimed: int, text: bytes, seal: Callable[[bytes], bytes]) -> bytes:
    head = b"%b %d" % (_FORMAT, claimed)
    return b"%b %b\n%b" % (head, seal(head + b"\n" + text), text)


def _unseal(value: bytes, seal: Callable[[bytes], bytes]) -> bytes | None:
    told, _, text = value.partition(b"\n")
    head, _, its_seal = told.rpartition(b" ")
    good = hmac.compare_digest(its_seal, seal(head + b"\n" + text))
    return text if good and head.startswith(_FORMAT + b" ") else None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def decode(namespace: str, id_: str, value: bytes) -> Found | None:
    """Read a value that stood under *id_* in *namespace*; None if it is not one of these."""
    text = _unseal(value, _digest)
    if text is None:
        return None
    about, _, body = text.partition(b"\n")
    try:
        its_space, *fields = json.loads(about)
        found = Found(body, *fields)
    except (ValueError, TypeError, RecursionError):
        return None
    if its_space != namespace or id_ not in (found.id, found.external_id):
        return None
    # A seal is no signature: whoever writes one may have meant something else by it.
    kinds = [type(field) for field in fields]
    return found if kinds in _KINDS else None


_KINDS: Final = [[str, ids, bool, bool, float, float] for ids in (str, type(None))]
"""Of the fields of a `Found`, but for the body."""

"""The keys of token sources: read from a JWK set, replaced together, trusted for a time. No I/O."""

import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bff import strict_json
from bff.errors import Refused
from bff.tokens.algorithms import PUBLIC_ALGORITHMS, SHARED_ALGORITHM, Algorithm

REFRESH_SECONDS: Final = 300.0
"""Seconds between two fetches of a JWK set; they bound how long a removed key is trusted."""
UNKNOWN_KEY_SECONDS: Final = 30.0
"""Seconds between two fetches while tokens name unknown keys, however many tokens do."""
RETRY_SECONDS: Final = 10.0
"""Seconds between two fetches while the server of the JWK set fails."""
MAX_KEYS: Final = 100
"""Keys. Bounds the work to read a JWK set."""
MIN_RSA_BITS: Final = 2048
"""Bits. Shorter keys are insecure (RFC 7518)."""
MAX_RSA_BITS: Final = 8192
"""Bits. Verifying with a longer key takes longer than a decision may."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the only algorithm that it is for. Equal material has an equal fingerprint."""

    id: str | None
    algorithm: Algorithm
    value: Any = field(repr=False, compare=False)
    fingerprint: bytes


def shared_key(text: str) -> Key:
    """Make the HS256 key from a text that the source and the gateway share."""
    fingerprint = hashlib.sha256(text.encode()).digest()
    return Key(None, SHARED_ALGORITHM, text.encode(), fingerprint)


def read_jwks(text: str | bytes, algorithms: Sequence[str]) -> tuple[Key, ...]:
    """Read the public signing keys for *algorithms* from a JWK set (RFC 7517).

    Keys of another type or use are ignored, as the RFC requires.

    Raises:
        ValueError: the text is not a JWK set, holds a private key, or holds no usable key.
    """
    try:
        jwks = strict_json.loads(text)["keys"]
    except (ValueError, TypeError, KeyError):
        raise ValueError("is not a JWK set") from None
    if not isinstance(jwks, list) or len(jwks) > MAX_KEYS:
        raise ValueError("is not a JWK set")
    keys = tuple(key for jwk in jwks if (key := _read_jwk(jwk, algorithms)) is not None)
    if not keys:
        raise ValueError(f"holds no public key for {' or '.join(algorithms)}")
    return keys


def _read_jwk(jwk: Any, algorithms: Sequence[str]) -> Key | None:
    if not isinstance(jwk, dict):
        return None
    # Some libraries write members that they do not set as null.
    jwk = {name: value for name, value in jwk.items() if value is not None}
    if "d" in jwk:
        raise ValueError("holds a private key: everybody who can read it can sign tokens")
    kid, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    algorithm = _algorithm(jwk)
    if (
        algorithm is None
        or algorithm.name not in algorithms
        or jwk.get("use", "sig") != "sig"
        or not (isinstance(operations, list) and "verify" in operations)
        or not isinstance(kid, str | None)
    ):
        return None
    try:
        value = algorithm.read_key(jwk)
    except ValueError:
        return None
    if algorithm.kty == "RSA" and not MIN_RSA_BITS <= value.key_size <= MAX_RSA_BITS:
        return None
    members = json.dumps([jwk.get(name) for name in ("kty", "crv", "n", "e", "x", "y")])
    return Key(kid, algorithm, value, hashlib.sha256(members.encode()).digest())


def _algorithm(jwk: dict[str, Any]) -> Algorithm | None:
    """Return the algorithm that a JWK is for, by its type and curve."""
    kty, curve = jwk.get("kty"), jwk.get("crv")
    for algorithm in PUBLIC_ALGORITHMS:
        if kty == algorithm.kty and algorithm.curve in (None, curve):
            # RFC 9864 names EdDSA by its curve, Ed25519.
            names = (algorithm.name, algorithm.curve)
            return algorithm if jwk.get("alg", algorithm.name) in names else None
    return None


class KeySet:
    """The keys of one source: replaced as a whole, trusted for a stated time.

    Args:
        keys: the keys at the start.
        url: the address of the JWK set; None if the settings hold the keys.
        trusted_seconds: the seconds for which fetched keys are trusted.
    """

    def __init__(
        self, keys: Sequence[Key] = (), *, url: str | None = None, trusted_seconds: float = math.inf
    ) -> None:
        self.url = url
        self.generation = 0
        """Grows when a key is added or removed; verified tokens are then verified again."""
        self.unknown_kid = asyncio.Event()
        """Set when a token names a key that is not in the set."""
        self._keys = tuple(keys)
        self._trusted_seconds = trusted_seconds
        self._trusted_until = math.inf if url is None else -math.inf
        self._attempted = -math.inf
        self._failed = False

    def __len__(self) -> int:
        return len(self._keys)

    def trusted(self, wall: float) -> bool:
        """Whether the keys were fetched recently enough at *wall* (Unix seconds)."""
        return wall < self._trusted_until

    def candidates(self, kid: str | None, wall: float) -> tuple[Key, ...]:
        """Return the keys that may have signed a token that names *kid*.

        Raises:
            Refused: ``not_ready``: no keys are trusted now, so the token may be valid.
        """
        if not self.trusted(wall):
            raise Refused("not_ready", retry_after=2)
        if self.url is None and all(key.id is None for key in self._keys):
            return self._keys
        if kid is None:
            return self._keys if len(self._keys) == 1 else ()
        candidates = tuple(key for key in self._keys if key.id == kid)
        if not candidates:
            self.unknown_kid.set()
        return candidates

    def wait(self, now: float) -> float:
        """Return the seconds until the next fetch; *now* is on the monotonic clock."""
        pause = REFRESH_SECONDS
        if self.unknown_kid.is_set():
            pause = UNKNOWN_KEY_SECONDS
        if self._failed:
            pause = RETRY_SECONDS
        return max(0.0, self._attempted + pause - now)

    def attempt(self, now: float) -> None:
        """Record that a fetch starts; it counts as failed until `replace`."""
        self._attempted = now
        self._failed = True
        self.unknown_kid.clear()

    def abandon(self) -> None:
        """Record that a fetch was cancelled: the next one may start at once."""
        self._attempted = -math.inf

    def replace(self, keys: Sequence[Key], wall: float) -> None:
        """Use the *keys* that a fetch brought at *wall*."""
        self._failed = False
        self._trusted_until = wall + self._trusted_seconds
        if set(keys) != set(self._keys):
            self._keys = tuple(keys)
            self.generation += 1

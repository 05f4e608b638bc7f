"""Keys of token sources: read from a JWK set, replaced as a whole, trusted for a stated time."""

import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jwt import algorithms

from bff.errors import Refused

PUBLIC_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
SHARED_ALGORITHM: Final = "HS256"
REFRESH_SECONDS: Final = 300.0
"""Between two fetches of a JWKS; a key that was taken out of it is trusted no longer than this."""
UNKNOWN_KEY_SECONDS: Final = 30.0
"""The same while tokens come with a key id that is not known, however many they are."""
RETRY_SECONDS: Final = 10.0
"""The same while its server fails."""
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
"""A longer one takes longer to verify by than a decision may."""
_KINDS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""Which algorithm a JWK is for, by its ``kty`` and ``crv``; what is not here is no key for us."""
_READERS: Final[dict[str, Any]] = {
    "RS256": algorithms.RSAAlgorithm.from_jwk,
    "ES256": algorithms.ECAlgorithm.from_jwk,
    "EdDSA": algorithms.OKPAlgorithm.from_jwk,
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key and the one algorithm it is for; equal if the key material is."""

    id: str | None
    algorithm: str
    value: Any = field(repr=False, compare=False)
    fingerprint: bytes


def shared_key(text: str) -> Key:
    """Make the key for HS256 out of a text that both sides know."""
    fingerprint = hashlib.sha256(text.encode()).digest()
    return Key(None, SHARED_ALGORITHM, text.encode(), fingerprint)


def read_jwks(text: str | bytes, wanted: Sequence[str]) -> tuple[Key, ...]:
    """Read a JWK set (RFC 7517): its public signing keys for the *wanted* algorithms.

    A key of another kind or use is passed over, as the RFC demands.

    Raises:
        ValueError: it is none, holds a private key, or none that is wanted.
    """
    try:
        document = json.loads(text)
        listed = document["keys"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise ValueError("is not a JWK set") from None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError("is not a JWK set")
    keys = tuple(key for jwk in listed if (key := _read_jwk(jwk, wanted)) is not None)
    if not keys:
        raise ValueError(f"holds no public key for {' or '.join(wanted)}")
    return keys


def _read_jwk(jwk: Any, wanted: Sequence[str]) -> Key | None:
    if not isinstance(jwk, dict):
        return None
    if "d" in jwk:
        raise ValueError("holds a private key, and those who can read it can sign tokens")
    kty, curve, kid = jwk.get("kty"), jwk.get("crv"), jwk.get("kid")
    if not isinstance(kty, str) or not isinstance(curve, str | None):
        return None
    algorithm = _KINDS.get((kty, None if kty == "RSA" else curve))
    operations = jwk.get("key_ops", ["verify"])
    if (
        algorithm not in wanted
        or jwk.get("alg", algorithm) not in (algorithm, curve)  # RFC 9864 says Ed25519 for EdDSA
        or jwk.get("use", "sig") != "sig"
        or not (isinstance(operations, list) and "verify" in operations)
        or not isinstance(kid, str | None)
    ):
        return None
    assert algorithm is not None  # noqa: S101  None is not wanted
    try:
        value = _READERS[algorithm](jwk)
    except Exception:  # noqa: BLE001  whatever is wrong with it, it is no key
        return None
    if algorithm == "RS256" and not MIN_RSA_BITS <= value.key_size <= MAX_RSA_BITS:
        return None
    members = json.dumps([jwk.get(name) for name in ("kty", "crv", "n", "e", "x", "y")])
    return Key(kid, algorithm, value, hashlib.sha256(members.encode()).digest())


class KeySet:
    """The keys of one source: replaced as a whole, trusted for a stated time.

    Args:
        keys: those that are there from the start.
        url: where the JWKS is fetched from; None if the keys stand in the settings.
        trusted_seconds: how long keys are trusted after they were last fetched.
    """

    def __init__(
        self, keys: Sequence[Key] = (), *, url: str | None = None, trusted_seconds: float = math.inf
    ) -> None:
        self.url = url
        self.generation = 0
        """Goes up when a key comes or goes: what was verified before has to be verified anew."""
        self.wanted = asyncio.Event()
        """Set when a token came with a key id that is not known."""
        self._keys = tuple(keys)
        self._trusted_seconds = trusted_seconds
        self._trusted_until = math.inf if url is None else -math.inf
        self._attempted = -math.inf
        self._failed = False

    def __len__(self) -> int:
        return len(self._keys)

    def trusted(self, wall: float) -> bool:
        """Whether there are keys, fetched lately enough to be believed."""
        return wall < self._trusted_until

    def find(self, kid: str | None, wall: float) -> tuple[Key, ...]:
        """Find the keys that a token may be signed with.

        Raises:
            Refused: ``not_ready``: there are none, and that is not the token's fault.
        """
        if not self.trusted(wall):
            raise Refused("not_ready", retry_after=2)
        if self.url is None and all(key.id is None for key in self._keys):
            return self._keys
        if kid is None:
            return self._keys if len(self._keys) == 1 else ()
        found = tuple(key for key in self._keys if key.id == kid)
        if not found:
            self.wanted.set()
        return found

    def wait(self, now: float) -> float:
        """Seconds until the next fetch; *now* is on the clock that never jumps."""
        pause = REFRESH_SECONDS
        if self.wanted.is_set():
            pause = UNKNOWN_KEY_SECONDS
        if self._failed:
            pause = RETRY_SECONDS
        return max(0.0, self._attempted + pause - now)

    def attempt(self, now: float) -> None:
        """Note that a fetch begins; until it brings something, it counts as failed."""
        self._attempted = now
        self._failed = True
        self.wanted.clear()

    def abandon(self) -> None:
        """Note that a fetch was given up, by no fault of anyone's: the next may begin at once."""
        self._attempted = -math.inf

    def replace(self, keys: Sequence[Key], wall: float) -> None:
        """Take over what a fetch brought."""
        self._failed = False
        self._trusted_until = wall + self._trusted_seconds
        if set(keys) != set(self._keys):
            self._keys = tuple(keys)
            self.generation += 1

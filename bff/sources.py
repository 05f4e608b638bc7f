"""Token sources: the issuers an operator names beside Trigger.dev, and the keys they sign with.

A source is chosen by the issuer that a token claims, before any key is looked at, and no other
source's keys are tried. A key is bound to one algorithm when it is read, and is only ever handed to
an engine that knows that one algorithm; shared keys come from the settings and never from a JWKS.
So what a token says of its algorithm cannot turn a public key into an HMAC key.

Nothing here does I/O: who fetches a JWKS asks `KeySet.wait` when, and brings it to `replace`.
"""

import asyncio
import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from jwt import algorithms

from bff.errors import Refusal

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

_SEGMENT = re.compile(rb"[A-Za-z0-9_-]+")


def _engine(name: str, algorithm: algorithms.Algorithm) -> jwt.PyJWS:
    engine = jwt.PyJWS(algorithms=[])
    engine.register_algorithm(name, algorithm)
    return engine


_ENGINES: Final = {
    "RS256": _engine("RS256", algorithms.RSAAlgorithm(algorithms.RSAAlgorithm.SHA256)),
    "ES256": _engine("ES256", algorithms.ECAlgorithm(algorithms.ECAlgorithm.SHA256)),
    "EdDSA": _engine("EdDSA", algorithms.OKPAlgorithm()),
    "HS256": _engine("HS256", algorithms.HMACAlgorithm(algorithms.HMACAlgorithm.SHA256)),
}
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
            Refusal: ``not_ready``: there are none, and that is not the token's fault.
        """
        if not self.trusted(wall):
            raise Refusal("not_ready", retry_after=2)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One issuer beside Trigger.dev, and what its tokens have to be."""

    name: str
    environment: str
    """The only one that its tokens speak for."""
    issuer: str
    audiences: tuple[str, ...]
    """Any of them; none means that a token must not name an audience."""
    algorithms: tuple[str, ...]
    keys: KeySet
    scopes_path: tuple[str, ...]
    """Claim that holds the scopes, and the members to go down to from there."""
    scopes_are_text: bool
    """One text with spaces between the scopes (OAuth), else a list."""
    required: Mapping[str, tuple[object, ...]]
    """Claims and the values that each may have."""

    def verify(self, token: bytes, header: Mapping[str, Any], wall: float) -> dict[str, Any]:
        """Verify a token whose *header* claims to be this source's: its claims.

        Dates are left to the caller.

        Raises:
            Refusal: ``token_invalid``, or ``not_ready`` while there are no keys.
        """
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self.algorithms or not isinstance(kid, str | None):
            raise Refusal("token_invalid")
        for key in self.keys.find(kid, wall):
            if key.algorithm != algorithm:
                continue
            try:
                payload = _ENGINES[key.algorithm].decode(
                    token, key.value, algorithms=[key.algorithm]
                )
                claims = json.loads(payload)
            except jwt.InvalidSignatureError:
                continue
            except Exception:  # noqa: BLE001  as in `auth`: whatever it is, it is not valid
                break
            if isinstance(claims, dict) and self._accepts(claims):
                return claims
            break
        raise Refusal("token_invalid")

    def _accepts(self, claims: Mapping[str, Any]) -> bool:
        if claims.get("iss") != self.issuer:
            return False
        audience = claims.get("aud")
        if self.audiences:
            named = audience if isinstance(audience, list) else [audience]
            if not any(isinstance(one, str) and one in self.audiences for one in named):
                return False
        elif audience is not None:
            return False
        return all(
            # 1 == True in Python, and not in JSON.
            any(claims.get(name) == v and type(claims.get(name)) is type(v) for v in values)
            for name, values in self.required.items()
        )

    def scopes(self, claims: Mapping[str, Any]) -> list[object]:
        """Find the scopes among verified *claims*; what is not of the shape told grants nothing."""
        value: Any = claims
        for step in self.scopes_path:
            value = value.get(step) if isinstance(value, dict) else None
        if self.scopes_are_text:
            return list(value.split(" ")) if isinstance(value, str) else []
        return value if isinstance(value, list) else []


def peek(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read header and claims of a token that nobody has verified: good for refusing it only.

    Raises:
        Refusal: ``token_invalid``. Repeated members are refused: two parsers may disagree on which
            of them counts, and another than ours may have the last word.
    """
    parts = token.split(b".")
    try:
        if len(parts) == 3 and all(map(_SEGMENT.fullmatch, parts)):  # noqa: PLR2004
            header, claims = (
                json.loads(base64.urlsafe_b64decode(p + b"=="), object_pairs_hook=_unique)
                for p in parts[:2]
            )
            if isinstance(header, dict) and isinstance(claims, dict):
                return header, claims
    except (ValueError, RecursionError):
        pass
    raise Refusal("token_invalid")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated member")
    return members

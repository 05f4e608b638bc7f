"""Callers and claimants: reads them from claims, and decides which tokens are one caller's.

A `Claimant` holds a token that nobody has verified: it can only be refused. Only verification makes
a `Caller`: `read_caller` after a key verified the signature, `accepted` after upstream accepted the
token. All code that shows anything, or counts a person, takes a `Caller`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bff.errors import Refused
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet
from bff.tokens.scopes import Grant

SKEW_SECONDS: Final = 60.0
"""Seconds that a token may be issued in the future, because the minting server's clock may be fast.
Every revocation sent before a token's time of issue misses that token."""


@dataclass(slots=True, eq=False)
class KeyUse:
    """The last use of a signing key."""

    environment: str
    number: int
    """The position of the key in the settings, from 1; 0 for a key that is not in the settings."""
    last: float
    """When it last verified a token, in Unix seconds; 0 for never."""


OTHER_KEY: Final = KeyUse("", 0, 0.0)
"""The key of a source or of upstream: its uses are not reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The subject of a token and what it may read, verified or not."""

    environment: str
    granted: Grant
    key: bytes
    """Equal for all tokens of one person, whatever their scopes. Tokens that name no person have
    equal keys if their scopes are equal."""
    has_actor: bool
    """Whether the token names a person; otherwise its subject is the whole environment."""
    expires: float
    """Unix seconds; the token is refused from then on."""
    not_before: float
    """Unix seconds."""
    size: int
    """The bytes that the cache of verified tokens counts for it, estimated."""
    jti: str | None
    subjects: tuple[str, ...]
    """The subjects by which it can be revoked: ``act.sub`` and ``sub``."""
    issued: float
    """Unix seconds; minus infinity if the token does not say."""
    signed_by: KeyUse = OTHER_KEY
    keys: KeySet | None = None
    """The keys of the source that verified the token; None if no source did."""
    generation: int = 0
    """The generation of `keys` that verified it."""

    def limit_key(self, address: str) -> Hashable:
        """Return the key under which requests from *address* are charged.

        Without an actor the callers of an environment differ only by their addresses.
        """
        return self.key if self.has_actor else (self.key, address)

    def keys_trusted(self, wall: float) -> bool:
        """Whether the keys that verified the token are still trusted at *wall*."""
        keys = self.keys
        return keys is None or (keys.generation == self.generation and keys.trusted(wall))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller(Holder):
    """A verified subject and what it may read."""

    digest: bytes | None = None
    """The SHA-256 of a token that upstream verifies, once for each session; None for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant(Holder):
    """The holder of a token that only upstream can verify. It can be refused, and nothing else."""

    digest: bytes
    """The SHA-256 of the token."""
    _caller: Caller = field(repr=False)
    """The caller that `accepted` returns, made once; nothing else reads it."""


def read_caller(
    claims: Mapping[str, Any],
    environment: str,
    grant: Callable[[Iterable[object]], Grant],
    *,
    size: int,
    signed_by: KeyUse = OTHER_KEY,
    source: Source | None = None,
) -> Caller:
    """Read the caller out of the claims of a verified token.

    Args:
        claims: the claims, of any type.
        environment: the environment that the token is for.
        grant: reads the scopes, of any type.
        size: see `Holder`.
        signed_by: see `Caller`.
        source: the source that verified the token; None for Trigger.dev's own tokens.

    Raises:
        Refused: ``token_invalid``.
    """
    return Caller(
        **_read(claims, environment, grant, size, source),
        signed_by=signed_by,
        keys=None if source is None else source.keys,
        generation=0 if source is None else source.keys.generation,
    )


def read_claimant(
    claims: Mapping[str, Any],
    environment: str,
    grant: Callable[[Iterable[object]], Grant],
    *,
    size: int,
    digest: bytes,
) -> Claimant:
    """Read what one of Trigger.dev's tokens says, which only upstream can verify.

    Raises:
        Refused: ``token_invalid``.
    """
    holder = _read(claims, environment, grant, size, None)
    return Claimant(**holder, digest=digest, _caller=Caller(**holder, digest=digest))


def accepted(claimant: Claimant) -> Caller:
    """Return the caller of a token; only for a token that upstream has verified."""
    return claimant._caller  # noqa: SLF001  the only way from one to the other


def _read(
    claims: Mapping[str, Any],
    environment: str,
    grant: Callable[[Iterable[object]], Grant],
    size: int,
    source: Source | None,
) -> dict[str, Any]:
    """Read the fields of a `Holder`."""
    subject, jti = claims.get("sub"), claims.get("jti")
    expires, not_before = _date(claims.get("exp")), _date(claims.get("nbf", 0))
    if not isinstance(subject, str) or not subject or expires is None or not_before is None:
        raise Refused("token_invalid")
    issued = _date(claims.get("iat"))
    not_before = max(not_before, issued or 0.0) - SKEW_SECONDS
    act = claims.get("act")
    actor = act.get("sub") if isinstance(act, dict) else None
    actor = actor if isinstance(actor, str) and actor else None
    scopes = claims.get("scopes") if source is None else source.scopes(claims)
    scopes = scopes if isinstance(scopes, list) else []
    # The subject of an identity provider is a person; Trigger.dev's is an environment.
    identity: list[Any] = [environment, subject]
    if source is not None:
        identity.append(source.name)
    elif actor is not None:
        identity.append({"actor": actor})
    else:
        identity.append(sorted({scope for scope in scopes if isinstance(scope, str)}))
    return {
        "environment": environment,
        "granted": grant(scopes),
        "key": hashlib.sha256(json.dumps(identity).encode()).digest(),
        "has_actor": actor is not None or source is not None,
        "expires": expires,
        "not_before": not_before,
        "size": size,
        "jti": jti if isinstance(jti, str) else None,
        "subjects": (subject,) if actor is None else (actor, subject),
        "issued": -math.inf if issued is None else issued,
    }


def _date(value: object) -> float | None:
    """Read a NumericDate (RFC 7519); None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None

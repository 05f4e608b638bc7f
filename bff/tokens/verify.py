"""Verifies bearer tokens: a token becomes a caller.

Trigger.dev's own tokens must have its algorithm, issuer and audience. The key that verifies a token
decides which environments it may be for, and its ``sub`` decides which of them it is for. A preview
branch has its parent's signing key, so without ``sub`` a token of one branch could read another.
Tokens of other issuers are verified by the keys of their `Source` and no others. If upstream may
verify an environment's tokens, a token that no key verifies becomes a caller too, but an unverified
one: its claims can only refuse it.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic

from cachetools import LRUCache

from bff import strict_json
from bff.errors import Refused
from bff.tokens.algorithms import TRIGGER_ALGORITHM
from bff.tokens.caller import Caller, GrantT, KeyUse, read_caller
from bff.tokens.issuers import Source

ISSUER: Final = "https://id.trigger.dev"
AUDIENCE: Final = "https://api.trigger.dev"
MAX_TOKEN_BYTES: Final = 32 * 1024
"""Bytes. Bounds the work for one token; a token that names 200 sessions has about 12 KiB."""
_SEGMENT: Final = re.compile(rb"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Issuer:
    """The keys and the id of one environment, by which Trigger.dev's own tokens are verified."""

    environment: str
    id: str | None
    """The only ``sub`` accepted; None accepts any, if all keys are the operator's keys."""
    keys: tuple[str, ...]
    upstream: bool = False
    """Whether upstream verifies tokens that none of the keys verifies."""
    pending: bool = False
    """Whether the id is still to be fetched; until then no token is accepted."""

    def accepts(self, subject: str) -> bool:
        """Whether a token of *subject* is for this environment."""
        return not self.pending and self.id in (None, subject)


class Verifier(Generic[GrantT]):
    """Verifies tokens, and keeps the verified ones until they expire.

    A polling tab costs one verification, not one for each poll. Bad tokens are not kept, so they
    cannot push out good ones. When keys change, a new verifier with an empty cache takes over.

    Args:
        issuers: the environments; several of them may have the same key.
        grant: reads the scopes of a token.
        sources: the other issuers.
        before: the verifier that this one replaces; it tells when the keys were last used.
        max_bytes: bound on the memory of verified tokens.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        grant: Callable[[Iterable[object]], GrantT],
        *,
        sources: Sequence[Source] = (),
        before: "Verifier[GrantT] | None" = None,
        max_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self.issuers = tuple(issuers)
        self._grant = grant
        self.sources = tuple(sources)
        self._sources = {source.issuer: source for source in sources}
        self._upstream = [issuer for issuer in issuers if issuer.upstream]
        self.pending = frozenset(issuer.environment for issuer in issuers if issuer.pending)
        """The environments whose id is still to be fetched."""
        self._keys: dict[str, list[Issuer]] = {}
        self._uses: dict[tuple[str, str], KeyUse] = {}
        uses_before = {} if before is None else before._uses  # noqa: SLF001  the same class
        for issuer in issuers:
            for number, key in enumerate(issuer.keys, start=1):
                self._keys.setdefault(key, []).append(issuer)
                use = (issuer.environment, key)
                last = uses_before[use].last if use in uses_before else 0.0
                self._uses[use] = KeyUse(issuer.environment, number, last)
        self._verified: LRUCache[bytes, Caller[GrantT]] = LRUCache(
            max_bytes, getsizeof=lambda caller: caller.size
        )

    def __len__(self) -> int:
        return len(self._verified)

    @property
    def uses(self) -> Iterable[KeyUse]:
        """The last use of each key."""
        return self._uses.values()

    def verify(self, token: bytes, wall: float) -> Caller[GrantT]:
        """Return the caller who holds *token* at *wall* (Unix seconds).

        Raises:
            Refused: ``secret_key_sent``, ``token_invalid``, ``token_expired`` or ``not_ready``.
        """
        caller: Caller[GrantT] | None
        try:
            caller = self._verified[token]
        except KeyError:
            caller = None
        if caller is None or not (caller.keys is None or caller.keys_trusted(wall)):
            caller = self._check(token, wall)
            if not caller.unverified and caller.not_before <= wall < caller.expires:
                self.remember(token, caller)
        if wall >= caller.expires:
            self._verified.pop(token, None)
            raise Refused("token_expired")
        if wall < caller.not_before:
            raise Refused("token_invalid")
        caller.signed_by.last = wall
        return caller

    def remember(self, token: bytes, caller: Caller[GrantT]) -> None:
        """Keep the caller of a token that is verified, or that upstream accepted."""
        self._verified[token] = caller

    def _check(self, token: bytes, wall: float) -> Caller[GrantT]:
        if token.startswith(b"tr_"):
            raise Refused("secret_key_sent")
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused("token_invalid")
        size = 2 * len(token) + 1024
        header: dict[str, Any] = {}
        claims: dict[str, Any] = {}
        if self._sources or self._upstream:
            header, claims = read_unverified(token)
            issuer = claims.get("iss")
            source = self._sources.get(issuer) if isinstance(issuer, str) else None
            if source is not None:
                verified = source.verify(token, header, wall)
                return read_caller(
                    verified, source.environment, self._grant, size=size, source=source
                )
        signed, _, signature = token.rpartition(b".")
        for key, issuers in self._keys.items():
            if not _is_signature(signature, signed, key):
                continue
            verified = TRIGGER_ALGORITHM.verify(token, key)
            name = _environment(verified, issuers)
            use = self._uses[name, key]
            return read_caller(verified, name, self._grant, size=size, signed_by=use)
        if self._upstream and _is_supported(header):
            name, digest = _environment(claims, self._upstream), hashlib.sha256(token).digest()
            return read_caller(claims, name, self._grant, size=size, digest=digest)
        raise Refused("token_invalid")


def read_unverified(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header and the claims of a token without verifying it; they can only refuse it.

    Raises:
        Refused: ``token_invalid``. Repeated members are refused too, because upstream's parser
            could read another one of them.
    """
    parts = token.split(b".")
    try:
        if len(parts) == 3 and all(map(_SEGMENT.fullmatch, parts)):  # noqa: PLR2004
            header, claims = (
                strict_json.loads(base64.urlsafe_b64decode(part + b"==")) for part in parts[:2]
            )
            if isinstance(header, dict) and isinstance(claims, dict):
                return header, claims
    except ValueError:
        pass
    raise Refused("token_invalid")


def _is_signature(signature: bytes, signed: bytes, key: str) -> bool:
    """Whether *key* made *signature*; PyJWT then checks everything again.

    PyJWT parses a token before it looks at the signature. This check first makes an invented token
    three times cheaper to refuse.
    """
    digest = hmac.digest(key.encode(), signed, "sha256")
    encoded = base64.urlsafe_b64encode(digest)
    return hmac.compare_digest(encoded.rstrip(b"="), signature.rstrip(b"="))


def _is_supported(header: Mapping[str, Any]) -> bool:
    """Whether the gateway could verify such a token; upstream accepts other algorithms too."""
    return header.get("alg") == TRIGGER_ALGORITHM.name and header.keys().isdisjoint(("crit", "b64"))


def _environment(claims: Mapping[str, Any], issuers: Sequence[Issuer]) -> str:
    """Find the environment of one of Trigger.dev's tokens among those of *issuers*.

    Raises:
        Refused: ``token_invalid``, or ``not_ready`` if it may be one whose id is still to be
            fetched.
    """
    audience, subject = claims.get("aud"), claims.get("sub")
    audiences = audience if isinstance(audience, list) else [audience]
    if (
        claims.get("iss") != ISSUER
        or AUDIENCE not in audiences
        or claims.get("pub") is not True
        or not isinstance(subject, str)
        or not subject
    ):
        raise Refused("token_invalid")
    for issuer in issuers:
        if issuer.accepts(subject):
            return issuer.environment
    if any(issuer.pending for issuer in issuers):
        raise Refused("not_ready", retry_after=2)
    raise Refused("token_invalid")

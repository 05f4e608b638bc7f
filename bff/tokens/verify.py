"""Verifies bearer tokens: a token becomes a caller.

Trigger.dev's own tokens must have its algorithm, issuer and audience. The key that verifies a token
belongs to one or more environments, and the token's ``sub`` selects one of them. A preview branch
has its parent's signing key, so without ``sub`` a token of one branch could read another.
Tokens of other issuers are verified by the keys of their `Source` and no others. If upstream may
verify an environment's tokens, a token that no key verifies becomes a `Claimant`.

The verifier checks a signature before it parses the contents. Only to choose a source and a key, it
reads an unverified token, within bounds on bytes and members.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cachetools import FIFOCache

from bff import strict_json
from bff.errors import Refused
from bff.tokens.algorithms import TRIGGER_ALGORITHM
from bff.tokens.caller import Caller, Claimant, KeyUse, read_caller, read_claimant
from bff.tokens.issuers import Source, audiences
from bff.tokens.scopes import Grant

ISSUER: Final = "https://id.trigger.dev"
AUDIENCE: Final = "https://api.trigger.dev"
OWN_SUBJECT: Final = "bff"
"""The ``sub`` of a token whose signing key alone determines its environment."""
MAX_TOKEN_BYTES: Final = 32 * 1024
"""Bytes. Bounds the work for one token; a token that names 200 sessions has about 12 KiB."""
MAX_UNVERIFIED_BYTES: Final = 16 * 1024
"""Bytes of a token that no signing key verifies. The gateway reads the claims of such a token to
find out who verifies it."""
MAX_HEADER_BYTES: Final = 2048
"""Bytes of a token's encoded header; usual ones have 100."""
_MAX_UNVERIFIED_MEMBERS: Final = 512
"""Brackets, braces and commas of claims that nobody has verified; 400 scopes have as many."""
_MAX_HEADER_MEMBERS: Final = 32
"""Brackets, braces and commas of a token's header."""
_SIGNATURE_BYTES: Final = 43
"""Bytes of an encoded HS256 signature."""
_SEGMENT: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True, slots=True)
class Issuer:
    """The keys and the id of one environment, by which Trigger.dev's own tokens are verified."""

    environment: str
    id: str | None
    """The only ``sub`` accepted; None accepts any, if all keys are the operator's keys."""
    keys: tuple[str, ...] = field(repr=False)
    upstream: bool = False
    """Whether upstream verifies tokens that none of the keys verifies."""
    pending: bool = False
    """Whether the id is still to be fetched; until then no token is accepted."""

    def accepts(self, subject: str, *, own: bool = False) -> bool:
        """Whether a token of *subject* is for this environment; with *own* its key says so."""
        return not self.pending and (own or self.id in (None, subject))


class Verifier:
    """Verifies tokens, and keeps the verified ones until they expire.

    A polling tab costs one verification, not one for each poll. Bad tokens are not kept, so they
    cannot push out good ones. When keys change, a new verifier with an empty cache takes over.

    Args:
        issuers: the environments; several of them may have the same key.
        grant: reads the scopes of a token.
        sources: the other issuers.
        before: the verifier that this one replaces, from which it takes the last uses of keys.
        max_bytes: bound on the memory of verified tokens.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        grant: Callable[[Iterable[object]], Grant],
        *,
        sources: Sequence[Source] = (),
        before: "Verifier | None" = None,
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
        algorithms = {name for source in sources for name in source.algorithms}
        if self._upstream:
            algorithms.add(TRIGGER_ALGORITHM.name)
        self._algorithms = tuple(algorithms)
        """The algorithms of tokens that no signing key verifies."""
        # First in, first out: an LRUCache would reorder at each hit, which costs a hit 3 % more.
        self._verified: FIFOCache[bytes, Caller | Claimant] = FIFOCache(
            max_bytes, getsizeof=lambda holder: holder.size
        )

    def __len__(self) -> int:
        return len(self._verified)

    @property
    def uses(self) -> Iterable[KeyUse]:
        """The last use of each key."""
        return self._uses.values()

    def recall(self, token: bytes, wall: float) -> Caller | Claimant | None:
        """Return the holder of *token* if it was verified before, without reading the token."""
        try:
            holder = self._verified[token]
        except KeyError:
            return None
        if not holder.not_before <= wall < holder.expires:
            del self._verified[token]
            return None
        keys = holder.keys
        if keys is not None and not holder.keys_trusted(wall):
            return None
        holder.signed_by.last = wall
        return holder

    def verify(self, token: bytes, wall: float) -> Caller | Claimant:
        """Return the holder of *token* at *wall* (Unix seconds).

        Raises:
            Refused: ``secret_key_sent``, ``token_invalid``, ``token_expired`` or ``not_ready``.
        """
        holder = self.recall(token, wall)
        if holder is not None:
            return holder
        holder = self._check(token, wall)
        if wall >= holder.expires:
            raise Refused("token_expired")
        if wall < holder.not_before:
            raise Refused("token_invalid")
        if isinstance(holder, Caller):
            self.remember(token, holder)
        holder.signed_by.last = wall
        return holder

    def remember(self, token: bytes, holder: Caller | Claimant) -> None:
        """Keep the holder of a token that a key verified, or that upstream accepted."""
        self._verified[token] = holder

    def _check(self, token: bytes, wall: float) -> Caller | Claimant:
        if token.startswith(b"tr_"):
            raise Refused("secret_key_sent")
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused("token_invalid")
        return self._check_signature(token) or self._check_claims(token, wall)

    def _check_signature(self, token: bytes) -> Caller | None:
        """Return the caller of a token of Trigger.dev's that a signing key verifies."""
        signed, _, signature = token.rpartition(b".")
        signature = signature.rstrip(b"=")
        if len(signature) != _SIGNATURE_BYTES:
            return None
        for key, issuers in self._keys.items():
            if not is_signature(signature, signed, key):
                continue
            verified = TRIGGER_ALGORITHM.verify(token, key)
            if self._source(verified) is not None:  # only that source's own keys count
                return None
            name = _environment(verified, issuers, key)
            use = self._uses[name, key]
            return read_caller(verified, name, self._grant, size=_size(token), signed_by=use)
        return None

    def _source(self, claims: Mapping[str, Any]) -> Source | None:
        issuer = claims.get("iss")
        return self._sources.get(issuer) if isinstance(issuer, str) else None

    def _check_claims(self, token: bytes, wall: float) -> Caller | Claimant:
        """Choose a source or upstream to verify a token that no signing key verifies."""
        if not self._algorithms or len(token) > MAX_UNVERIFIED_BYTES:
            raise Refused("token_invalid")
        header, claims = read_unverified(token, self._algorithms)
        source = self._source(claims)
        if source is not None:
            verified = source.verify(token, header, wall)
            return read_caller(
                verified, source.environment, self._grant, size=_size(token), source=source
            )
        if self._upstream and _is_supported(header):
            name, digest = _environment(claims, self._upstream), hashlib.sha256(token).digest()
            return read_claimant(claims, name, self._grant, size=_size(token), digest=digest)
        raise Refused("token_invalid")


def _size(token: bytes) -> int:
    return 2 * len(token) + 1024


def read_unverified(
    token: bytes, algorithms: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header and the claims of a token without verifying it; they can only refuse it.

    Objects in them are `strict_json.Members`, except the actor (``act``).

    Args:
        token: any bytes.
        algorithms: the algorithms that are accepted; None accepts any.

    Raises:
        Refused: ``token_invalid``. Repeated members are refused too, because upstream's parser
            could read another one of them.
    """
    if token.translate(None, _SEGMENT) != b"..":
        raise Refused("token_invalid")
    first, second, signature = token.split(b".")
    if not (first and second and signature) or len(first) > MAX_HEADER_BYTES:
        raise Refused("token_invalid")
    try:
        header = _read_segment(first, _MAX_HEADER_MEMBERS)
        if algorithms is not None and header.get("alg") not in algorithms:
            raise Refused("token_invalid")
        claims = _read_segment(second, _MAX_UNVERIFIED_MEMBERS)
        if isinstance(claims.get("act"), tuple):
            claims["act"] = strict_json.unique(claims["act"])
    except ValueError:
        raise Refused("token_invalid") from None
    return header, claims


def _read_segment(segment: bytes, most: int) -> dict[str, Any]:
    return strict_json.read_object(base64.urlsafe_b64decode(segment + b"=="), most=most)


def is_signature(signature: bytes, signed: bytes, key: str) -> bool:
    """Whether *key* made *signature*, without padding; PyJWT then checks everything again.

    PyJWT parses a token before it looks at the signature, so an invented token would decide how
    much work it costs.
    """
    digest = hmac.digest(key.encode(), signed, "sha256")
    encoded = base64.urlsafe_b64encode(digest)
    return hmac.compare_digest(encoded.rstrip(b"="), signature)


def _is_supported(header: Mapping[str, Any]) -> bool:
    """Whether the gateway could verify such a token; upstream accepts other algorithms too."""
    return header.get("alg") == TRIGGER_ALGORITHM.name and header.keys().isdisjoint(("crit", "b64"))


def names_environment(key: str, subject: object, issuers: Sequence[Issuer]) -> bool:
    """Whether *key* alone determines a token's environment, and *subject* says so.

    A root key does not, because a preview branch has its parent's key. A key of several
    environments does not either. *issuers* are those that have the key.
    """
    return subject == OWN_SUBJECT and len(issuers) == 1 and not key.startswith("tr_")


def _environment(
    claims: Mapping[str, Any], issuers: Sequence[Issuer], key: str | None = None
) -> str:
    """Find the environment of one of Trigger.dev's tokens among those of *issuers*.

    Args:
        claims: the claims of the token.
        issuers: the environments that have the token's key.
        key: that key; None if upstream verifies the token.

    Raises:
        Refused: ``token_invalid``, or ``not_ready`` if the token may be for an environment whose
            id is still to be fetched.
    """
    subject = claims.get("sub")
    if (
        claims.get("iss") != ISSUER
        or AUDIENCE not in audiences(claims)
        or claims.get("pub") is not True
        or not isinstance(subject, str)
        or not subject
    ):
        raise Refused("token_invalid")
    own = key is not None and names_environment(key, subject, issuers)
    for issuer in issuers:
        if issuer.accepts(subject, own=own):
            return issuer.environment
    if any(issuer.pending for issuer in issuers):
        raise Refused("not_ready", retry_after=2)
    raise Refused("token_invalid")

"""A bearer token becomes a caller. With `sources`, the only user of PyJWT.

Trigger.dev's own tokens are pinned to HS256 and to its issuer and audience; which key verified
decides which environments the token may speak for, and its ``sub`` which of them it does. A preview
branch shares its parent's signing key, so without ``sub`` a token of one branch would read another.
Where an environment lets upstream verify, such a token that no key here verifies becomes a caller
too, with a `digest`: what it claims is then good for refusing it, until upstream lets it pass.
Tokens of other issuers are their sources' (`sources.Source`), and no other key is tried on them.
"""

import hashlib
import hmac
import json
import math
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import jwt
from jwt.algorithms import HMACAlgorithm

from bff.errors import Refused
from bff.tokens.caller import _ELSEWHERE, Caller, GrantT, KeyUse
from bff.tokens.issuers import Source, peek

ISSUER = "https://id.trigger.dev"
AUDIENCE = "https://api.trigger.dev"
SKEW_SECONDS = 60.0
"""How far ahead the clock of who mints tokens may be. A token that says it was issued later than
that would escape every revocation until then."""
MAX_TOKEN_BYTES = 32 * 1024
"""A token that names 200 sessions has about 12 KiB."""


if tuple(int(part) for part in jwt.__version__.split(".")[:2]) < (2, 12):
    raise ImportError(
        f"PyJWT {jwt.__version__} accepts unknown 'crit' headers; install 2.12 or later"
    )


class _Hmac(HMACAlgorithm):
    """HMAC with keys that were checked when the settings were read, not again for every token.

    (`tr_dev_…` root keys have 31 bytes, for which PyJWT would warn at each use.)
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: Any) -> None:  # noqa: ARG002
        return None


_JWS = jwt.PyJWS(algorithms=[])


_JWS.register_algorithm("HS256", _Hmac(hashlib.sha256))


@dataclass(frozen=True, slots=True)
class Issuer:
    """What one environment trusts of the tokens that are Trigger.dev's, or look like it."""

    environment: str
    id: str | None
    """The only ``sub`` accepted; None (a gateway with keys of its own only) accepts any."""
    keys: tuple[str, ...]
    upstream: bool = False
    """Whether tokens that none of the keys verifies are put to upstream's test."""
    pending: bool = False
    """The id is not known yet: until it is, no token is this environment's."""

    def accepts(self, subject: str) -> bool:
        """Whether a token of *subject* is this environment's."""
        return not self.pending and self.id in (None, subject)


class Verifier(Generic[GrantT]):
    """Verifies tokens, and remembers the verified ones until they expire.

    A polling tab so costs one verification, not one per poll. Only verified tokens are remembered:
    bad ones cannot push good ones out. When keys change, a new verifier takes over, memory empty.

    Args:
        issuers: the environments and their keys; the same key may stand in several of them.
        sources: the other issuers.
        grant: reads the ``scopes`` claim, whatever it holds.
        before: the verifier this one takes over from; when its keys were last used is known on.
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
        """Environments whose id is not known yet."""
        self._keys: dict[str, list[Issuer]] = {}
        self._uses: dict[tuple[str, str], KeyUse] = {}
        known = {} if before is None else before._uses  # noqa: SLF001  its own kind
        for issuer in issuers:
            for number, key in enumerate(issuer.keys, start=1):
                self._keys.setdefault(key, []).append(issuer)
                use = (issuer.environment, key)
                last = known[use].last if use in known else 0.0
                self._uses[use] = KeyUse(issuer.environment, number, last)
        self._max_bytes = max_bytes
        self._bytes = 0
        # By last use, the longest ago first. (cachetools does this at ten times the cost.)
        self._verified: OrderedDict[bytes, Caller[GrantT]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._verified)

    @property
    def uses(self) -> Iterable[KeyUse]:
        """When each key was last used."""
        return self._uses.values()

    def verify(self, token: bytes, wall: float) -> Caller[GrantT]:
        """Tell who holds *token* at *wall* (Unix seconds).

        Raises:
            Refused: ``secret_key_sent``, ``token_invalid`` or ``token_expired``.
        """
        caller = self._verified.get(token)
        if caller is not None and (caller.keys is None or _stands(caller, wall)):
            self._verified.move_to_end(token)
        else:
            caller = self._check(token, wall)
            if caller.digest is None and caller.not_before <= wall < caller.expires:
                self.remember(token, caller)
        if wall >= caller.expires:
            self._forget(token)
            raise Refused("token_expired")
        if wall < caller.not_before:
            raise Refused("token_invalid")
        caller.signed_by.last = wall
        return caller

    def remember(self, token: bytes, caller: Caller[GrantT]) -> None:
        """Keep what a token says; the caller of one with a `digest`, once upstream let it pass."""
        self._forget(token)
        self._verified[token] = caller
        self._bytes += caller.size
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._verified)))

    def _forget(self, token: bytes) -> None:
        caller = self._verified.pop(token, None)
        if caller is not None:
            self._bytes -= caller.size

    def _check(self, token: bytes, wall: float) -> Caller[GrantT]:
        if token.startswith(b"tr_"):
            raise Refused("secret_key_sent")
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused("token_invalid")
        header: Mapping[str, Any] = {}
        claimed: Mapping[str, Any] = {}
        if self._sources or self._upstream:
            header, claimed = peek(token)
            issuer = claimed.get("iss")
            source = self._sources.get(issuer) if isinstance(issuer, str) else None
            if source is not None:
                return self._foreign(source, source.verify(token, header, wall), len(token))
        signed, _, signature = token.rpartition(b".")
        for key, issuers in self._keys.items():
            if not _signs(key, signed, signature):
                continue
            try:
                claims = json.loads(_JWS.decode(token, key, algorithms=["HS256"]))
            # Odd tokens raise ValueError, TypeError and RecursionError too, and a later version
            # may know more: whatever it is, the token is the browser's and it is not valid.
            except Exception:  # noqa: BLE001
                break
            return self._caller(claims, issuers, len(token), key=key)
        else:
            # Upstream takes more than we do: other algorithms, tokens without end.
            odd = header.get("alg") != "HS256" or not header.keys().isdisjoint(("crit", "b64"))
            if self._upstream and not odd:
                digest = hashlib.sha256(token).digest()
                return self._caller(claimed, self._upstream, len(token), digest=digest)
        raise Refused("token_invalid")

    def _caller(
        self,
        claims: Any,
        issuers: list[Issuer],
        length: int,
        *,
        key: str | None = None,
        digest: bytes | None = None,
    ) -> Caller[GrantT]:
        if not isinstance(claims, dict) or claims.get("iss") != ISSUER:
            raise Refused("token_invalid")
        audience, subject = claims.get("aud"), claims.get("sub")
        if audience != AUDIENCE and not (isinstance(audience, list) and AUDIENCE in audience):
            raise Refused("token_invalid")
        if claims.get("pub") is not True or not isinstance(subject, str) or not subject:
            raise Refused("token_invalid")
        issuer = next((issuer for issuer in issuers if issuer.accepts(subject)), None)
        if issuer is None:
            # Perhaps a token of an environment whose id is not known yet: not the token's fault.
            pending = any(one.pending for one in issuers)
            raise Refused("not_ready", retry_after=2) if pending else Refused("token_invalid")
        scopes = claims.get("scopes")
        return self._read(
            claims,
            scopes if isinstance(scopes, list) else [],
            issuer.environment,
            length,
            signed_by=_ELSEWHERE if key is None else self._uses[issuer.environment, key],
            digest=digest,
        )

    def _foreign(self, source: Source, claims: dict[str, Any], length: int) -> Caller[GrantT]:
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise Refused("token_invalid")
        return self._read(
            claims,
            source.scopes(claims),
            source.environment,
            length,
            signed_by=_ELSEWHERE,
            source=source,
        )

    def _read(
        self,
        claims: Mapping[str, Any],
        scopes: Sequence[object],
        environment: str,
        length: int,
        *,
        signed_by: KeyUse,
        source: Source | None = None,
        digest: bytes | None = None,
    ) -> Caller[GrantT]:
        """Read what is the same for every token: dates, who holds it, what it grants."""
        subject = claims["sub"]
        expires, not_before = _date(claims.get("exp")), _date(claims.get("nbf", 0))
        if expires is None or not_before is None:
            raise Refused("token_invalid")
        issued, jti = _date(claims.get("iat")), claims.get("jti")
        if issued is not None:
            not_before = max(not_before, issued - SKEW_SECONDS)
        act = claims.get("act")
        actor = act.get("sub") if isinstance(act, dict) else None
        actor = actor if isinstance(actor, str) and actor else None
        texts = sorted({scope for scope in scopes if isinstance(scope, str)})
        who: list[Any] = [environment, subject, texts, actor]
        identity = json.dumps(who if source is None else [*who, source.name]).encode()
        return Caller(
            environment=environment,
            granted=self._grant(scopes),
            key=hashlib.sha256(identity).digest(),
            # An identity provider's subject is a person; Trigger.dev's is an environment.
            has_actor=actor is not None or source is not None,
            expires=expires,
            not_before=not_before,
            size=2 * length + 1024,
            jti=jti if isinstance(jti, str) else None,
            subjects=(subject,) if actor is None else (actor, subject),
            issued=-math.inf if issued is None else issued,
            signed_by=signed_by,
            keys=None if source is None else source.keys,
            generation=0 if source is None else source.keys.generation,
            digest=digest,
        )


def _signs(key: str, signed: bytes, signature: bytes) -> bool:
    """Whether *key* could have signed a token, whatever it says: the rest is PyJWT's to judge.

    It reads all of a token before it looks at the signature, which makes an invented one cost three
    times as much to refuse; and invented ones come in floods.
    """
    digest = hmac.digest(key.encode(), signed, "sha256")
    return hmac.compare_digest(urlsafe_b64encode(digest).rstrip(b"="), signature.rstrip(b"="))


def _stands(caller: Caller[Any], wall: float) -> bool:
    keys = caller.keys
    return keys is None or (keys.generation == caller.generation and keys.trusted(wall))


def _date(value: object) -> float | None:
    """Read a NumericDate (RFC 7519): a finite number, and true is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None

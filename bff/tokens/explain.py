"""Explains a token check by check: for the log of a refusal, and for `bff token --explain`.

The verifier decides; this module only names the reasons. It never shows the token, a key or a
signature.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bff.clock import shown_date
from bff.errors import Refused
from bff.tokens import verify
from bff.tokens.algorithms import TRIGGER_ALGORITHM
from bff.tokens.caller import SKEW_SECONDS
from bff.tokens.issuers import Source, audiences

_MAX_SHOWN: Final = 80
"""Characters of a claim that are shown."""
_LAST_DATE: Final = 1e11
"""Unix seconds; Python knows no later dates."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a token.

    Attributes:
        name: what is checked; the reason of a refusal in the log.
        passed: None if it was not possible.
        text: what was found.
    """

    name: str
    passed: bool | None
    text: str


def _good(name: str, text: str) -> Check:
    return Check(name, passed=True, text=text)


def _bad(name: str, text: str) -> Check:
    return Check(name, passed=False, text=text)


def reason(checks: Iterable[Check]) -> str:
    """Name the first check that failed."""
    return next((check.name for check in checks if check.passed is False), "unknown")


def explain(
    token: bytes, issuers: Sequence[verify.Issuer], sources: Sequence[Source], wall: float
) -> list[Check]:
    """Check a token at *wall* (Unix seconds), and go on after a failure as far as possible."""
    if token.startswith(b"tr_"):
        return [_bad("form", "it is a secret key, not a token: rotate the key")]
    try:
        if len(token) > verify.MAX_TOKEN_BYTES:
            return [_bad("form", f"it is longer than {verify.MAX_TOKEN_BYTES} bytes")]
        header, claims = verify.read_unverified(token)
    except Refused:
        return [_bad("form", "it is not a JWT: three parts of base64url, each with JSON")]
    checks = [_good("form", "it is a JWT")]
    source = next((one for one in sources if one.issuer == claims.get("iss")), None)
    if source is not None:
        checks += _of_source(token, header, claims, source, wall)
    else:
        checks += _of_trigger(token, header, claims, issuers)
    return [*checks, *_dates(claims, wall), _names(claims)]


def _of_source(
    token: bytes, header: dict[str, Any], claims: dict[str, Any], source: Source, wall: float
) -> Iterable[Check]:
    yield _good("issuer", f"token source {source.name!r}")
    algorithm = header.get("alg")
    yield Check(
        "algorithm",
        algorithm in source.algorithms,
        f"it has {_short(algorithm)}; the source accepts {', '.join(source.algorithms)}",
    )
    named = ", ".join(map(_short, audiences(claims)))
    yield Check("audience", source.accepts_audience(claims), f"it has {named}")
    if not source.keys.trusted(wall):
        yield Check("signature", None, "the gateway has no trusted keys of the source now")
        return
    try:
        source.verify(token, header, wall)
    except Refused:
        kid = _short(header.get("kid"))
        text = f"no key of the source verifies it with its claims (kid {kid})"
        yield _bad("signature", text)
    else:
        yield _good("signature", "a key of the source verifies it")
        yield _good("environment", f"it is for environment {source.environment}")


def _of_trigger(
    token: bytes, header: dict[str, Any], claims: dict[str, Any], issuers: Sequence[verify.Issuer]
) -> Iterable[Check]:
    yield Check("issuer", claims.get("iss") == verify.ISSUER, f"it has {_short(claims.get('iss'))}")
    name, algorithm = TRIGGER_ALGORITHM.name, header.get("alg")
    yield Check("algorithm", algorithm == name, f"it has {_short(algorithm)}; {name} is required")
    named = ", ".join(map(_short, audiences(claims)))
    yield Check("audience", verify.AUDIENCE in audiences(claims), f"it has {named}")
    yield Check("public", claims.get("pub") is True, "a public access token has pub: true")
    signed, _, signature = token.rpartition(b".")
    signers = [
        (issuer, number, key)
        for issuer in issuers
        for number, key in enumerate(issuer.keys, start=1)
        if verify.is_signature(signature.rstrip(b"="), signed, key)
    ]
    subject = claims.get("sub")
    if signers:
        keys = ", ".join(
            f"number {number} of {issuer.environment}" for issuer, number, _ in signers
        )
        yield _good("signature", f"signing key {keys} verifies it")
        among = [issuer for issuer, _, _ in signers]
    elif any(issuer.upstream for issuer in issuers):
        yield Check("signature", None, "no signing key verifies it; upstream decides")
        among = [issuer for issuer in issuers if issuer.upstream]
    else:
        text = "no signing key verifies it: another key signed it, or the key was removed"
        yield _bad("signature", text)
        among = list(issuers)
    own = any(verify.names_environment(key, subject, among) for _, _, key in signers)
    accepting = next(
        (i for i in among if isinstance(subject, str) and i.accepts(subject, own=own)), None
    )
    if accepting is not None:
        text = f"sub is {_short(subject)}: environment {accepting.environment}"
        yield _good("environment", text)
    elif any(issuer.pending for issuer in among):
        yield Check("environment", None, "the gateway does not know its environment's id yet")
    else:
        ids = ", ".join(str(issuer.id) for issuer in among)
        yield _bad("environment", f"sub is {_short(subject)}, but BFF_ENVIRONMENT_ID is {ids}")


def _names(claims: dict[str, Any]) -> Check:
    """Show by what an operator can revoke the token."""
    act = claims.get("act")
    subject = claims.get("sub") if not isinstance(act, dict) else act.get("sub")
    jti = _short(claims.get("jti"))
    return _good("names", f"its jti is {jti}, its subject is {_short(subject)} (bff revoke)")


def _dates(claims: dict[str, Any], wall: float) -> Iterable[Check]:
    expires, issued, begins = (_number(claims.get(name)) for name in ("exp", "iat", "nbf"))
    if expires is None:
        yield _bad("expiry", "it has no exp, so it would never expire")
    else:
        verb = "expires" if wall < expires else "expired"
        yield Check("expiry", wall < expires, f"it {verb} at {shown_date(expires)}")
    begins = max(begins or 0.0, issued or 0.0) - SKEW_SECONDS
    if begins > wall:
        text = f"it is not valid before {shown_date(begins)}: compare the clocks"
        yield _bad("not before", text)


def _short(value: object) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else type(value).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_SHOWN])


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < _LAST_DATE else None  # type: ignore[arg-type]

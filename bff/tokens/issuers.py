"""Token sources: the issuers an operator names beside Trigger.dev, and the keys they sign with.

A source is chosen by the issuer that a token claims, before any key is looked at, and no other
source's keys are tried. A key is bound to one algorithm when it is read, and is only ever handed to
an engine that knows that one algorithm; shared keys come from the settings and never from a JWKS.
So what a token says of its algorithm cannot turn a public key into an HMAC key.

Nothing here does I/O: who fetches a JWKS asks `KeySet.wait` when, and brings it to `replace`.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from jwt import algorithms

from bff import strict_json
from bff.errors import Refused
from bff.tokens.jwks import KeySet

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
            Refused: ``token_invalid``, or ``not_ready`` while there are no keys.
        """
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self.algorithms or not isinstance(kid, str | None):
            raise Refused("token_invalid")
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
        raise Refused("token_invalid")

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
        Refused: ``token_invalid``. Repeated members are refused: two parsers may disagree on which
            of them counts, and another than ours may have the last word.
    """
    parts = token.split(b".")
    try:
        if len(parts) == 3 and all(map(_SEGMENT.fullmatch, parts)):  # noqa: PLR2004
            header, claims = (
                strict_json.loads(base64.urlsafe_b64decode(p + b"==")) for p in parts[:2]
            )
            if isinstance(header, dict) and isinstance(claims, dict):
                return header, claims
    except ValueError:
        pass
    raise Refused("token_invalid")

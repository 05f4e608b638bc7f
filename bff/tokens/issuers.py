"""Token sources: the issuers that an operator names beside Trigger.dev, and their keys. No I/O.

The verifier chooses a source by the issuer that a token claims, and tries the keys of no other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bff.errors import Refused
from bff.tokens.jwks import KeySet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One issuer, its keys, and the claims that its tokens must have."""

    name: str
    environment: str
    """The only environment that its tokens are for."""
    issuer: str
    audiences: tuple[str, ...]
    """A token must have one of them; without any, it must not have an audience."""
    algorithms: tuple[str, ...]
    keys: KeySet
    scopes_path: tuple[str, ...]
    """The claim that holds the scopes, then the members down to them."""
    scopes_are_text: bool
    """Whether the scopes are one text with spaces between them (OAuth), not a list."""
    required: Mapping[str, tuple[object, ...]]
    """Claims that a token must have, each with the values allowed."""

    def verify(self, token: bytes, header: Mapping[str, Any], wall: float) -> dict[str, Any]:
        """Verify a token of this issuer, except its dates; returns its claims.

        Raises:
            Refused: ``token_invalid``, or ``not_ready`` while there are no trusted keys.
        """
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self.algorithms or not isinstance(kid, str | None):
            raise Refused("token_invalid")
        signed, _, signature = token.rpartition(b".")
        for key in self.keys.candidates(kid, wall):
            by = key.algorithm
            if by.name == algorithm and by.is_signature(signature, signed, key.value):
                claims = by.verify(token, key.value)
                if self._accepts(claims):
                    return claims
                break
        raise Refused("token_invalid")

    def _accepts(self, claims: Mapping[str, Any]) -> bool:
        if claims.get("iss") != self.issuer:
            return False
        return self.accepts_audience(claims) and all(
            # In Python 1 == True, in JSON they differ.
            any(claims.get(name) == v and type(claims.get(name)) is type(v) for v in values)
            for name, values in self.required.items()
        )

    def accepts_audience(self, claims: Mapping[str, Any]) -> bool:
        """Whether *claims* have one of the audiences or, without any, no audience."""
        if not self.audiences:
            return claims.get("aud") is None
        return any(isinstance(one, str) and one in self.audiences for one in audiences(claims))

    def scopes(self, claims: Mapping[str, Any]) -> list[object]:
        """Return the scopes of verified *claims*; scopes of another type grant nothing."""
        value: Any = claims
        for step in self.scopes_path:
            value = value.get(step) if isinstance(value, dict) else None
        if self.scopes_are_text:
            return list(value.split(" ")) if isinstance(value, str) else []
        return value if isinstance(value, list) else []


def audiences(claims: Mapping[str, Any]) -> list[Any]:
    """Return the audiences of *claims*, of any type; a token may name one or several."""
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]

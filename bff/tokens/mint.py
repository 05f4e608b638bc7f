"""Signs public access tokens, of the shape that Trigger.dev mints."""

import json
from collections.abc import Sequence
from typing import Any

from bff.tokens.verify import _JWS, AUDIENCE, ISSUER


def mint(
    key: str,
    *,
    environment_id: str,
    scopes: Sequence[str],
    issued: int,
    ttl: int,
    actor: str | None,
    jti: str | None = None,
) -> str:
    """Sign a public access token, of the shape that upstream mints, valid *ttl* seconds."""
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": environment_id,
        "pub": True,
        "scopes": list(scopes),
        "iat": issued,
        "exp": issued + ttl,
    }
    if actor is not None:
        claims["act"] = {"sub": actor}
    if jti is not None:
        claims["jti"] = jti
    return _JWS.encode(json.dumps(claims).encode(), key, algorithm="HS256")

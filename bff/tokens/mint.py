"""Signs public access tokens like those that Trigger.dev mints."""

import json
from collections.abc import Sequence
from typing import Any

from bff.tokens.algorithms import TRIGGER_ALGORITHM
from bff.tokens.verify import AUDIENCE, ISSUER


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
    """Sign a public access token that is valid for *ttl* seconds from *issued* (Unix seconds)."""
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
    return TRIGGER_ALGORITHM.sign(json.dumps(claims).encode(), key)

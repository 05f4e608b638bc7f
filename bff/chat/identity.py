"""The signed identity: tells the agent who speaks, in place of what the browser claims.

The agent verifies a JWT in the message's metadata with a key that it shares with the gateway. The
JWT is bound to the session and to the one message, so that it is worth nothing in another.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bff.tokens.algorithms import SHARED_ALGORITHM

ISSUER: Final = "bff"
SECONDS: Final = 300
"""Seconds for which an agent may accept an identity: a run may take a while to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """The facts about one message that the gateway has checked.

    Attributes:
        subject: the token's `sub`.
        actor: the token's `act.sub`, if it has one.
        part_id: the id by which upstream stores the message once.
        address: the browser's address.
        headers: header lines of the trusted proxy.
    """

    subject: str
    actor: str | None
    session_id: str
    part_id: str
    address: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Signer:
    """Signs identities with *key*, which has at least 32 bytes."""

    def __init__(self, key: str) -> None:
        self._key = key

    def sign(self, speaker: Speaker, wall: float) -> str:
        """Sign the identity of *speaker* at *wall* (Unix seconds)."""
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "sub": speaker.subject,
            "session": speaker.session_id,
            "part": speaker.part_id,
            "address": speaker.address,
            "headers": dict(speaker.headers),
            "iat": int(wall),
            "exp": int(wall) + SECONDS,
        }
        if speaker.actor is not None:
            claims["act"] = {"sub": speaker.actor}
        return SHARED_ALGORITHM.sign(json.dumps(claims).encode(), self._key)

"""Who asks: the subject of a verified token, and what counts as one caller."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from bff.tokens.jwks import KeySet

GrantT = TypeVar("GrantT")


@dataclass(frozen=True, slots=True)
class Caller(Generic[GrantT]):
    """A verified subject and what it may read.

    `key` is the same for every token of the same subject and scopes, so a re-minted token is the
    same caller. Without an actor (``act.sub``) a token says no more than its environment, and the
    address has to tell its callers apart.
    """

    environment: str
    granted: GrantT
    key: bytes
    has_actor: bool
    expires: float
    """Unix seconds; the token is refused from then on."""
    not_before: float
    """Unix seconds."""
    size: int
    """Bytes that remembering it costs, about."""
    jti: str | None
    subjects: tuple[str, ...]
    """What it can be revoked by: ``act.sub`` and ``sub``."""
    issued: float
    """Unix seconds; minus infinity if the token does not say."""
    signed_by: "KeyUse"
    keys: KeySet | None = None
    """Of the source that verified it; it is good while they are those of `generation`."""
    generation: int = 0
    digest: bytes | None = None
    """SHA-256 of a token on which upstream has the last word, session by session."""

    @property
    def unverified(self) -> bool:
        """Whether upstream has the last word on the token, session by session."""
        return self.digest is not None


@dataclass(slots=True)
class KeyUse:
    """Which signing key it is, and when it last let someone in."""

    environment: str
    number: int
    """From 1, in the order of the settings; 0 for a key that is not in the settings."""
    last: float
    """Unix seconds; 0 for never."""


_ELSEWHERE = KeyUse("", 0, 0.0)

"""Introspections: upstream's answers about tokens that the gateway cannot verify. No I/O.

An introspection is about one token, by its hash, and one session, by either of its ids. Accepted
tokens and refusals are kept apart, so that bad tokens cannot push out good ones. Times are seconds
on the monotonic clock. A lifetime starts when upstream answered, to this or another replica.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from cachetools import FIFOCache

from bff.errors import ErrorCode

ACCEPTED_SECONDS: Final = 60.0
"""Seconds. An accepted token is introspected again after this time, so a token that upstream
revokes is refused within it."""
AUTHENTIC_SECONDS: Final = 900.0
"""Seconds for which an accepted token is introspected again without a charge to the bad-token
limit. Otherwise an upstream outage would rate-limit everyone."""
REFUSED_SECONDS: Final = 5.0
"""Seconds for which a refusal is kept: it bounds how often a bad token costs upstream a request."""
TROUBLE_SECONDS: Final = 1.0
"""Seconds until the next introspection of a token after upstream failed to decide."""
UNDECIDED: Final = frozenset(
    {"upstream_unavailable", "upstream_timeout", "upstream_invalid", "over_budget", "internal"}
)
"""Codes of refusals that tell nothing about the token."""
AUTHENTIC: Final = frozenset({"not_found", "unauthorized"})
"""Codes of refusals that show the token to be authentic: upstream verifies it first."""

OK: Final = "ok"

_Key = tuple[bytes, str]

_ANY: Final = ""
"""Stands for all sessions, in place of an id."""


@dataclass(frozen=True, slots=True)
class Introspection:
    """Upstream's answer about one token and one session.

    Attributes:
        code: `OK`, or the code of a refusal.
        ids: the ids of the session that the gateway knows.
        answered_at: when upstream answered.
        seconds: how long the answer is valid from then on.
    """

    code: "ErrorCode | Literal['ok']"
    ids: tuple[str, ...]
    answered_at: float
    seconds: float

    @property
    def until(self) -> float:
        """When its validity ends."""
        return self.answered_at + self.seconds


def refusal_seconds(code: ErrorCode, retry_after: float | None) -> float:
    """Return the seconds for which a refusal is valid."""
    if code in UNDECIDED:
        return min(max(retry_after or 0.0, TROUBLE_SECONDS), ACCEPTED_SECONDS)
    return REFUSED_SECONDS


class Introspections:
    """The introspections that one process keeps.

    Args:
        max_kept: the accepted tokens kept at most.
        max_refused: the refusals kept at most, which is less because they expire sooner.
    """

    def __init__(self, *, max_kept: int = 50_000, max_refused: int = 10_000) -> None:
        self._accepted: FIFOCache[_Key, float] = FIFOCache(max_kept)
        self._refused: FIFOCache[_Key, tuple[float, ErrorCode]] = FIFOCache(max_refused)
        self._authentic: FIFOCache[bytes, float] = FIFOCache(max_kept)
        self._verified: FIFOCache[bytes, float] = FIFOCache(max_kept)

    def __len__(self) -> int:
        return len(self._accepted)

    def accepted(self, digest: bytes, id_: str, now: float) -> bool:
        """Whether upstream recently accepted this token for this session."""
        return self._accepted.get((digest, id_), 0.0) > now

    def verified(self, digest: bytes, now: float) -> bool:
        """Whether upstream verified the token in the last minute, for any session.

        Then the holder is a caller. `accepted` tells which sessions it may read.
        """
        return self._verified.get(digest, 0.0) > now

    def authentic(self, digest: bytes, now: float) -> bool:
        """Whether upstream verified the token in the last 15 minutes: it is not counted as bad."""
        return self._authentic.get(digest, 0.0) > now

    def refused(self, digest: bytes, id_: str, now: float) -> tuple[ErrorCode, float] | None:
        """Return the code of a recent refusal and the seconds for which it is still valid."""
        for key in ((digest, _ANY), (digest, id_)):
            until, code = self._refused.get(key, (0.0, "internal"))
            if until > now:
                return code, until - now
        return None

    def accept(self, digest: bytes, ids: Iterable[str], answered_at: float, seconds: float) -> None:
        """Keep that upstream accepted the token for the session with these *ids*."""
        self._authentic[digest] = answered_at + min(seconds, AUTHENTIC_SECONDS)
        until = answered_at + min(seconds, ACCEPTED_SECONDS)
        self._verify(digest, until)
        for id_ in ids:
            self._accepted[digest, id_] = until

    def refuse(
        self, digest: bytes, id_: str, answered_at: float, code: ErrorCode, seconds: float
    ) -> None:
        """Keep a refusal for *seconds*."""
        if code in AUTHENTIC:
            self._verify(digest, answered_at + ACCEPTED_SECONDS)
            if not self.authentic(digest, answered_at):
                self._authentic[digest] = answered_at + ACCEPTED_SECONDS
        elif code == "token_invalid":
            self._authentic.pop(digest, None)
            self._verified.pop(digest, None)
        about_token = code in ("token_invalid", "over_budget")
        self._refused[digest, _ANY if about_token else id_] = (answered_at + seconds, code)

    def _verify(self, digest: bytes, until: float) -> None:
        self._verified[digest] = max(until, self._verified.get(digest, 0.0))

    def forget(self) -> None:
        """Drop everything."""
        for kept in (self._accepted, self._refused, self._authentic, self._verified):
            kept.clear()

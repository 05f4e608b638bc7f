"""What upstream said of tokens that no key here can verify. Decides without I/O.

A verdict is about one token (by its hash) and one session, under either of its ids. Good ones and
refusals are kept apart and bounded each, so that bad tokens push no good one out. A test under way
is joined, not repeated. Time is seconds on a clock that never jumps, and a verdict counts from when
upstream spoke, to whichever replica that was.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from bff.errors import ErrorCode

ACCEPTED_SECONDS: Final = 60.0
"""A good verdict is kept no longer: what upstream takes back is taken back here within that."""
AUTHENTIC_SECONDS: Final = 900.0
"""How long a token that passed once is none of the untested: it is tested again as often as
any, but is not counted as a bad one meanwhile, or an outage upstream would count everyone so."""
REFUSED_SECONDS: Final = 5.0
TROUBLE_SECONDS: Final = 1.0
"""How long a test that upstream did not decide (it failed, it was busy) is not repeated."""
UNDECIDED: Final = frozenset(
    {"upstream_unavailable", "upstream_timeout", "upstream_invalid", "over_budget", "internal"}
)
AUTHENTIC: Final = frozenset({"not_found", "unauthorized"})
"""Refusals of a session by which upstream takes the token for one of its own: it looks at the
token first."""
OK: Final = "ok"
_Key = tuple[bytes, str]
_ANY = ""
"""In place of a session's id: the token is bad whatever it asks for."""


@dataclass(frozen=True, slots=True)
class Introspection:
    """Upstream's word on one token and one session.

    Attributes:
        code: `OK`, or the refusal's.
        ids: the session's, as far as they are known.
        spoken: when upstream said so.
        seconds: how long it stands from then on.
    """

    code: "ErrorCode | Literal['ok']"
    ids: tuple[str, ...]
    spoken: float
    seconds: float

    @property
    def until(self) -> float:
        """When it ends."""
        return self.spoken + self.seconds


def refusal_seconds(code: ErrorCode, retry_after: float | None) -> float:
    """Seconds that a refusal stands."""
    if code in UNDECIDED:
        return min(max(retry_after or 0.0, TROUBLE_SECONDS), ACCEPTED_SECONDS)
    return REFUSED_SECONDS


class Introspections:
    """The verdicts of one process, and the tests under way.

    Args:
        max_kept: bound on the good ones.
        max_refused: bound on the refusals, which are kept for so much less long.
    """

    def __init__(
        self,
        *,
        max_kept: int = 50_000,
        max_refused: int = 10_000,
    ) -> None:
        self._max_kept = max_kept
        self._max_refused = max_refused
        self._accepted: OrderedDict[_Key, float] = OrderedDict()
        self._refused: OrderedDict[_Key, tuple[float, ErrorCode]] = OrderedDict()
        self._authentic: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accepted)

    def accepted(self, digest: bytes, id_: str, now: float) -> bool:
        """Whether upstream let this token read this session, not long ago."""
        return self._accepted.get((digest, id_), 0.0) > now

    def authentic(self, digest: bytes, now: float) -> bool:
        """Whether upstream, not long ago, took the token for one of its own; it grants nothing."""
        return self._authentic.get(digest, 0.0) > now

    def refused(self, digest: bytes, id_: str, now: float) -> tuple[ErrorCode, float] | None:
        """Give the refusal that came not long ago: its code, and for how many seconds it stands."""
        for key in ((digest, _ANY), (digest, id_)):
            until, code = self._refused.get(key, (0.0, "internal"))
            if until > now:
                return code, until - now
        return None

    def accept(self, digest: bytes, ids: Iterable[str], spoken: float, seconds: float) -> None:
        """Keep a good verdict on the session with these *ids*, *seconds* at most."""
        self._put(self._authentic, digest, spoken + min(seconds, AUTHENTIC_SECONDS), self._max_kept)
        until = spoken + min(seconds, ACCEPTED_SECONDS)
        for id_ in ids:
            self._put(self._accepted, (digest, id_), until, self._max_kept)

    def refuse(
        self, digest: bytes, id_: str, spoken: float, code: ErrorCode, seconds: float
    ) -> None:
        """Keep a refusal for *seconds*."""
        if code in AUTHENTIC:
            if not self.authentic(digest, spoken):
                self._put(self._authentic, digest, spoken + ACCEPTED_SECONDS, self._max_kept)
        elif code == "token_invalid":
            self._authentic.pop(digest, None)
        whole = code in ("token_invalid", "over_budget")  # about the token, not about a session
        key = (digest, _ANY if whole else id_)
        self._put(self._refused, key, (spoken + seconds, code), self._max_refused)

    def forget(self) -> None:
        """Forget every verdict."""
        for kept in (self._accepted, self._refused, self._authentic):
            kept.clear()

    def _put(self, kept: OrderedDict[Any, Any], key: Any, value: Any, bound: int) -> None:
        kept.pop(key, None)
        kept[key] = value
        if len(kept) > bound:
            kept.popitem(last=False)

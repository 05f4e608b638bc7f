"""Tokens that an operator revokes before they expire. No I/O.

A revocation names a token (`jti`), a session, a subject, or nothing (all tokens). Without a `jti`
it revokes the tokens that were issued before a moment; the app decides again when it mints a token
later. A token without a time of issue counts as issued before every moment. Times are Unix seconds.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from bff import strict_json

DEFAULT_TTL: Final = 30 * 86400.0
"""Seconds for which a revocation is kept: more than the life of most tokens."""
MAX_TTL: Final = 366 * 86400.0
"""Seconds. Bounds how long a revocation takes up room."""
MAX_TEXT: Final = 1024
"""Characters of a jti, a session or a subject. Bounds the memory of a revocation."""
MAX_KEPT: Final = 100_000
"""Revocations of one process. Beyond it a new one is refused, because none may be dropped early."""
KINDS: Final = ("jti", "session", "subject", "all")

_TOKEN: Final = re.compile(r"\s*(bearer\s|eyJ[\w-]+\.|tr_(dev|stg|prod|preview)_)", re.IGNORECASE)


class RevocationError(ValueError):
    """The revocation is not possible; the text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One revocation, as replicas exchange it."""

    kind: str
    """One of `KINDS`."""
    value: str
    before: float
    """It revokes tokens issued before this moment; infinity for a `jti`, which is one token."""
    until: float
    """When it may be dropped; the tokens that it revokes must expire before."""
    made: float = 0.0
    """When the operator sent it. The later of a revocation and an undoing counts."""
    undone: bool = False
    """Whether it undoes earlier revocations of the same kind and value; it is kept as long."""

    def encode(self) -> str:
        """Write it as JSON, for `decode`."""
        return json.dumps(asdict(self) | {"before": None if self.kind == "jti" else self.before})

    def shown(self) -> dict[str, str | float | None]:
        """Describe it for the operator."""
        return {
            "kind": self.kind,
            "value": self.value,
            "issued_before": None if self.kind == "jti" else self.before,
            "until": self.until,
        }

    @classmethod
    def decode(cls, text: str) -> "Revocation":
        """Read what `encode` wrote.

        Raises:
            ValueError: *text* is not from `encode`.
        """
        try:
            members = strict_json.loads(text)
            kind, value, before = members["kind"], members["value"], members["before"]
            before = math.inf if before is None or kind == "jti" else _number(before, "before")
            until = _number(members["until"], "until")
            made, undone = _number(members.get("made", 0.0), "made"), members.get("undone", False)
        except (TypeError, KeyError):
            raise ValueError("not a revocation") from None
        if not (kind in KINDS and isinstance(value, str) and isinstance(undone, bool)):
            raise ValueError("not a revocation")
        return cls(kind=kind, value=value, before=before, until=until, made=made, undone=undone)


def parse(body: Mapping[str, Any], wall: float) -> Revocation:
    """Read a request to revoke: a ``jti``, ``session`` or ``subject``, or ``issued_before`` alone.

    A session or a subject may have an ``issued_before`` (Unix seconds, at the latest *wall*, which
    is the default). ``ttl`` is the longest time that such tokens live (seconds, 30 days if absent).

    Raises:
        RevocationError: the text says what is wrong.
    """
    unknown = set(body) - {"jti", "session", "subject", "issued_before", "ttl"}
    if unknown:
        raise RevocationError("Send only jti, session, subject, issued_before and ttl")
    named = [name for name in ("jti", "session", "subject") if name in body]
    if len(named) > 1:
        raise RevocationError("Name one of jti, session and subject")
    if not named and "issued_before" not in body:
        raise RevocationError("Name a jti, a session or a subject, or send issued_before")
    if named == ["jti"] and "issued_before" in body:
        raise RevocationError("Send no issued_before with a jti: it names one token")
    before = _number(body.get("issued_before", wall), "issued_before")
    if before > wall:
        raise RevocationError("issued_before is in Unix seconds and may not be later than now")
    ttl = _number(body.get("ttl", DEFAULT_TTL), "ttl")
    if not 0 < ttl <= MAX_TTL:
        raise RevocationError(f"ttl is in seconds, up to {MAX_TTL:.0f}")
    kind = named[0] if named else "all"
    value = body[kind] if named else ""
    if not isinstance(value, str) or len(value) > MAX_TEXT or bool(value) is not bool(named):
        raise RevocationError(f"{kind} is a text of 1 to {MAX_TEXT} characters")
    if _TOKEN.match(value):  # nothing would be revoked, and the store would hold it
        raise RevocationError(f"{kind} is a token or a key; bff token --explain shows its names")
    return Revocation(
        kind=kind,
        value=value,
        before=math.inf if kind == "jti" else before,
        until=wall + ttl,
        made=wall,
    )


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RevocationError(f"{name} is a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RevocationError(f"{name} is a number")
    return number


class Revocations:
    """The revocations of one process.

    Args:
        max_kept: the revocations kept at most; beyond it a new one is refused.
    """

    def __init__(self, *, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        # Not a cachetools map: that would drop a revocation before its time.
        self._kept: dict[tuple[str, str], Revocation] = {}
        self._kinds = dict.fromkeys(KINDS, 0)
        self.any = False
        """Whether a revocation was ever added; otherwise a hit looks no further."""
        self.changes = 0
        """How often anything was revoked, or a revocation undone, until now."""
        self.session_changes = 0
        """How often a session was revoked until now."""

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> tuple[Revocation, ...]:
        """List all revocations and undoings."""
        return tuple(self._kept.values())

    def in_force(self, wall: float) -> tuple[Revocation, ...]:
        """List the revocations and undoings in force, for a store that has lost them."""
        return tuple(kept for kept in self._kept.values() if wall < kept.until)

    def add(self, new: Revocation, wall: float) -> None:
        """Add a revocation or an undoing, or extend the revocation that names the same.

        The result does not depend on the order in which replicas receive them.

        Raises:
            RevocationError: no room is left.
        """
        key = (new.kind, new.value)
        kept = self._kept.get(key)
        if kept is None and len(self._kept) >= self._max_kept:
            self._sweep(wall)
            if len(self._kept) >= self._max_kept:
                raise RevocationError(
                    f"{self._max_kept} revocations are kept already: "
                    "revoke all tokens issued before a moment instead"
                )
        if kept is not None:
            until = max(new.until, kept.until)
            if not (new.undone or kept.undone):
                before, made = max(new.before, kept.before), max(new.made, kept.made)
                new = replace(new, before=before, until=until, made=made)
            else:  # at the same moment, the revocation counts
                latest = max(new, kept, key=lambda one: (one.made, not one.undone))
                new = replace(latest, until=until)
        else:
            self._kinds[new.kind] += 1
        self._kept[key] = new
        self.any = True
        self.changes += 1
        self.session_changes += new.kind == "session"

    def _sweep(self, wall: float) -> None:
        for key, kept in list(self._kept.items()):
            if kept.until <= wall:
                del self._kept[key]
                self._kinds[kept.kind] -= 1

    def token(self, jti: str | None, subjects: tuple[str, ...], issued: float, wall: float) -> bool:
        """Whether a token is revoked for all sessions."""
        return (
            (jti is not None and self._is_revoked("jti", jti, issued, wall))
            or any(self._is_revoked("subject", subject, issued, wall) for subject in subjects)
            or self._is_revoked("all", "", issued, wall)
        )

    @property
    def any_session(self) -> bool:
        """Whether a session is revoked."""
        return self._kinds["session"] > 0

    def session(self, id_: str, external_id: str | None, issued: float, wall: float) -> bool:
        """Whether tokens *issued* then are revoked for the session with these ids."""
        if not self._kinds["session"]:
            return False
        return self._is_revoked("session", id_, issued, wall) or (
            external_id is not None and self._is_revoked("session", external_id, issued, wall)
        )

    def _is_revoked(self, kind: str, value: str, issued: float, wall: float) -> bool:
        kept = self._kept.get((kind, value))
        return kept is not None and issued < kept.before and wall < kept.until and not kept.undone

"""Tokens that are taken back before they expire. Decides without I/O.

A revocation names a token (`jti`), a session, a subject, or nothing (every token), and all but the
first hit what was issued before a moment: a token minted later is a new decision of the app's. A
token that does not say when it was issued was issued before any moment. Time is Unix seconds.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

DEFAULT_TTL: Final = 30 * 86400.0
MAX_TTL: Final = 366 * 86400.0
MAX_TEXT: Final = 1024
KINDS: Final = ("jti", "session", "subject", "all")


class RevocationError(ValueError):
    """A revocation that cannot be: what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One of them, as replicas tell it one another."""

    kind: str
    """One of `KINDS`."""
    value: str
    before: float
    """Tokens issued before are hit; infinity for a `jti`, which is one token."""
    until: float
    """Forgotten then: no token it hits may live longer."""

    def encode(self) -> str:
        """Write as JSON, for `decode`."""
        return json.dumps(asdict(self) | {"before": None if self.kind == "jti" else self.before})

    @classmethod
    def decode(cls, text: str) -> "Revocation":
        """Read what `encode` wrote.

        Raises:
            ValueError: it did not write this.
        """
        try:
            read = json.loads(text)
            before, until = read["before"], read["until"]
            made = cls(
                kind=read["kind"],
                value=read["value"],
                before=math.inf if before is None or read["kind"] == "jti" else float(before),
                until=float(until),
            )
        except (TypeError, KeyError, RecursionError, OverflowError):
            raise ValueError("no revocation") from None
        unknown = made.kind not in KINDS or not isinstance(made.value, str)
        if unknown or math.isnan(made.before + made.until):
            raise ValueError("no revocation")
        return made


def parse(body: Mapping[str, Any], wall: float) -> Revocation:
    """Read a request to revoke: a ``jti``, ``session`` or ``subject``, or ``issued_before`` alone.

    ``issued_before`` (Unix seconds, now by default, never later) may stand with a session or a
    subject; ``ttl`` (seconds, 30 days by default) says how long such tokens can still live.

    Raises:
        RevocationError: with what is wrong.
    """
    unknown = set(body) - {"jti", "session", "subject", "issued_before", "ttl"}
    if unknown:
        raise RevocationError("Only jti, session, subject, issued_before and ttl are known")
    named = [name for name in ("jti", "session", "subject") if name in body]
    if len(named) > 1:
        raise RevocationError("Name one of jti, session and subject")
    if not named and "issued_before" not in body:
        raise RevocationError("Name a jti, a session or a subject, or a moment as issued_before")
    if named == ["jti"] and "issued_before" in body:
        raise RevocationError("A jti is one token, whenever it was issued: leave issued_before out")
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
    return Revocation(
        kind=kind,
        value=value,
        before=math.inf if kind == "jti" else before,
        until=wall + ttl,
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
    """The revocations that one process knows; bounded, and none is dropped before its time.

    Args:
        max_kept: beyond it, new ones are refused: it is then time to revoke by a moment.
    """

    def __init__(self, *, max_kept: int = 100_000) -> None:
        self._max_kept = max_kept
        self._kept: dict[tuple[str, str], Revocation] = {}
        self._kinds = dict.fromkeys(KINDS, 0)
        self.any = False
        """Whether there ever was one: as good as never, and a hit asks three times."""

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> tuple[Revocation, ...]:
        """List them, for a store that has forgotten them."""
        return tuple(self._kept.values())

    def add(self, new: Revocation, wall: float) -> None:
        """Take one in; the same one twice is once, and an earlier moment takes nothing back.

        Raises:
            RevocationError: there is no room.
        """
        key = (new.kind, new.value)
        known = self._kept.get(key)
        if known is None and len(self._kept) >= self._max_kept:
            self._sweep(wall)
            if len(self._kept) >= self._max_kept:
                raise RevocationError(
                    f"{self._max_kept} revocations are kept already: "
                    "revoke everything issued before a moment instead"
                )
        if known is not None:
            new = Revocation(
                kind=new.kind,
                value=new.value,
                before=max(new.before, known.before),
                until=max(new.until, known.until),
            )
        else:
            self._kinds[new.kind] += 1
        self._kept[key] = new
        self.any = True

    def _sweep(self, wall: float) -> None:
        for key, known in list(self._kept.items()):
            if known.until <= wall:
                del self._kept[key]
                self._kinds[known.kind] -= 1

    def token(self, jti: str | None, subjects: tuple[str, ...], issued: float, wall: float) -> bool:
        """Whether a token is revoked, whatever it asks for."""
        return (
            (jti is not None and self._hits("jti", jti, issued, wall))
            or any(self._hits("subject", subject, issued, wall) for subject in subjects)
            or self._hits("all", "", issued, wall)
        )

    def session(self, id_: str, external_id: str | None, issued: float, wall: float) -> bool:
        """Whether tokens *issued* then may no longer read the session with these ids."""
        if not self._kinds["session"]:
            return False
        return self._hits("session", id_, issued, wall) or (
            external_id is not None and self._hits("session", external_id, issued, wall)
        )

    def _hits(self, kind: str, value: str, issued: float, wall: float) -> bool:
        known = self._kept.get((kind, value))
        return known is not None and issued < known.before and wall < known.until

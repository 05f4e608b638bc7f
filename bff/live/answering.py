"""Whether the agent of a session is answering, as far as the gateway knows. No I/O.

The gateway knows it from three events: a message that it appended, the end of a turn that passes
in a stream, and a peek, which asks upstream whether the last record of the stream ends a turn. A
state that is not known is absent, and never false.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from cachetools import TTLCache

from bff.sessions.copy import Copy, Key

PENDING_SECONDS: Final = 60.0
"""Seconds for which a message counts as being answered although no record follows it."""
RUNNING_SECONDS: Final = 600.0
"""Seconds for which peeks alone may say that a turn is under way: upstream says it for ever of an
agent that died in its turn."""
VALID_SECONDS: Final = 60.0
"""Seconds after the last event about a session in which its state counts as known."""
_MAX_SESSIONS: Final = 20_000
"""Ids of sessions that are remembered: about 4 MiB."""
_NONE: Final = -1
"""Stands for no message; upstream numbers messages from 0."""


@dataclass(frozen=True, slots=True)
class Peek:
    """The result of a peek.

    Attributes:
        idle: whether the last record of the stream ends a turn; None if it has no record.
        began: when the peek began.
    """

    idle: bool | None
    began: float


@dataclass(slots=True, eq=False)
class Turn:
    """The last turn of one session.

    Attributes:
        idle: whether the last record ended a turn, as a peek or a stream showed; None if unknown.
        exact_at: when the last message came, or its turn ended. A peek that began earlier says
            nothing.
        pending: the number of the last message, if its turn has not ended.
        until: when that message counts as being answered no longer, unless a record comes. Without
            a number in `pending`: until when a message may have come that is not confirmed.
        running_since: the last record, or the first peek since then, that shows a turn under way;
            None before such a peek.
        ended: the greatest number of a message whose turn has ended.
        learned_at: when something was learned last.
        peek_at: when the next peek may start.
    """

    idle: bool | None = None
    exact_at: float = -inf
    pending: int = _NONE
    until: float = -inf
    running_since: float | None = None
    ended: int = _NONE
    learned_at: float = -inf
    peek_at: float = -inf


class NoAnswering:
    """Knows nothing: the feature is off."""

    def of(self, copy: Copy) -> bool | None:  # noqa: ARG002
        """Return None: nothing is known."""
        return None

    def appended(self, environment: str, ids: Iterable[str], number: int | None) -> None:
        """Ignore a message."""

    def passed(self, environment: str, ids: Iterable[str], answered: int) -> None:
        """Ignore records."""

    def due(self, copy: Copy, now: float, seconds: float) -> bool:  # noqa: ARG002
        """Return False: no peek is made."""
        return False


class Answering:
    """The state of the last turn of each session, by either of its ids.

    Args:
        clock: seconds on the clock that never jumps.
        changed: called with environment and ids of a session about which something was learned.
        announce: tells other replicas of a message, or of the end of its turn (*ended*).
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        changed: Callable[[str, tuple[str, ...]], None],
        announce: "Callable[[str, tuple[str, ...], int, bool], None]",
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._forgotten = -inf
        """When everything was forgotten last."""
        self._announce = announce
        self._turns: TTLCache[Key, Turn] = TTLCache(_MAX_SESSIONS, 2 * VALID_SECONDS, timer=clock)

    def __len__(self) -> int:
        return len(self._turns)

    def forget(self) -> None:
        """Forget everything: the environments have moved to another upstream."""
        self._turns.clear()
        self._forgotten = self._clock()

    def of(self, copy: Copy) -> bool | None:
        """Whether the agent of a session is answering; None if that is not known."""
        if copy.closed:
            return False
        turn = self._find(copy.environment, (id_ for _, id_ in copy.keys))
        if turn is None:
            return None
        now = self._clock()
        if turn.pending != _NONE and now < turn.until:
            return True
        if turn.idle is None or now - turn.learned_at >= VALID_SECONDS:
            return None
        if turn.idle:
            return None if now < turn.until else False
        return True if _is_running(turn, now) else None

    def appended(self, environment: str, ids: Iterable[str], number: int | None) -> None:
        """Note message *number* of a session; None if only upstream knows what became of it."""
        names, number = tuple(ids), _NONE if number is None else number
        self.learn(environment, names, number, ended=False)
        self._announce(environment, names, number, False)  # noqa: FBT003

    def passed(self, environment: str, ids: Iterable[str], answered: int) -> None:
        """Note records of a stream; *answered* is the last message whose turn they ended, or -1.

        A stream may repeat old records. So an end counts only for a message that is remembered, and
        a record alone never tells that a turn is under way.
        """
        names = tuple(ids)
        turn = self._find(environment, names)
        if turn is None or turn.pending == _NONE:
            return
        now = self._clock()
        turn.until = now + PENDING_SECONDS
        if turn.running_since is not None:
            turn.running_since = now
        if answered > turn.ended:
            is_last = answered >= turn.pending
            self.learn(environment, names, answered, ended=True)
            if is_last:
                self._announce(environment, names, answered, True)  # noqa: FBT003

    def learn(self, environment: str, names: tuple[str, ...], number: int, *, ended: bool) -> None:
        """Note that message *number* was appended or, if *ended*, that its turn has ended.

        The number -1 stands for a message that may have been appended.
        """
        turn, now = self._turn(environment, names), self._clock()
        if number == _NONE and turn.pending == _NONE:
            turn.idle, turn.until = None, now + PENDING_SECONDS
        elif number <= (turn.ended if ended else max(turn.pending, turn.ended)):
            return  # it is known, or older than what is known
        elif not ended:
            turn.pending, turn.until = number, now + PENDING_SECONDS
        elif number < turn.pending:
            turn.ended, turn.idle = number, False
        else:
            _end(turn, number)
        turn.running_since = None
        turn.exact_at = turn.learned_at = now
        self._changed(environment, names)

    def due(self, copy: Copy, now: float, seconds: float) -> bool:
        """Whether a peek may start now; then none may for *seconds*."""
        if copy.closed:
            return False
        turn = self._turn(copy.environment, [id_ for _, id_ in copy.keys])
        if now < turn.peek_at:
            return False
        turn.peek_at = now + seconds
        return True

    def has_record(self, copy: Copy) -> bool:
        """Whether the stream of a session is known to have a record."""
        turn = self._find(copy.environment, (id_ for _, id_ in copy.keys))
        return turn is not None and turn.idle is not None

    def peeked(self, copy: Copy, peek: Peek) -> None:
        """Note the result of a peek."""
        names, idle = tuple(id_ for _, id_ in copy.keys), peek.idle
        turn = self._turn(copy.environment, names)
        if peek.began <= max(turn.exact_at, self._forgotten):
            return
        now = self._clock()
        turn.idle, turn.learned_at = idle, now
        if idle is False:
            if turn.running_since is None:
                turn.running_since = now
            if turn.pending != _NONE and _is_running(turn, now):
                turn.until = now + PENDING_SECONDS
        elif idle and (turn.running_since is not None or now >= turn.until):
            _end(turn, turn.pending)
        self._changed(copy.environment, names)

    def _find(self, environment: str, names: Iterable[str]) -> Turn | None:
        keys = [(environment, name) for name in names]
        turns = [self._turns[key] for key in keys if key in self._turns]
        # Messages may have come under both ids before the pair of ids was known.
        return max(turns, key=lambda turn: turn.exact_at, default=None)

    def _turn(self, environment: str, names: Sequence[str]) -> Turn:
        """Find or make a turn, and remember it under all ids of its session that are known."""
        turn = self._find(environment, names) or Turn()
        for name in names:
            self._turns[environment, name] = turn
        return turn


def _end(turn: Turn, number: int) -> None:
    """Note that the turn of message *number*, which is the last one, has ended."""
    turn.ended, turn.idle = max(turn.ended, number), True
    turn.pending, turn.until, turn.running_since = _NONE, -inf, None


def _is_running(turn: Turn, now: float) -> bool:
    return turn.running_since is None or now - turn.running_since < RUNNING_SECONDS

"""Whether the agent of a session is answering, as far as the gateway knows. No I/O.

The gateway knows it from three events: a message that it appended, the end of a turn that passes
in a stream, and a peek, which asks upstream whether the last record of the stream ends a turn. A
state that is not known is absent, and never false.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from cachetools import TTLCache

from bff.sessions.copy import Copy, Key

PENDING_SECONDS: Final = 60.0
"""Seconds for which a message counts as being answered although no record follows it."""
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
        idle: whether the last record of the stream ends a turn.
        began: when the peek began.
    """

    idle: bool
    began: float


@dataclass(slots=True, eq=False)
class Turn:
    """The last turn of one session.

    Attributes:
        idle: whether the last record ended a turn, as a peek or a stream showed; None if unknown.
        exact_at: when the last message came, or its turn ended. A peek that began earlier says
            nothing.
        pending: the number of the last message, if its turn has not ended.
        until: when that message counts as being answered no longer, unless a record comes.
        started: whether a peek has seen that the last record does not end a turn, since then.
        ended: the greatest number of a message whose turn has ended.
        learned_at: when something was learned last.
        peek_at: when the next peek may start.
    """

    idle: bool | None = None
    exact_at: float = -inf
    pending: int = _NONE
    until: float = -inf
    started: bool = False
    ended: int = _NONE
    learned_at: float = -inf
    peek_at: float = -inf


class TurnEvents(Protocol):
    """Receives the events of chats that tell about turns; `NoAnswering` receives them for none."""

    def appended(self, environment: str, ids: Iterable[str], number: int) -> None:
        """Note that message *number* of a session was appended."""

    def passed(self, environment: str, ids: Iterable[str], answered: int) -> None:
        """Note records of a stream; *answered* is the last message whose turn they ended, or -1."""


class NoAnswering:
    """Knows nothing: the feature is off."""

    def of(self, copy: Copy) -> bool | None:  # noqa: ARG002
        """Return None: nothing is known."""
        return None

    def appended(self, environment: str, ids: Iterable[str], number: int) -> None:
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
        turn = next((self._turns[key] for key in copy.keys if key in self._turns), None)
        if turn is None:
            return None
        now = self._clock()
        if turn.pending != _NONE and now < turn.until:
            return True
        if turn.idle is None or now - turn.learned_at >= VALID_SECONDS:
            return None
        return not turn.idle

    def appended(self, environment: str, ids: Iterable[str], number: int) -> None:
        """Note that message *number* of a session was appended."""
        names = tuple(ids)
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
        turn.until = self._clock() + PENDING_SECONDS
        if answered >= turn.pending:
            self.learn(environment, names, answered, ended=True)
            self._announce(environment, names, answered, True)  # noqa: FBT003

    def learn(self, environment: str, names: tuple[str, ...], number: int, *, ended: bool) -> None:
        """Note that message *number* was appended or, if *ended*, that its turn has ended."""
        turn, now = self._turn(environment, names), self._clock()
        if number <= (turn.ended if ended else max(turn.pending, turn.ended)):
            return  # it is known, or older than what is known
        if ended:
            turn.ended, turn.idle = number, number >= turn.pending
            turn.pending = _NONE if turn.idle else turn.pending
        else:
            turn.pending, turn.until, turn.started = number, now + PENDING_SECONDS, False
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

    def peeked(self, copy: Copy, peek: Peek) -> None:
        """Note the result of a peek."""
        names, idle = tuple(id_ for _, id_ in copy.keys), peek.idle
        turn = self._turn(copy.environment, names)
        if peek.began <= max(turn.exact_at, self._forgotten):
            return
        now = self._clock()
        turn.idle, turn.learned_at = idle, now
        if turn.pending != _NONE:
            if not idle:
                turn.started, turn.until = True, now + PENDING_SECONDS
            elif turn.started or now >= turn.until:
                turn.ended, turn.pending = turn.pending, _NONE
        self._changed(copy.environment, names)

    def _find(self, environment: str, names: Iterable[str]) -> Turn | None:
        keys = [(environment, name) for name in names]
        turns = [self._turns[key] for key in keys if key in self._turns]
        # Messages may have come under both ids before the pair of ids was known.
        return max(turns, key=lambda turn: turn.exact_at, default=None)

    def _turn(self, environment: str, names: Iterable[str]) -> Turn:
        names = tuple(names)
        turn = self._find(environment, names)
        return self._keep(environment, names, Turn() if turn is None else turn)

    def _keep(self, environment: str, names: Iterable[str], turn: Turn) -> Turn:
        """Remember a turn under all ids of its session that are known."""
        for name in names:
            self._turns[environment, name] = turn
        return turn

"""The commands that callers send: collected, sent together, and ended when they are late."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Any, Final

from bff.replicas.heartbeat import GRACE_SECONDS
from bff.replicas.joint_commands import JointCommand
from bff.replicas.link import ClientLink, Command, DirectLink

LINGER_SECONDS: Final = 0.005
"""Seconds for which commands that nobody waits for may wait for others, to be sent together."""
_TICK_SECONDS: Final = 0.001
"""The event loop rounds the time of a timer to this many seconds."""
Commands = Sequence[Command] | JointCommand
Ended = Callable[[list[Any] | None], None]
"""Gets the answers of commands; None if they are late or errors."""


class Exchange:
    """Commands that were sent together, and their answers.

    Attributes:
        ended: gets the answers; None if they are late or errors.
        deadline: the time of the event loop at which the answers are due.
        overdue: whether that time has passed.
    """

    __slots__ = ("accept", "commands", "deadline", "ended", "late", "overdue", "results")

    def __init__(
        self,
        commands: Commands,
        accept: "Callable[[Exchange], list[Any] | None]",
        ended: Ended,
    ) -> None:
        self.commands = commands
        self.results: list[Any] = []
        self.accept = accept
        self.ended = ended
        self.deadline = inf
        self.overdue = self.late = False

    def receive(self, result: Any) -> None:
        """Take the answer of the next command."""
        self.results.append(result)
        if len(self.results) == len(self.commands) and not self.late:
            self.ended(self.accept(self))


class Deadlines:
    """Notices exchanges that are late, with one timer: a timer for each would cost more.

    Args:
        expired: called with each exchange whose answers are late.
    """

    def __init__(self, expired: Callable[[Exchange], None]) -> None:
        self._expired = expired
        self._waiting: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf
        """When the timer fires; not after the first deadline."""

    def add(self, exchange: Exchange, seconds: float) -> None:
        """Let the answers of *exchange* be due in *seconds*."""
        loop = asyncio.get_running_loop()
        exchange.deadline = loop.time() + seconds
        self._waiting.add(exchange)
        if exchange.deadline < self._due:
            self._set(loop, exchange.deadline)

    def remove(self, exchange: Exchange) -> None:
        """Note that *exchange* has its answers."""
        self._waiting.discard(exchange)

    def _set(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._look)

    def _look(self) -> None:
        """Read answers that arrived while this process was busy; then an exchange is late."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer, self._due = None, inf
        for exchange in [one for one in self._waiting if one.deadline <= now + _TICK_SECONDS]:
            if exchange.overdue:
                self._waiting.discard(exchange)
                self._expired(exchange)
            else:
                exchange.overdue = True
                exchange.deadline = now + GRACE_SECONDS
        if self._waiting:
            self._set(loop, min(one.deadline for one in self._waiting))


class Outbox:
    """Collects commands, to send many at once on *link*.

    Attributes:
        joint: the commands that callers may join, because they are not sent yet.
    """

    def __init__(self, link: ClientLink | DirectLink) -> None:
        self._exchanges: list[Exchange] = []
        self.joint: dict[Hashable, JointCommand] = {}
        self._link = link
        self._now = False
        """Whether this iteration of the loop sends them."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._exchanges)

    def add(self, exchange: Exchange, *, now: bool) -> None:
        """Send *exchange* at the end of this iteration of the loop.

        If not *now*, it may wait for the next that is sent then, or for `LINGER_SECONDS`.
        """
        self._exchanges.append(exchange)
        if now and not self._now:
            self._now = True
            asyncio.get_running_loop().call_soon(self._send)
        elif not now and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._send)

    def take(self) -> list[Exchange]:
        """Take all out; nothing is sent any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._now = None, False
        exchanges, self._exchanges, self.joint = self._exchanges, [], {}
        return exchanges

    def _send(self) -> None:
        if exchanges := self.take():
            self._link.submit(
                [(command, one.receive) for one in exchanges for command in one.commands]
            )

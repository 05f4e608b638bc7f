"""The commands of a replica, and whether the store is up.

The commands of one iteration of the event loop are sent together, with those of the last
milliseconds that nobody waits for. Loads that start in it join one command, and so do their
results. A caller that leaves cancels neither its commands nor their answers, so no answer can reach
another caller. No caller waits longer than its timeout.

Heartbeats alone decide whether the store is up. They use a connection of their own, so commands of
requests do not delay them. A late answer or an error ends one caller's wait and causes a heartbeat
at once. While the store is down, this replica decides every request alone.
"""

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar, cast

from bff.background import Background, Beat
from bff.replicas import keys, scripts
from bff.replicas.exchanges import Commands, Deadlines, Ended, Exchange, Outbox
from bff.replicas.heartbeat import HeartbeatLink
from bff.replicas.joint_commands import JointCommand
from bff.replicas.link import ClientLink, Command, DirectLink
from bff.replicas.valkey import (
    ClientFactory,
    StoreUnavailable,
    if_available,
)

HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between two heartbeats while the store is up; each says that this replica runs."""
REPLICA_SECONDS: Final = 5.0
"""Seconds after its last heartbeat in which a replica still counts as running."""
UNKNOWN_REPLICAS: Final = 4
"""Number of replicas to assume until the store has answered once."""
RETRY_SECONDS: Final = HEARTBEAT_SECONDS / 4
"""Seconds between two heartbeats while the store is down."""
MAX_RETRY_SECONDS: Final = 4.0
"""Longest pause in seconds between two heartbeats while the store is down. The pause doubles each
time the store soon goes down again, so that requests seldom wait for a failing store."""
STABLE_HEARTBEATS: Final = 5
"""Heartbeats after which a store that came back counts as stable."""
HUNG_SECONDS: Final = 30.0
"""Seconds after which a loop without a new round counts as hung: no wait in a round is as long."""
_OPEN_SECONDS: Final = 3.0
"""Seconds that connecting may take at start, when no request waits."""
_MAX_TURNS: Final = 32
"""Loads that wait for an answer at the same time. The time of the others begins with their turn.
Without the bound, a page that starts a hundred loads would make each of them late."""
_PAUSE_SECONDS: Final = 0.05
"""Shortest pause in seconds between two heartbeats, however many callers cause them."""
_LATE_HEARTBEATS: Final = 2
"""Late heartbeats in a row after which the store is down: one may be a pause of the store."""
_NO_ANNOUNCEMENTS: Final = "no_announcements"
"""The reason why the store is down if it answers, and yet announcements cannot be read."""

Joint = TypeVar("Joint", bound=JointCommand)
PERMITTED: Final[Command] = ("EVAL", scripts.PERMITTED, 1, keys.stream("permitted"))
"""Fails if the store does not permit a command that the gateway uses."""


class Connection:
    """One replica's connections to the store.

    Args:
        clients: makes its client.
        background: runs its two loops.
        timeout: seconds that a request may wait for the store.
        name: the name of this replica, unlike any other's; empty if no replica is to count it.
        count: counts commands by outcome: ok, late, error, foreign.
        changed: called when the store goes down (with a reason) or comes up (with None).
        watch: lists commands that each heartbeat sends as well.
        on_watched: called with their answers.
        listener_fails: whether this replica cannot read announcements, although the store answers.

    Attributes:
        up: whether the store is up.
        outages: how often the store went down.
        replicas: how many replicas ran when the store was last up.
        reason: why the store is down.
        turns: the loads that may wait for an answer now.
    """

    def __init__(
        self,
        clients: ClientFactory,
        *,
        background: Background,
        timeout: float,
        name: str,
        count: Callable[[str, int], None],
        changed: Callable[[str | None], None],
        watch: Callable[[], list[Command]],
        on_watched: Callable[[list[Any]], None],
        listener_fails: Callable[[], bool],
    ) -> None:
        self.up = False
        self.outages = 0
        self.replicas = UNKNOWN_REPLICAS
        self.reason: str | None = "not connected yet"
        self.timeout = timeout
        self._clients, self._background = clients, background
        self._requests = ClientLink(clients) if clients.cluster else DirectLink(clients)
        self._heart = HeartbeatLink(clients)
        self._name = name
        self._count = count
        self._changed = changed
        self._watch = watch
        self._on_watched = on_watched
        self._listener_fails = listener_fails
        self.turns = asyncio.Semaphore(_MAX_TURNS)
        self._heartbeat_due = asyncio.Event()
        self._outbox = Outbox(self._requests)
        self._deadlines = Deadlines(self._end_late)
        self._heartbeats = 0
        self._retry_seconds = RETRY_SECONDS
        self._error: Exception | None = None

    async def open(self) -> None:
        """Connect, and keep trying until `close`.

        Raises:
            StoreError: the store cannot be used now.
        """
        self._background.start("store_heartbeats", self._send_heartbeats, deadline=HUNG_SECONDS)
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._heart.client.ping()
                await self.heartbeat(_OPEN_SECONDS / _LATE_HEARTBEATS)
        except StoreUnavailable:
            if self._error is None:
                raise self._clients.error("does not answer in time") from None
            raise self._clients.explain(self._error) from None
        except self._clients.errors as exc:
            raise self._clients.explain(exc) from None

    async def close(self) -> None:
        """Send what is queued, within `timeout`, and disconnect."""
        # Answers come in order, so this one comes after those that nobody waits for.
        await if_available(self.execute(("GET", keys.MARKER), timeout=self.timeout))
        await self._background.stop("store_heartbeats")
        self._outbox.take()  # the store is down, so nobody reads the rest
        for link in (self._requests, self._heart):
            await link.close()

    # -- commands

    async def execute(self, *commands: Command, timeout: float) -> list[Any]:
        """Send commands and wait at most *timeout* seconds for their answers.

        Raises:
            StoreUnavailable: the store is down, or the answers are late or errors.
        """
        if not self.up:
            raise StoreUnavailable
        future: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()

        def end(results: list[Any] | None) -> None:
            if not future.done():  # the caller may have left
                future.set_result(results)

        self._enqueue(commands, timeout, end, now=True)
        results = await future
        if results is None:
            raise StoreUnavailable
        return results

    def execute_nowait(self, *commands: Command, ended: Ended = lambda _: None) -> None:
        """Send commands without waiting; drop them when the store is down.

        *ended* gets the answers; None if they are late or errors.
        """
        if self.up:
            self._enqueue(commands, self.timeout, ended, now=False)

    def join(
        self, kind: Callable[..., Joint], *arguments: Hashable, timeout: float, wait: bool
    ) -> Joint | None:
        """Return the command that all callers with these arguments share; None while down.

        Args:
            kind: makes the command.
            *arguments: what it is made with.
            timeout: seconds after which the answer is late.
            wait: whether the callers wait for the answer.
        """
        if not self.up:
            return None
        key = kind, arguments, timeout
        joint = cast("Joint | None", self._outbox.joint.get(key))
        if joint is None or joint.full:
            joint = self._outbox.joint[key] = kind(*arguments)
            self._enqueue(joint, timeout, joint.end, now=wait)
        return joint

    def _enqueue(self, commands: Commands, timeout: float, ended: Ended, *, now: bool) -> None:
        exchange = Exchange(commands, self._accept, ended)
        self._deadlines.add(exchange, timeout)
        self._outbox.add(exchange, now=now)

    def _end_late(self, exchange: Exchange) -> None:
        exchange.late = True
        exchange.ended(None)
        self._count("late", len(exchange.commands))
        self.check()

    def _accept(self, exchange: Exchange) -> list[Any] | None:
        """Return the answers; None if one of them is an error."""
        self._deadlines.remove(exchange)
        commands, results = exchange.commands, exchange.results
        if not any(map(_is_error, results)):
            self._count("ok", len(commands))
            return results
        failed = _failed(commands, results)
        self._count("error", len(commands))
        if all(self._clients.is_foreign(error) for _, error in failed):
            self._delete_foreign([command for command, _ in failed])
        else:
            self._requests.must_reconnect = True
            self.check()
        return None

    def _delete_foreign(self, commands: Sequence[Command]) -> None:
        """Delete the keys of *commands*: no gateway wrote what one of them holds."""
        self._count("foreign", 1)
        for command in commands:
            for name in _keys_of(command):
                self.execute_nowait(("UNLINK", name))

    # -- down and up

    def check(self) -> None:
        """Send a heartbeat now: a caller waited too long for the store, or got an error."""
        self._heartbeat_due.set()

    def mark_down(self, reason: str) -> None:
        """Count the store as down, until a heartbeat succeeds."""
        self.reason = reason
        if self.up:
            self.up = False
            self.outages += 1
            stable = self._heartbeats >= STABLE_HEARTBEATS
            self._retry_seconds = (
                RETRY_SECONDS if stable else min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
            )
            self._heartbeats = 0
            self._changed(reason)

    def _fail(self, error: Exception) -> None:
        self._requests.must_reconnect = self._heart.must_reconnect = True
        self._error = error
        self.mark_down(type(error).__name__)  # not its text, which the server chooses

    async def heartbeat(self, timeout: float) -> None:
        """Register this replica and count the others. It writes, so a full store counts as down.

        Raises:
            StoreUnavailable: the store is down.
        """
        milliseconds = round(REPLICA_SECONDS * 1000)
        commands: list[Command] = [
            ("EVAL", scripts.HEARTBEAT, 1, keys.REPLICAS, self._name, milliseconds),
            *self._watch(),
        ]
        for _ in range(_LATE_HEARTBEATS):
            results = await self._heart.beat(commands, timeout)
            if results is not None:
                break
            self._count("late", len(commands))
        else:
            self.mark_down("slow")
            raise StoreUnavailable
        if failed := _failed(commands, results):
            self._count("error", len(commands))
            if not all(self._clients.is_foreign(error) for _, error in failed):
                self._fail(next(error for _, error in failed))
            else:
                self._count("foreign", 1)
                names = [name for command, _ in failed for name in _keys_of(command)]
                await self._heart.beat([("UNLINK", name) for name in names], timeout)
            raise StoreUnavailable
        replicas, *watched = results
        if not isinstance(replicas, int):  # a server that is not Valkey
            self._fail(self._clients.not_valkey())
            raise StoreUnavailable
        self._count("ok", len(commands))
        # After another outage the listener has a second to read again.
        if (self.up or self.reason == _NO_ANNOUNCEMENTS) and self._listener_fails():
            self.mark_down(_NO_ANNOUNCEMENTS)
            raise StoreUnavailable
        self.replicas = max(1, replicas)
        self.reason = None
        self._heartbeats += 1
        if not self.up:
            self.up = True
            self._changed(None)
        self._on_watched(watched)

    async def _send_heartbeats(self, beat: Beat) -> None:
        while True:
            beat()
            await asyncio.sleep(_PAUSE_SECONDS)
            pause = (HEARTBEAT_SECONDS if self.up else self._retry_seconds) - _PAUSE_SECONDS
            with contextlib.suppress(TimeoutError):
                # While the store is down, no caller waits for it and none causes a heartbeat.
                await asyncio.wait_for(self._heartbeat_due.wait(), pause)
            self._heartbeat_due.clear()
            # A store stays up only if it answers as quickly as a request needs. A store that is
            # down comes up only if it answers twice as quickly.
            await if_available(self.heartbeat(self.timeout / 2 if self.up else self.timeout / 4))


def _is_error(result: object) -> bool:
    return isinstance(result, Exception)


def _failed(commands: Commands, results: list[Any]) -> list[tuple[Command, Exception]]:
    """Return the commands that ended in an error, and their errors."""
    return [pair for pair in zip(commands, results, strict=True) if _is_error(pair[1])]


def _keys_of(command: Command) -> Command:
    """Return the keys that *command* uses."""
    return command[3 : 3 + command[2]] if command[0] == "EVAL" else command[1:2]

"""The commands of a replica, in batches on one connection; and whether the store is up.

Commands wait in a queue, and each answer goes to the command at its position. A caller that leaves
cancels neither the batch nor its answers, so no answer can reach another caller. No caller waits
longer than its timeout: when an answer is late, an error or impossible, the store counts as down,
this replica decides every request alone, and a heartbeat notices when the store is back.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from bff.background import Background, Beat
from bff.replicas import keys, scripts
from bff.replicas.valkey import (
    SOCKET_SECONDS,
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
"""Seconds: bound of that pause, which doubles while the store flaps, so that few requests wait."""


STABLE_HEARTBEATS: Final = 5
"""Heartbeats after which a store that came back counts as stable."""


HUNG_SECONDS: Final = 30.0
"""Seconds without a round after which a loop is started again: no wait in it takes as long."""


_OPEN_SECONDS: Final = 3.0
"""Seconds that connecting may take at start, when no request waits."""


_MAX_BATCH: Final = 500
"""Commands in one batch; bounds the memory of its answers."""


_GRACE_SECONDS: Final = 0.001
"""Seconds to read answers that arrived while this process was busy; those are not late."""


Command = tuple[Any, ...]
"""A command: its name, then its arguments. An EVAL: script, number of keys, keys, arguments."""


class Connection:
    """One replica's connection to the store.

    Args:
        clients: makes its client.
        background: runs its two loops.
        timeout: seconds that a request may wait for the store.
        name: the name of this replica, unlike any other's.
        count: counts commands by outcome: ok, late, error, foreign.
        changed: called when the store goes down (with a reason) or comes up (with None).

    Attributes:
        up: whether the store is up.
        outages: how often the store went down.
        replicas: how many replicas ran when the store was last up.
        reason: why the store is down.
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
    ) -> None:
        self.up = False
        self.outages = 0
        self.replicas = UNKNOWN_REPLICAS
        self.reason: str | None = "not connected yet"
        self.timeout = timeout
        self._clients = clients
        self._background = background
        self._client = clients.connect(SOCKET_SECONDS)
        self._name = name
        self._count = count
        self._changed = changed
        self._queue: list[tuple[Command, asyncio.Future[Any]]] = []
        self._queued = asyncio.Event()
        self._unawaited: set[asyncio.Task[Any]] = set()
        self._must_reconnect = False
        self._heartbeats = 0
        self._retry_seconds = RETRY_SECONDS
        self._error: Exception | None = None

    async def open(self) -> None:
        """Connect, and keep trying until `close`.

        Raises:
            StoreError: the store cannot be used now.
        """
        self._background.start("store_batches", self._send_batches)
        self._background.start("store_heartbeats", self._send_heartbeats, deadline=HUNG_SECONDS)
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._client.ping()
                await self.heartbeat(_OPEN_SECONDS)
        except StoreUnavailable:
            if self._error is None:
                raise self._clients.error("does not answer in time") from None
            raise self._clients.explain(self._error) from None
        except self._clients.errors as exc:
            raise self._clients.explain(exc) from None

    async def close(self) -> None:
        """Send what is queued, within `timeout`, and disconnect."""
        if self._unawaited:
            await asyncio.wait(self._unawaited, timeout=self.timeout)
        await self._background.stop("store_batches", "store_heartbeats")
        await self._clients.close(self._client)

    # -- commands

    async def execute(self, *commands: Command, timeout: float) -> list[Any]:
        """Send commands and wait at most *timeout* seconds for their answers.

        Raises:
            StoreUnavailable: the store is down, or the answers are late or errors.
        """
        if not self.up:
            raise StoreUnavailable
        return await self._answers(commands, self._enqueue(commands), timeout)

    def execute_nowait(self, *commands: Command) -> None:
        """Send commands without waiting; drop them when the store is down."""
        if self.up:
            answers = self._answers(commands, self._enqueue(commands), self.timeout)
            task = asyncio.create_task(if_available(answers))
            self._unawaited.add(task)
            task.add_done_callback(self._unawaited.discard)

    def _enqueue(self, commands: Sequence[Command]) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        self._queue.extend(zip(commands, answers, strict=True))
        self._queued.set()
        return answers

    async def _answers(
        self, commands: Sequence[Command], answers: list[asyncio.Future[Any]], timeout: float
    ) -> list[Any]:
        _, late = await asyncio.wait(answers, timeout=timeout)
        if late:
            await asyncio.sleep(_GRACE_SECONDS)
            late = {answer for answer in answers if not answer.done()}
        if late:
            for answer in late:
                answer.cancel()  # a command that is still queued is never sent
            self._count("late", len(commands))
            self.mark_down("slow")
            raise StoreUnavailable
        results = [answer.result() for answer in answers]
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            self._count("error", len(commands))
            if all(map(self._clients.is_foreign, errors)):
                self._delete_foreign(commands)
            else:
                self._fail(errors[0])
            raise StoreUnavailable
        self._count("ok", len(commands))
        return results

    def _delete_foreign(self, commands: Sequence[Command]) -> None:
        """Delete the keys of *commands*: no gateway wrote what one of them holds."""
        self._count("foreign", 1)
        for command in commands:
            names = command[3 : 3 + command[2]] if command[0] == "EVAL" else command[1:2]
            for name in names:
                self.execute_nowait(("UNLINK", name))

    async def _send_batches(self, _: Beat) -> None:
        """Send what is queued, batch after batch, in a task that no caller can cancel."""
        while True:
            await self._queued.wait()
            batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
            if not self._queue:
                self._queued.clear()
            batch = [(command, answer) for command, answer in batch if not answer.done()]
            if batch:
                await self._send(batch)

    async def _send(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        results: list[Any]
        try:
            if self._must_reconnect:
                self._must_reconnect = False
                self._client = await self._clients.reconnect(self._client, SOCKET_SECONDS)
            pipeline = self._client.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            results = await pipeline.execute(raise_on_error=False)
        except Exception as exc:  # noqa: BLE001  each caller of the batch gets the error
            results = [exc] * len(batch)
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():
                answer.set_result(result)

    # -- down and up

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
        self._must_reconnect, self._error = True, error
        self.mark_down(type(error).__name__)  # not its text, which the server chooses

    async def heartbeat(self, timeout: float) -> None:
        """Register this replica and count the others. It writes, so a full store counts as down.

        Raises:
            StoreUnavailable: the store is still down, or down from now on.
        """
        milliseconds = round(REPLICA_SECONDS * 1000)
        command = ("EVAL", scripts.HEARTBEAT, 1, keys.REPLICAS, self._name, milliseconds)
        (replicas,) = await self._answers([command], self._enqueue([command]), timeout)
        if not isinstance(replicas, int):  # a server that is not Valkey
            self._fail(self._clients.not_valkey())
            raise StoreUnavailable
        self.replicas = max(1, replicas)
        self.reason = None
        self._heartbeats += 1
        if not self.up:
            self.up = True
            self._changed(None)

    async def _send_heartbeats(self, beat: Beat) -> None:
        while True:
            beat()
            await asyncio.sleep(HEARTBEAT_SECONDS if self.up else self._retry_seconds)
            # A store comes up only if it answers as quickly as a request needs it.
            await if_available(self.heartbeat(self.timeout if self.up else self.timeout / 4))

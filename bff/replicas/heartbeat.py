"""The connection of heartbeats: tells a store that is late from a process that is busy.

A process that is busy reads an answer late, although the store sent it in time. So the time of a
heartbeat counts only while the event loop wakes up in time.
"""

import asyncio
from typing import Any, Final

from bff.replicas.link import ClientLink, Command
from bff.replicas.valkey import ClientFactory, cancel

GRACE_SECONDS: Final = 0.001
"""Seconds to read answers that arrived while this process was busy; those are not late."""
_BUSY_SECONDS: Final = 0.005
"""Seconds; the event loop is busy if it takes this long to wake up from `GRACE_SECONDS`."""
_IDLE_WAKE_UPS: Final = 3
"""Wake-ups in time, in a row, after which an unanswered heartbeat is late. Before that the process
may be busy, and the answer unread."""
_MAX_BUSY_SECONDS: Final = 1.0
"""Longest time in seconds that a heartbeat waits for those wake-ups. After it the heartbeat is late
even in a busy process: until then, each request waits for a store that may be frozen."""


class HeartbeatLink(ClientLink):
    """A link with one heartbeat at a time, which no command of a request delays."""

    def __init__(self, clients: ClientFactory) -> None:
        super().__init__(clients)
        self._beating: asyncio.Task[None] | None = None

    async def beat(self, commands: list[Command], timeout: float) -> list[Any] | None:
        """Send a heartbeat; None if the store does not answer in time."""
        if self._beating is not None:  # the former heartbeat still waits: the store is silent
            await asyncio.wait([self._beating], timeout=timeout)
            if not self._beating.done():
                return None
        results: list[Any] = []
        self._beating = beating = asyncio.create_task(
            self.send([(command, results.append) for command in commands])
        )
        await asyncio.wait([beating], timeout=timeout)
        loop, idle = asyncio.get_running_loop(), 0
        ends = loop.time() + _MAX_BUSY_SECONDS
        while not beating.done() and idle < _IDLE_WAKE_UPS and (began := loop.time()) < ends:
            await asyncio.sleep(GRACE_SECONDS)
            idle = idle + 1 if loop.time() - began < _BUSY_SECONDS else 0
        return results if beating.done() else None

    async def close(self) -> None:
        """Disconnect; a heartbeat that waits is cancelled."""
        await cancel([self._beating] if self._beating else [])
        await super().close()

"""Accepts connections, evenly among workers, and survives a shortage of descriptors.

asyncio's own server accepts every connection that waits, so the first worker to wake takes them
all. If descriptors run out, it closes what it accepts.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final

from bff.server.supervisor import UNAVAILABLE, Worker

_BATCH: Final = 32
"""At each wake-up at most this many connections are accepted; as many descriptors are kept free."""
_YIELD_SECONDS: Final = 0.003
"""A worker with more connections than another waits this long, so that the other may accept."""
_SHORT_SECONDS: Final = 0.1
"""Seconds between two attempts without descriptors or memory; connections wait meanwhile."""
_SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Accepts the connections of one listening socket.

    Args:
        sock: listens.
        make: makes the protocol of a connection.
        worker: shares the socket with others; None if no other process accepts.
        count: returns the number of open connections.
        on_short: called when the system has no descriptor for a connection.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        *,
        worker: Worker | None,
        count: Callable[[], int],
        on_short: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._make = make
        self._worker = worker
        self._count = count
        self._on_short = on_short
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)  # noqa: FBT003  the way it is called
        self._listen()

    def close(self) -> None:
        """Accept what already waits, because the system would reset it; then stop."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._sock)
        while self._accept():
            pass
        self._sock.close()
        if self._worker is not None:
            self._worker.show_connections(UNAVAILABLE)
            self._worker = None

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        if self._worker is None:
            for _ in range(_BATCH):
                if not self._accept():
                    return
        elif self._worker.has_most(self._count() + len(self._opening)):
            self._wait(_YIELD_SECONDS)
        else:
            self._accept()

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._accept()  # even if another worker has fewer connections: it may hang
        self._listen()

    def _accept(self) -> bool:
        """Accept one connection, if one waits."""
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as exc:
            if exc.errno not in _SHORT:
                raise
            self._on_short()
            if self._pause is None:
                self._wait(_SHORT_SECONDS)
            return False
        connection.setblocking(False)  # noqa: FBT003  as above
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening = self._loop.connect_accepted_socket(self._make, connection)
        task = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opened)
        return True

    def _opened(self, task: "asyncio.Task[Any]") -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.exception()  # a browser that left at once
        if self._worker is not None:
            self._worker.show_connections(self._count() + len(self._opening))

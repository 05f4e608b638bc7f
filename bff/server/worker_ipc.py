"""Calls between the workers of one gateway, over sockets that no other process can reach.

The supervisor makes one pair of sockets for each worker before it forks; a worker that replaces
another has the same pair. A call sends the called worker one end of a new pair of sockets. The
request goes in at the other end, and the answer comes out there. No port, file or key is involved.
"""

import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

CALL_SECONDS: Final = 1.0
"""Seconds. A worker that has not answered a call by then hangs or is being replaced."""
_MAX_NEWS: Final = 10_000
"""News that wait while a worker is slow to answer."""
_BYTE: Final = b"?"
"""Sent along with a socket: a message needs at least one byte."""
Handler = Callable[..., Awaitable[Any]]
"""Answers a call. Takes the words of the request; the answer must be JSON."""


class WorkerSockets:
    """The pairs of *count* workers."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        for sock in (sock for pair in pairs for sock in pair):
            sock.setblocking(False)  # noqa: FBT003  the way it is called
        self.senders = [sender for sender, _ in pairs]
        self.receivers = [receiver for _, receiver in pairs]


class WorkerPeers:
    """The other workers, as seen by worker *number*."""

    def __init__(self, sockets: WorkerSockets, number: int) -> None:
        self.number = number
        self._receiver = sockets.receivers[number]
        self._senders = {n: sender for n, sender in enumerate(sockets.senders) if n != number}
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, handler: Handler) -> None:
        """Answer calls from now on, also those made before this worker started."""
        asyncio.get_running_loop().add_reader(self._receiver, self._receive, handler)

    def _receive(self, handler: Handler) -> None:
        try:
            _, fds, _, _ = socket.recv_fds(self._receiver, 1, 1)
        except BlockingIOError:
            return
        for fd in fds:
            task = asyncio.create_task(_answer(socket.socket(fileno=fd), handler))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def call(self, *request: Any, timeout: float = CALL_SECONDS) -> Mapping[int, Any]:
        """Call all other workers; return their answers by number, None after the timeout."""
        answers = await asyncio.gather(
            *(_call(sender, request, timeout) for sender in self._senders.values())
        )
        return dict(zip(self._senders, answers, strict=True))


class WorkerNews:
    """Announces news to the other workers, in one call at a time, and drops the oldest of many.

    Args:
        peers: the other workers.
        spawn: runs a coroutine to its end in a task of its own.
    """

    def __init__(
        self, peers: WorkerPeers, spawn: Callable[[Coroutine[Any, Any, None]], Any]
    ) -> None:
        self._peers = peers
        self._spawn = spawn
        self._waiting: deque[tuple[Any, ...]] = deque(maxlen=_MAX_NEWS)
        self._sending = False

    def announce(self, *news: Any) -> None:
        """Announce values that JSON can hold; nobody waits for it."""
        self._waiting.append(news)
        if not self._sending:
            self._sending = True
            self._spawn(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch = [*self._waiting]
                self._waiting.clear()
                await self._peers.call("news", *batch)
        finally:
            self._sending = False


async def _call(sender: socket.socket, request: tuple[Any, ...], timeout: float) -> Any:
    try:
        near, far = socket.socketpair()
    except OSError:  # no descriptor is left
        return None
    with far:
        try:
            socket.send_fds(sender, [_BYTE], [far.fileno()])
        except OSError:  # its queue is full: the worker does not read it
            near.close()
            return None
    reader, writer = await asyncio.open_unix_connection(sock=near)
    try:
        async with asyncio.timeout(timeout):
            writer.write(json.dumps(request).encode())
            writer.write_eof()
            return json.loads(await reader.read())
    except (TimeoutError, OSError, ValueError):
        return None
    finally:
        writer.close()


async def _answer(sock: socket.socket, handler: Handler) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    try:
        with contextlib.suppress(OSError, ValueError):  # the caller left meanwhile
            request = json.loads(await reader.read())
            writer.write(json.dumps(await handler(*request)).encode())
            await writer.drain()
    finally:
        writer.close()

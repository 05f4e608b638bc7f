"""The other workers of one gateway: asked and told over sockets that nobody else can reach.

The supervisor makes a mailbox for each worker before it forks, and whoever takes a dead worker's
place takes its mailbox too. A letter is one end of a new pair of sockets: the question goes in at
the other end, and the answer comes out of it. There is no port, no file and no key to it.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

PATIENCE_SECONDS: Final = 1.0
"""Whoever has not answered by then is dead and being replaced, or hangs."""
_LETTER: Final = b"?"
"""A letter has to have a byte."""
Answer = Callable[..., Awaitable[Any]]
"""Answers a question, which comes as its words; what is asked and answered is JSON."""


class Mailboxes:
    """One for each of *number* workers; made by their supervisor."""

    def __init__(self, number: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(number)]
        for sock in (sock for pair in pairs for sock in pair):
            sock.setblocking(False)  # noqa: FBT003  the way it is called
        self.outs = [out for out, _ in pairs]
        self.ins = [into for _, into in pairs]


class WorkerPeers:
    """The others, for worker *number*."""

    def __init__(self, boxes: Mailboxes, number: int) -> None:
        self.number = number
        self._in = boxes.ins[number]
        self._others = {n: out for n, out in enumerate(boxes.outs) if n != number}
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, answer: Answer) -> None:
        """Answer the others from now on, and what they asked while nobody was here."""
        asyncio.get_running_loop().add_reader(self._in, self._collect, answer)

    def _collect(self, answer: Answer) -> None:
        try:
            _, fds, _, _ = socket.recv_fds(self._in, 1, 1)
        except BlockingIOError:
            return
        for fd in fds:
            task = asyncio.create_task(_reply(socket.socket(fileno=fd), answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def ask(self, *question: str, patience: float = PATIENCE_SECONDS) -> Mapping[int, Any]:
        """Ask all the others at once; None is the answer of those that gave none in time."""
        answers = await asyncio.gather(
            *(_ask(out, question, patience) for out in self._others.values())
        )
        return dict(zip(self._others, answers, strict=True))


async def _ask(out: socket.socket, question: tuple[str, ...], patience: float) -> Any:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            socket.send_fds(out, [_LETTER], [theirs.fileno()])
        except OSError:  # its mailbox is full: nobody reads it
            ours.close()
            return None
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        async with asyncio.timeout(patience):
            writer.write(json.dumps(question).encode())
            writer.write_eof()
            return json.loads(await reader.read())
    except (TimeoutError, OSError, ValueError):
        return None
    finally:
        writer.close()


async def _reply(sock: socket.socket, answer: Answer) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    try:
        with contextlib.suppress(OSError, ValueError):  # who asked has left meanwhile
            question = json.loads(await reader.read())
            writer.write(json.dumps(await answer(*question)).encode())
            await writer.drain()
    finally:
        writer.close()

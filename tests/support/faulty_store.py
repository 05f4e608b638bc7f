"""A relay to a store that reads each command, and answers some of them itself, late, or never."""

import asyncio
import contextlib
from collections import Counter
from typing import Final

from bff.replicas import scripts

SCRIPTS: Final = {
    text.encode(): name
    for name, text in vars(scripts).items()
    if name.isupper() and isinstance(text, str)
}
"""The names of the scripts, by their text."""
REFUSALS: Final = {
    "full": "OOM command not allowed when used memory > 'maxmemory'.",
    "read-only": "READONLY You can't write against a read only replica.",
    "forbidden": "NOPERM User gateway has no permissions to run the command",
    "loading": "LOADING Valkey is loading the dataset in memory",
    "busy": "BUSY Valkey is busy running a script. You can only call SCRIPT KILL",
    "unsaved": "MISCONF Valkey is configured to save RDB snapshots",
}
"""The texts with which a store refuses commands."""


class FaultyStore:
    """Relays commands one by one.

    Attributes:
        refuse: by command, the error that is its answer. A script's command is its name.
        late: by command, the seconds by which its answer is late.
        silent: commands that get no answer, and all that follow them on their connection.
        cut_before: the connection ends when this command arrives, and the store does not get it.
        cut_after: the connection ends when the store has answered this command.
        seen: how many commands arrived, by name.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.refuse: dict[str, str] = {}
        self.late: dict[str, float] = {}
        self.silent: set[str] = set()
        self.cut_before: set[str] = set()
        self.cut_after: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.opened = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "FaultyStore":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"valkey://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __len__(self) -> int:
        """Return how many connections are open."""
        return len(self._tasks)

    def heal(self) -> None:
        """Relay everything from now on."""
        for faults in (self.refuse, self.late, self.silent, self.cut_before, self.cut_after):
            faults.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.opened += 1
        store: asyncio.StreamWriter | None = None
        try:
            answers, store = await asyncio.open_connection("127.0.0.1", self._target)
            while True:
                data, name = await _command(reader)
                self.seen[name] += 1
                if name in self.cut_before:
                    break
                if name in self.refuse:
                    answer = b"-" + self.refuse[name].encode() + b"\r\n"
                else:
                    store.write(data)
                    answer = await _answer(answers)
                if name in self.cut_after:
                    break
                if name in self.silent:
                    await asyncio.Event().wait()
                if name in self.late:
                    await asyncio.sleep(self.late[name])
                writer.write(answer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            for one in filter(None, (writer, store)):
                with contextlib.suppress(RuntimeError):
                    one.transport.abort()


async def _command(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """Read a command; return its bytes and its name."""
    data = await _line(reader)
    parts = []
    for _ in range(int(data[1:])):
        head = await _line(reader)
        text = await reader.readexactly(int(head[1:]) + 2)
        parts.append(text[:-2])
        data += head + text
    name = parts[0].decode().upper()
    return data, SCRIPTS[parts[1]] if name == "EVAL" else name


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """Read an answer."""
    data = await _line(reader)
    if data[:1] == b"$" and int(data[1:]) >= 0:
        data += await reader.readexactly(int(data[1:]) + 2)
    if data[:1] == b"*":
        for _ in range(max(0, int(data[1:]))):
            data += await _answer(reader)
    return data


async def _line(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n")

"""Writes log lines in a thread of its own, so that no request waits for their reader.

A reader may be slow, stopped or gone, and a disk may be full. The lines then wait in a bounded
queue; those that do not fit, or cannot be written, are dropped and counted.
"""

import atexit
import os
import select
import threading
from collections import deque
from typing import Final

MAX_BYTES: Final = 1024 * 1024
"""Bytes of lines that wait. A burst of some thousand lines fits; a stopped reader costs no more."""
FLUSH_SECONDS: Final = 1.0
"""Seconds that the end of the process may wait for the last lines."""
_POLL_MILLISECONDS: Final = 1000
"""Milliseconds between two attempts at a descriptor that another process made non-blocking."""


class LogWriter:
    """Writes lines to a descriptor; `write` and `flush` never block and never raise.

    The thread starts with the first line, and again after a fork: threads do not survive one.

    Args:
        descriptor: where the lines go.
        max_bytes: bytes of lines that may wait.

    Attributes:
        lost: dropped lines by reason: ``full`` (they did not fit into the queue) or ``failed`` (the
            system refused them).
    """

    def __init__(self, descriptor: int, *, max_bytes: int = MAX_BYTES) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self.lost = {"full": 0, "failed": 0}
        self._reset()
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.close)

    def _reset(self) -> None:
        """Begin with an empty queue: what the parent of a fork has queued, the parent writes."""
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._torn = False
        """Whether a line was written in part: the next line must not continue it."""
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Queue a line, or drop it if the queue is full."""
        line = text.encode(errors="replace")
        with self._changed:
            if self._bytes + len(line) > self._max_bytes:
                self.lost["full"] += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._start()

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Wait until the queue is written, at most *timeout* seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, timeout)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads; the next line tries again
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            written = False
            try:
                written = self._write(line)
            finally:
                with self._changed:
                    self._bytes -= len(line)  # only now, so that `close` waits for it
                    self.lost["failed"] += not written
                    self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        """Write *line*, in one call unless the system takes only a part of it."""
        left = memoryview(b"\n" + line if self._torn else line)
        self._torn = False
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
                self._torn = bool(left)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_POLL_MILLISECONDS)
            except OSError:  # no space, no reader, closed
                return False
        return True


def standard_output() -> int:
    """Return a descriptor for log lines, and leave no standard descriptor closed.

    The system gives the lowest free number to the next file or socket. If 0, 1 or 2 were closed,
    lines could go into a browser's connection. Where output was closed, writes fail from now on.
    """
    for standard in range(3):
        try:
            os.fstat(standard)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY)  # a write to it fails
            if opened != standard:
                os.dup2(opened, standard)
                os.close(opened)
    return 1

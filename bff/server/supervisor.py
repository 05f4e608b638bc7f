"""Runs several workers on one address, and replaces a worker that dies or hangs.

The workers inherit the listening sockets, so a worker that dies takes no waiting connection with
it. They are forked before there is an event loop. The only thread is the one that writes log lines;
`LogWriter` starts another one in each worker.

The event loop of each worker changes a byte of shared memory once a second. The supervisor kills a
worker whose byte stays the same for too long.
"""

import asyncio
import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

HUNG_SECONDS: Final = 30.0
"""A worker whose event loop has not run for this long is killed. No work of the gateway holds the
loop for more than a fraction of a second (`bff_loop_lag_seconds`), so 30 s spare a worker under any
load and on a slow disk. The browsers that a hung worker had accepted wait no longer than this."""
STOP_SECONDS: Final = 14.0
"""A worker that has not ended this long after the signal to stop is killed. Requests have ten
seconds; systemd and compose give the whole gateway 15."""
_BEAT_SECONDS: Final = 1.0
"""Seconds between two heartbeats of a worker."""
_POLL_SECONDS: Final = 0.1
"""Seconds between two looks of the supervisor at its workers."""
_RESTART_SECONDS: Final = 1.0
"""Seconds. A worker that ran for less than this is replaced only after this time."""
_PR_SET_PDEATHSIG: Final = 1
_COUNT: Final = struct.Struct("I")
UNAVAILABLE: Final = 2**32 - 1
"""The number of connections of a worker that accepts none: no other worker yields to it."""
UNUSABLE: Final = 2
"""The exit status of a worker whose settings cannot be used: the supervisor ends all workers."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of several on an address; by default the only one."""

    number: int = 0
    replaces: bool = False
    """Whether this worker replaces one that ended; it has the same number."""
    heartbeats: bytearray | mmap.mmap = field(default_factory=lambda: bytearray(1))
    """One byte for each worker."""
    connections: memoryview = field(default_factory=lambda: memoryview(bytearray(4)).cast("I"))
    """The number of open connections of each worker."""

    def has_most(self, connections: int) -> bool:
        """Show this worker's connections; tell whether another worker has fewer."""
        self.show_connections(connections)
        return connections > min(self.connections)

    def show_connections(self, connections: int) -> None:
        """Show this worker's connections to the others."""
        self.connections[self.number] = connections

    def start_heartbeat(self) -> None:
        """Show the supervisor from now on that the event loop of this process runs."""
        self._beat(asyncio.get_running_loop())

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self.heartbeats[self.number] = self.heartbeats[self.number] % 255 + 1
        loop.call_later(_BEAT_SECONDS, self._beat, loop)


def supervise(count: int, log: Any, *, hung_seconds: float = HUNG_SECONDS) -> Worker:
    """Fork *count* workers; return in each of them.

    The supervisor never returns: it passes signals on, and exits when all workers have ended.
    """
    return _Supervisor(count, log, hung_seconds).run(count)


@dataclass(slots=True)
class _Child:
    number: int
    started: float
    heartbeat: int = 0
    """The last that the supervisor saw; 0 before the first."""
    silent_polls: int = 0
    """Polls since the heartbeat changed."""


class _Supervisor:
    def __init__(self, count: int, log: Any, hung_seconds: float) -> None:
        self._log = log
        self._hung_polls = hung_seconds / _POLL_SECONDS
        self._heartbeats = mmap.mmap(-1, count)
        self._connections = memoryview(mmap.mmap(-1, count * _COUNT.size)).cast("I")
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}
        self._stopping = False
        self._stop_polls = 0
        """Polls since the signal to stop."""
        self._status = 0
        self._missing: dict[int, float] = {}
        """When each worker that ended may be replaced, by its number."""
        self._handlers = {
            signum: signal.signal(signum, self._pass_on)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }

    def run(self, count: int) -> Worker:
        """Start the workers, and replace those that end; return in the workers only."""
        # A parent may have had it ignored; children would then end without a status.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in range(count):
            if worker := self._fork(number, replaces=False):
                return worker
        while self._children or (self._missing and not self._stopping):
            if not self._stopping and (worker := self._replace_missing()):
                return worker
            pid, wait_status = self._reap()
            if pid in self._children:  # else: of another program, or an orphan that PID 1 adopted
                self._note_end(self._children.pop(pid), os.waitstatus_to_exitcode(wait_status))
            elif not pid:
                self._kill_hung()
                time.sleep(_POLL_SECONDS)
        # A reload that comes now would end the process by a signal: Python removes the handler.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.exit(self._status)

    def _note_end(self, child: _Child, code: int) -> None:
        """Remember to replace a worker that ended."""
        self._connections[child.number] = UNAVAILABLE
        if code == UNUSABLE and not self._stopping:
            self._status = UNUSABLE
            self._pass_on(signal.SIGTERM, None)
        if not self._stopping:
            self._log.error("worker_died", worker=child.number, status=code)
            due = max(time.perf_counter(), child.started + _RESTART_SECONDS)
            self._missing[child.number] = due

    def _replace_missing(self) -> Worker | None:
        """Start the workers that are due; return in each of them."""
        now = time.perf_counter()
        for number in [number for number, due in self._missing.items() if due <= now]:
            try:
                if worker := self._fork(number, replaces=True):
                    return worker
                del self._missing[number]
            except OSError as exc:  # too many processes, or no memory: the others serve
                self._log.error("worker_not_started", worker=number, reason=exc.strerror)
                self._missing[number] = now + _RESTART_SECONDS
        return None

    def _reap(self) -> tuple[int, int]:
        """Return a child that ended, and its status; 0 without one."""
        try:
            return os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # all workers ended, and none could be started yet
            return 0, 0

    def _kill_hung(self) -> None:
        """Kill each worker whose heartbeat stopped, or which does not end.

        A worker without a first heartbeat may wait for usable settings, so it is left alone. Time
        is counted in polls: a suspended or overloaded machine delays the supervisor too.
        """
        self._stop_polls += self._stopping
        late = self._stop_polls * _POLL_SECONDS >= STOP_SECONDS
        for pid, child in self._children.items():
            heartbeat = self._heartbeats[child.number]
            if not late and (heartbeat != child.heartbeat or not heartbeat):
                child.heartbeat, child.silent_polls = heartbeat, 0
                continue
            child.silent_polls += 1
            if late or child.silent_polls >= self._hung_polls:
                self._log.error("worker_hung", worker=child.number)
                child.silent_polls = 0
                os.kill(pid, signal.SIGKILL)

    def _pass_on(self, signum: int, _: object) -> None:
        self._stopping = self._stopping or signum != signal.SIGHUP
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _fork(self, number: int, *, replaces: bool) -> Worker | None:
        """Start a worker; return it in the new process only."""
        self._heartbeats[number] = 0
        self._connections[number] = UNAVAILABLE
        # A signal between the fork and the entry of the child would not reach the worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        try:
            if pid := os.fork():
                self._children[pid] = _Child(number, time.perf_counter())
                return None
            for signum, handler in self._handlers.items():
                signal.signal(signum, handler)
            # Ctrl-C goes to the whole group and the supervisor passes it on: a worker would get it
            # twice, and the second one ends it at once.
            os.setpgid(0, 0)
            with contextlib.suppress(AttributeError, OSError):  # only Linux has prctl
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)
        if os.getppid() != self._pid:  # the supervisor ended before prctl
            sys.exit(1)
        return Worker(number, replaces, self._heartbeats, self._connections)

"""Runs several workers on one address, and replaces a worker that dies or hangs.

The workers inherit the listening sockets, so a worker that dies takes no waiting connection with
it. They are forked before there is an event loop or a thread.

The event loop of each worker changes a byte of shared memory once a second. The supervisor kills a
worker whose byte stays the same for too long.
"""

import asyncio
import contextlib
import ctypes
import mmap
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

HUNG_SECONDS: Final = 30.0
"""A worker whose event loop has not run for this long is killed. No work of the gateway holds the
loop for more than a fraction of a second (`bff_loop_lag_seconds`), so 30 s spare a worker under any
load and on a slow disk. The browsers that a hung worker had accepted wait no longer than this."""
_BEAT_SECONDS: Final = 1.0
"""Between two heartbeats of a worker."""
_POLL_SECONDS: Final = 0.1
"""Between two looks of the supervisor at its workers."""
_RESTART_SECONDS: Final = 1.0
"""A worker that ran for less than this is replaced only after this time."""
_PR_SET_PDEATHSIG: Final = 1
UNUSABLE: Final = 2
"""The exit status of a worker whose settings cannot be used: the supervisor ends all workers."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of several on an address; by default the only one."""

    number: int = 0
    replaces: bool = False
    """Another worker had this number, and ended."""
    heartbeats: bytearray | mmap.mmap = field(default_factory=lambda: bytearray(1))
    """One byte for each worker."""

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
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}
        self._stopping = False
        self._handlers = {
            signum: signal.signal(signum, self._pass_on)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }

    def run(self, count: int) -> Worker:
        """Start the workers, and replace those that end; return in the workers only."""
        for number in range(count):
            if self._is_worker(number):
                return Worker(number, replaces=False, heartbeats=self._heartbeats)
        status = 0
        while self._children:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                self._kill_hung()
                time.sleep(_POLL_SECONDS)
                continue
            child = self._children.pop(pid, None)
            if child is None:  # another program of this process started it, or PID 1 adopted it
                continue
            code = os.waitstatus_to_exitcode(wait_status)
            if code == UNUSABLE and not self._stopping:
                status = UNUSABLE
                self._pass_on(signal.SIGTERM, None)
            if self._stopping:
                continue
            self._log.error("worker_died", worker=child.number, status=code)
            if time.perf_counter() - child.started < _RESTART_SECONDS:
                time.sleep(_RESTART_SECONDS)
            if not self._stopping and self._is_worker(child.number):
                return Worker(child.number, replaces=True, heartbeats=self._heartbeats)
        sys.exit(status)

    def _kill_hung(self) -> None:
        """Kill each worker whose heartbeat stopped.

        A worker without a first heartbeat may wait for usable settings, so it is left alone. Time
        is counted in polls: a suspended or overloaded machine delays the supervisor too.
        """
        for pid, child in self._children.items():
            heartbeat = self._heartbeats[child.number]
            if heartbeat != child.heartbeat or not heartbeat:
                child.heartbeat, child.silent_polls = heartbeat, 0
                continue
            child.silent_polls += 1
            if child.silent_polls >= self._hung_polls:
                self._log.error("worker_hung", worker=child.number)
                child.silent_polls = 0
                os.kill(pid, signal.SIGKILL)

    def _pass_on(self, signum: int, _: object) -> None:
        self._stopping = self._stopping or signum != signal.SIGHUP
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _is_worker(self, number: int) -> bool:
        """Fork; tell whether this is the new process."""
        self._heartbeats[number] = 0
        # A signal between the fork and the entry of the child would not reach the worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        pid = os.fork()
        if pid:
            self._children[pid] = _Child(number, time.perf_counter())
        else:
            for signum, handler in self._handlers.items():
                signal.signal(signum, handler)
            # Ctrl-C goes to the whole group and the supervisor passes it on: a worker would get it
            # twice, and the second one ends it at once.
            os.setpgid(0, 0)
            with contextlib.suppress(AttributeError, OSError):  # only Linux has prctl
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)
        if not pid and os.getppid() != self._pid:  # the supervisor ended before prctl
            sys.exit(1)
        return not pid

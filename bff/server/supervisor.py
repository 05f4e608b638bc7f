"""Several processes on one address: a supervisor that starts them, and starts again who dies.

The listening socket is opened once and inherited, so a worker that dies takes no waiting connection
with it. Workers are forked before there is a loop or a thread.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import Any

_RESTART_SECONDS = 1.0
"""A worker that lived less is started again only after so long."""
_PR_SET_PDEATHSIG = 1
UNUSABLE = 2
"""The exit status of a process that cannot be used as it is told to be: all of them end."""


def supervise(number: int, log: Any) -> tuple[int, bool]:
    """Fork *number* workers and return in each, with its number from 0 and whether another had it.

    The supervisor never returns: it hands signals on, and exits when all workers have.
    """
    return _Supervisor(log).run(number)


class _Supervisor:
    def __init__(self, log: Any) -> None:
        self._log = log
        self._pid = os.getpid()
        self._workers: dict[int, tuple[int, float]] = {}
        self._stopping = False
        self._before = {
            signum: signal.signal(signum, self._hand_on)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }

    def run(self, number: int) -> tuple[int, bool]:
        """Start them all, and then again who dies; returns in the workers only."""
        for worker in range(number):
            if self._is_worker(worker):
                return worker, False
        status = 0
        while self._workers:
            pid, ended = os.wait()
            worker, began = self._workers.pop(pid)
            code = os.waitstatus_to_exitcode(ended)
            if code == UNUSABLE and not self._stopping:
                status = UNUSABLE
                self._hand_on(signal.SIGTERM, None)
            if self._stopping:
                continue
            self._log.error("worker_died", worker=worker, status=code)
            if time.perf_counter() - began < _RESTART_SECONDS:
                time.sleep(_RESTART_SECONDS)
            if not self._stopping and self._is_worker(worker):
                return worker, True
        sys.exit(status)

    def _hand_on(self, signum: int, _: object) -> None:
        self._stopping = self._stopping or signum != signal.SIGHUP
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _is_worker(self, worker: int) -> bool:
        """Fork; whether this is the new process."""
        # A signal between the fork and its noting would miss the worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        pid = os.fork()
        if pid:
            self._workers[pid] = (worker, time.perf_counter())
        else:
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            # Ctrl-C goes to the whole group, and the supervisor hands it on: twice means at once.
            os.setpgid(0, 0)
            with contextlib.suppress(AttributeError, OSError):  # Linux alone tells of its death
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        if not pid and os.getppid() != self._pid:
            sys.exit(1)
        return not pid

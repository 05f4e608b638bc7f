"""Hardens the process: no core dumps, no access to its memory, as many files as allowed."""

import ctypes
import resource
import signal
import threading
from typing import Any, Final

_PR_SET_DUMPABLE: Final = 4
RESERVED_DESCRIPTORS: Final = 512
"""Descriptors that browsers' connections leave free: for upstream, the store, the ops port, the
other workers, files, and connections that are accepted in order to be refused."""


_LEAST_FILES: Final = 24
"""Descriptors without which a process cannot serve one connection."""
_FILES_OF_WORKER: Final = 4
"""Descriptors for each worker in all of them: two sockets, and two more while one calls it."""

_THREADS_OF_WORKER: Final = 7
"""The first one, one each for the log and for traces, and four that look up names."""
_SMALL_STACK: Final = 262_144
"""Bytes. Threads of other processes take no memory of this one."""


def harden() -> list[str]:
    """Keep keys out of core dumps, and `/proc/<pid>/environ` and `mem` from other processes.

    Raises the soft limit of open files to the hard limit: each connection takes a file. Ignores the
    signals by which other servers open their logs again: they would end the process at once.
    Returns what the system refused, as macOS does with some of it; the gateway runs without that.
    """
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = []
    for name, limit, values in (
        ("core dumps", resource.RLIMIT_CORE, (0, 0)),
        ("open files", resource.RLIMIT_NOFILE, (hard, hard)),
    ):
        try:
            resource.setrlimit(limit, values)
        except (OSError, ValueError):
            refused.append(name)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (AttributeError, OSError):  # only Linux has prctl
        refused.append("access to memory")
    return refused


def max_files() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def least_files(workers: int) -> int:
    """Return the limit of open files without which *workers* cannot start."""
    return _LEAST_FILES + _FILES_OF_WORKER * workers


def least_threads(workers: int) -> int:
    """Return how many threads *workers* have together, each with its first one."""
    return _THREADS_OF_WORKER * workers


def has_threads(workers: int) -> bool:
    """Whether the system allows the threads of *workers*.

    Without one for a name that it looks up, the event loop would end the process without a word.
    """
    for stack, count in ((0, least_threads(1)), (_SMALL_STACK, least_threads(workers))):
        threading.stack_size(stack)
        done = threading.Event()
        threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError:
            return False
        finally:
            threading.stack_size(0)
            done.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    return True


def bounded_connections(files: int, setting: int) -> int:
    """Return how many connections a limit of open *files* allows, at most the *setting*."""
    return max(1, min(setting, files - min(RESERVED_DESCRIPTORS, files // 2)))


def warn_of_few_files(log: Any, files: int, setting: int, bound: int) -> None:
    """Log that the limit of open *files* allows *bound* connections, fewer than the setting."""
    log.warning(
        "few_open_files",
        limit=files,
        needed=setting + RESERVED_DESCRIPTORS,
        connections=bound,
        remedy="raise the limit of open files (ulimit -n, LimitNOFILE=), or set "
        "BFF_MAX_CONNECTIONS",
    )

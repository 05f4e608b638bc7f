"""Hardens the process: no core dumps, no access to its memory, as many files as allowed."""

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def harden() -> None:
    """Keep keys out of core dumps, and `/proc/<pid>/environ` and `mem` from other processes.

    Raises the soft limit of open files to the hard limit: each connection takes a file.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (AttributeError, OSError):  # only Linux has prctl
        return

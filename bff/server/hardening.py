"""What this process lets others see of its memory, and how many files it may open."""

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def harden() -> None:
    """Keep keys out of core dumps, and `/proc/<pid>/environ` and `mem` from others of our user.

    Raises the soft limit of open files to the hard one: a connection is a file.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (AttributeError, OSError):  # not Linux: there is no such thing to turn off
        return

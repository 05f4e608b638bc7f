"""An event loop whose time stands still while the machine is busy elsewhere.

The gateway's timers run on the loop. A machine that pauses this process for a second would let each
of them expire, and a test would see an answer that is late for no reason of its own. So the time of
this loop passes while it waits, and little of it while it works. Between processes it is of no use:
the others do not stop.
"""

import asyncio
import selectors
import time
from typing import Any, Final

_MOST_SECONDS: Final = 0.1
"""Seconds that pass at most between two waits, and beyond the end of a wait."""


class _Selector(selectors.DefaultSelector):
    """Waits in real time; tells how much of it counts."""

    def __init__(self) -> None:
        super().__init__()
        self._counted, self._since = 0.0, time.monotonic()

    @property
    def now(self) -> float:
        return self._counted + min(time.monotonic() - self._since, _MOST_SECONDS)

    def select(self, timeout: float | None = None) -> list[Any]:
        began = self._count(_MOST_SECONDS)
        ready = super().select(timeout)
        waited = time.monotonic() - began if timeout is None else timeout + _MOST_SECONDS
        self._count(waited)
        return ready

    def _count(self, most: float) -> float:
        """Count the time since the last call, *most* seconds of it at most."""
        now = time.monotonic()
        self._counted += min(now - self._since, most)
        self._since = now
        return now


class PatientLoop(asyncio.SelectorEventLoop):
    """The loop of all tests that are coroutines."""

    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now

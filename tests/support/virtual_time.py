"""An event loop whose time passes only while everything waits: hours of polls take seconds.

The gateway's timers, the upstream's delays and the browsers' pauses are all timers of this loop, so
a history has one order of events, on a busy machine too. It is of use without sockets only.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Waits for no time: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits, and nothing will happen any more")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `asyncio.Runner` takes it as its factory."""

    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


class VirtualClock:
    """Both times, as the running loop has them."""

    def __call__(self) -> tuple[float, float]:
        return self.now, self.wall

    @property
    def now(self) -> float:
        return 1000.0 + asyncio.get_running_loop().time()

    @property
    def wall(self) -> float:
        return 1_800_000_000.0 + asyncio.get_running_loop().time()


def run(history: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run *history* to its end, on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(history())

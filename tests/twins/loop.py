"""An event loop whose time passes only while nothing is to be done, and then at once."""

import asyncio
import heapq
import selectors
from contextvars import Context
from itertools import count
from typing import Any

from support.world import Clock


class _Selector(selectors.DefaultSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and (timeout is None or timeout > 0):
            self.loop.skip()
        return events


class _Timer(asyncio.TimerHandle):
    """A timer that runs after earlier ones of the same moment: a heap alone keeps no order."""

    number = 0

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self.number) < (other.when(), other.number)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs timers without waiting: its time jumps to the next of them."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._numbers = count()
        selector = _Selector()
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # Sums of seconds that mean the same moment differ in their last digits, and asyncio runs a
        # timer a nanosecond early. So the moment would depend on the other timers of a world.
        moment = round(when, 6)
        if moment <= self._now < when:  # else a timer that waits for the rest would wait for ever
            moment = round(self._now + 1e-6, 6)
        timer = _Timer(moment, callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def skip(self) -> None:
        """Let the time pass until the next timer."""
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if not scheduled:
            raise AssertionError("everything waits, and no timer will wake it")
        # Exactly its time: sums of differences would depend on the other timers.
        self._now = max(self._now, scheduled[0]._when)


class VirtualClock(Clock):
    """Both clocks of a gateway, read from a loop."""

    WALL = 1_800_000_000.0

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def __call__(self) -> tuple[float, float]:
        return self.now, self.wall

    @property
    def now(self) -> float:
        return self._loop.time()

    @now.setter
    def now(self, _: float) -> None:
        raise AssertionError("the loop moves this clock")

    @property
    def wall(self) -> float:
        return self.WALL + self._loop.time()

    @wall.setter
    def wall(self, _: float) -> None:
        raise AssertionError("the loop moves this clock")

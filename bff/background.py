"""Owns every loop that runs beside requests: none of them ends silently.

A loop that raises, returns, is cancelled or hangs is counted, logged once and started again after a
pause. The owner has no task of its own that could end: callbacks of the event loop call it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from bff import metrics
from bff.telemetry import Telemetry

RESTART_SECONDS: Final = 1.0
"""Seconds until a loop that ended starts again; each further time takes twice as long."""
MAX_RESTART_SECONDS: Final = 15.0
"""Seconds that such a pause takes at most."""
STABLE_SECONDS: Final = 60.0
"""A loop that still beat this long after its start begins anew when it ends: with the shortest
pause, and it is logged again. One that hung from its start on does not, however long it hung."""
CHECK_SECONDS: Final = 1.0
"""Seconds between two looks for loops that hang."""
_CANCELLATIONS: Final = 20
"""How often a loop is cancelled at the end: a client may mistake one for its own timeout."""
DONE: Final = True
"""A loop returns this when its work is done; any other end is a failure."""

Beat = Callable[[], None]
"""A loop calls this in every round."""
Run = Callable[[Beat], Coroutine[Any, Any, bool | None]]
"""Runs the loop once, until it ends."""


@dataclass(eq=False, slots=True)
class _Loop:
    task: str
    run: Run
    checks: float | None
    """Looks after which a loop that did not beat counts as hung; None: it may wait for ever."""
    running: "asyncio.Task[bool | None] | None" = None
    timer: asyncio.TimerHandle | None = None
    pause: float = 0.0
    began: float = 0.0
    beaten: float = 0.0
    """When it beat last."""
    silent: int = 0
    """Looks since the last beat. Time is counted in looks: a stopped process stops them too."""
    done: bool = False

    def beat(self) -> None:
        self.silent, self.beaten = 0, asyncio.get_running_loop().time()


class Background:
    """Starts loops, and starts them again.

    Args:
        telemetry: counts and logs what ended.
        restart_seconds: the first pause.
    """

    def __init__(self, telemetry: Telemetry, *, restart_seconds: float = RESTART_SECONDS) -> None:
        self._telemetry = telemetry
        self._restart_seconds = restart_seconds
        self._loops: list[_Loop] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[Any]] = set()

    def start(self, task: str, *runs: Run, deadline: float | None = None) -> None:
        """Run *runs* under the name *task*, in place of those that had the name.

        A loop that does not beat for *deadline* seconds is started again.
        """
        self._end([loop for loop in self._loops if loop.task == task])
        checks = None if deadline is None else deadline / CHECK_SECONDS
        for run in runs:
            loop = _Loop(task, run, checks)
            self._loops.append(loop)
            self._begin(loop)
        if self._timer is None:
            self._check()

    async def stop(self, *tasks: str) -> None:
        """End the loops named *tasks*; without a name, all of them."""
        self._end([loop for loop in self._loops if not tasks or loop.task in tasks])
        if not tasks and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _ in range(_CANCELLATIONS):
            if not self._ending:
                break
            for task in self._ending:
                task.cancel()
            await asyncio.wait(self._ending, timeout=CHECK_SECONDS / 4)

    @property
    def up(self) -> dict[str, bool]:
        """Whether all loops of each task run, by the name of the task."""
        up: dict[str, bool] = {}
        for loop in self._loops:
            runs = loop.done or loop.running is not None
            up[loop.task] = up.get(loop.task, True) and runs
        return up

    # -- one loop

    def _begin(self, loop: _Loop) -> None:
        loop.timer = None
        loop.beat()
        loop.began = loop.beaten
        loop.running = asyncio.create_task(_guarded(loop.run, loop.beat))
        loop.running.add_done_callback(lambda task: self._ended(loop, task))

    def _ended(self, loop: _Loop, task: "asyncio.Task[bool | None]") -> None:
        self._ending.discard(task)
        failure = None if task.cancelled() else task.exception()
        if loop.running is not task:  # it was stopped or replaced
            return
        if failure is None and not task.cancelled() and task.result() is DONE:
            loop.done = True
            return
        cause = failure.__cause__ if isinstance(failure, _LoopError) else failure
        self._restart(loop, "cancelled" if task.cancelled() else "ended", cause)

    def _restart(self, loop: _Loop, reason: str, cause: BaseException | None) -> None:
        loop.running = None
        first = not loop.pause or loop.beaten - loop.began >= STABLE_SECONDS
        pause = self._restart_seconds if first else min(2 * loop.pause, MAX_RESTART_SECONDS)
        loop.pause = pause
        loop.timer = asyncio.get_running_loop().call_later(pause, self._begin, loop)
        self._telemetry.count(metrics.BACKGROUND_RESTARTS, loop.task)
        # Last: the loop starts again, whatever becomes of its line.
        if first and cause is not None:
            self._telemetry.exception("background_failed", cause, task=loop.task)
        elif first:
            self._telemetry.log.error("background_failed", task=loop.task, reason=reason)

    def _end(self, loops: list[_Loop]) -> None:
        for loop in loops:
            self._loops.remove(loop)
            if loop.timer is not None:
                loop.timer.cancel()
            self._abandon(loop)

    def _abandon(self, loop: _Loop) -> None:
        task, loop.running = loop.running, None
        if task is not None and not task.done():
            self._ending.add(task)
            task.cancel()

    def _check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)
        for loop in self._loops:
            loop.silent += 1
            if loop.running and loop.checks is not None and loop.silent > loop.checks:
                self._abandon(loop)
                self._restart(loop, "hung", None)


class _LoopError(Exception):
    """A loop raised its cause."""


async def _guarded(run: Run, beat: Beat) -> bool | None:
    """Run a loop; `SystemExit` or `KeyboardInterrupt` in a task would end the event loop."""
    try:
        return await run(beat)
    except (asyncio.CancelledError, Exception):
        raise
    except BaseException as exc:  # it ends this loop only, not the event loop
        raise _LoopError from exc

"""One piece of work for each key, however many wait for it (HTTP calls it collapsed)."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """The work in flight.

    Args:
        spawn: runs work to its end, also when those who wait for it leave.
    """

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, T]], "asyncio.Task[T]"]) -> None:
        self._spawn = spawn
        self._tasks: dict[K, asyncio.Task[T]] = {}
        self._in_flight = 0

    def __len__(self) -> int:
        """How much work is in flight, forgotten work included."""
        return self._in_flight

    def get(self, key: K) -> "asyncio.Task[T] | None":
        """Get the work in flight for *key*, to be joined; cancelling it cancels all who wait."""
        return self._tasks.get(key)

    def start(self, key: K, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start *work* for *key*."""
        task = self._tasks[key] = self._spawn(work)
        self._in_flight += 1
        task.add_done_callback(lambda task: self._end(key, task))
        return task

    def forget(self, key: K) -> None:
        """Let nobody join the work for *key* any more; it goes on for those who wait."""
        self._tasks.pop(key, None)

    def forget_all(self) -> None:
        """Let nobody join any work in flight."""
        self._tasks.clear()

    def _end(self, key: K, task: "asyncio.Task[T]") -> None:
        if self._tasks.get(key) is task:  # otherwise it was forgotten, and other work may run
            del self._tasks[key]
        self._in_flight -= 1

"""Runs one task for each key; later requests join it (RFC 9211 calls them collapsed)."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """The tasks in flight.

    Args:
        spawn: runs work to its end, even if every request that waits for it leaves.
    """

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, T]], "asyncio.Task[T]"]) -> None:
        self._spawn = spawn
        self._tasks: dict[K, asyncio.Task[T]] = {}
        self._in_flight = 0

    def __len__(self) -> int:
        """Return how many tasks are in flight, those forgotten included."""
        return self._in_flight

    def get(self, key: K) -> "asyncio.Task[T] | None":
        """Get the task in flight for *key*. Do not cancel it: other requests may wait for it."""
        return self._tasks.get(key)

    def start(self, key: K, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start *work* for *key*."""
        task = self._tasks[key] = self._spawn(work)
        self._in_flight += 1
        task.add_done_callback(lambda task: self._end(key, task))
        return task

    def forget(self, key: K) -> None:
        """Let no further request join the task for *key*; those that wait still get its result."""
        self._tasks.pop(key, None)

    def forget_all(self) -> None:
        """Let no further request join any task in flight."""
        self._tasks.clear()

    def _end(self, key: K, task: "asyncio.Task[T]") -> None:
        if self._tasks.get(key) is task:  # otherwise it was forgotten, and other work may run
            del self._tasks[key]
        self._in_flight -= 1

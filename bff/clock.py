"""The two clocks: one that never jumps, and Unix time."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], tuple[float, float]]
"""Reads the two times: one that never jumps, and Unix seconds."""


def system_clock() -> tuple[float, float]:
    """Read the two times: one that never jumps, and Unix seconds."""
    return time.monotonic(), time.time()  # noqa: TID251  the only reader of real time


def shown_date(seconds: float) -> str:
    """Show Unix *seconds* as a date, for the operator."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

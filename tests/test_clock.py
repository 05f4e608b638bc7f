"""The two clocks."""

import time

from bff.clock import system_clock


def test_system_clock_reads_a_monotonic_and_a_unix_time() -> None:
    before = time.monotonic(), time.time()
    now, wall = system_clock()

    assert before[0] <= now <= time.monotonic()
    assert abs(wall - before[1]) < 5

"""`bff serve` with a wall clock that the soak sets; it also reports its number of tasks.

    python tests/soak/replica.py FILE

FILE holds two doubles: seconds to add to the wall clock, and the number of tasks in the event loop.
Otherwise this equals the real command, whose service takes the clock as an argument.
"""

import asyncio
import mmap
import struct
import sys
import time
from functools import partial
from pathlib import Path

from bff import cli
from bff.app import Service


def main(file: str) -> None:
    with Path(file).open("r+b") as opened:
        shared = mmap.mmap(opened.fileno(), 16)
    written = 0.0

    def clock() -> tuple[float, float]:
        nonlocal written
        now = time.monotonic()
        if now - written > 0.2:
            written = now
            struct.pack_into("d", shared, 8, len(asyncio.all_tasks()))
        return now, time.time() + struct.unpack_from("d", shared)[0]

    cli.system_clock = clock  # type: ignore[attr-defined]
    cli.Service = partial(Service, clock=clock)  # type: ignore[attr-defined]
    cli.main(["serve"])


if __name__ == "__main__":
    main(sys.argv[1])

"""`bff serve` with a wall clock that the soak sets, and that tells how many tasks there are.

    python tests/soak/replica.py FILE

FILE holds two doubles: seconds to add to the wall clock, and the tasks of the event loop. Nothing
else differs from the real command: the clock is an argument of what it runs.
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
    told = 0.0

    def clock() -> tuple[float, float]:
        nonlocal told
        now = time.monotonic()
        if now - told > 0.2:
            told = now
            struct.pack_into("d", shared, 8, len(asyncio.all_tasks()))
        return now, time.time() + struct.unpack_from("d", shared)[0]

    cli.system_clock = clock
    cli.Service = partial(Service, clock=clock)
    cli.main(["serve"])


if __name__ == "__main__":
    main(sys.argv[1])

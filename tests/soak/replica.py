"""`bff serve` with a wall clock and a resolver that the soak sets; it also reports its tasks.

    python tests/soak/replica.py FILE

FILE holds two doubles: seconds to add to the wall clock, and the number of tasks in the event loop.
Its 17th byte says whether the disk of the log is full.
The third byte of the file `upstream` beside it says to which loopback address a name leads.
Otherwise this equals the real command, whose service takes the clock as an argument.
"""

import asyncio
import mmap
import os
import socket
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import aiohappyeyeballs

from bff import cli
from bff.app import Service
from bff.upstream import pool


def main(file: str) -> None:
    with Path(file).open("r+b") as opened:
        shared = mmap.mmap(opened.fileno(), 17)
    log = [os.dup(1), os.open("/dev/full", os.O_WRONLY)]
    written, full = 0.0, 0

    def clock() -> tuple[float, float]:
        nonlocal written, full
        now = time.monotonic()
        if now - written > 0.2:
            written = now
            struct.pack_into("d", shared, 8, len(asyncio.all_tasks()))
        if full != shared[16]:
            full = shared[16]
            os.dup2(log[full], 1)
        return now, time.time() + struct.unpack_from("d", shared)[0]

    with Path(file).with_name("upstream").open("r+b") as opened:
        control = mmap.mmap(opened.fileno(), 3)
    connect = aiohappyeyeballs.start_connection

    async def connect_resolved(addresses: Any, **arguments: Any) -> socket.socket:
        kind, (_, port) = addresses[0][:4], addresses[0][4][:2]
        here = (socket.AF_INET, *kind[1:], (f"127.0.0.{control[2] + 1}", port))
        return await connect([here], **arguments)

    pool.start_connection = connect_resolved  # type: ignore[attr-defined]
    cli.system_clock = clock  # type: ignore[attr-defined]
    cli.Service = partial(Service, clock=clock)  # type: ignore[attr-defined]
    cli.main(["serve"])


if __name__ == "__main__":
    main(sys.argv[1])

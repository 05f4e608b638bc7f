"""Measures the gateway's memory: bytes per copy, per verified token, per idle connection.

The program compares the resident memory of one process before and after, then sends a million
requests.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.world import OFF, Clock, World, claims, read, sign
from uvicorn.server import ServerState

from bff.demo.upstream import session
from bff.request import HeaderFields, RequestHead
from bff.server import run
from bff.server.header_cache import HeaderCache


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Hold nothing: what is written is dropped."""


PLENTY = OFF | {
    "BFF_CACHE_MAX_BYTES": "1000000000",
    "BFF_CACHE_TTL": "3600",
    "BFF_MAX_CONNECTIONS": "1000000",
    "BFF_MAX_CONNECTIONS_PER_ADDRESS": "1000000",
}


async def main(copies: int, tokens: int, connections: int, requests: int) -> None:
    clock = Clock()
    async with World(clock, **PLENTY) as world:
        gateway = world.service.gateway
        await world.get("chat-1")
        environment = next(iter(gateway.config.environments.values()))

        before = resident()
        for n in range(copies):
            document = json.loads(json.dumps(session(n + 10, f"chat-{n}")))
            gateway.cache.put(gateway.loader._project(environment.name, document, clock.now))
        took = (resident() - before) / copies
        estimate = gateway.cache.bytes / len(gateway.cache)
        print(f"copy: {took:,.0f} bytes resident, {estimate:,.0f} by its own estimate ({copies:,})")

        made = [
            sign(claims(clock.wall, *read("chat-1"), jti=str(n))).encode() for n in range(tokens)
        ]
        before = resident()
        for one in made:
            gateway.config.verifier.verify(bytes(bytearray(one)), clock.wall)
        print(f"verified token: {(resident() - before) / len(gateway.config.verifier):,.0f} bytes "
              f"({len(gateway.config.verifier):,} kept of {tokens:,})")  # fmt: skip

        cache, before = HeaderCache(), resident()
        for one in made:
            headers = [(b"authorization", b"Bearer " + one), (b"origin", b"https://app.example")]
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            asked = b"GET /api/v1/sessions/chat-1 HTTP/1.1\r\n" + lines + b"\r\n"
            cache.keep(asked, HeaderFields.read(headers))
        print(f"kept header lines: {(resident() - before) / len(made):,.0f} bytes, "
              f"{cache.entries.currsize / len(cache.entries):,.0f} by the estimate")  # fmt: skip

        config = run.config(
            world.service.browser_app, lifespan=False, protocol=world.service.protocol
        )
        config.load()
        state = ServerState()
        line = f"GET /api/v1/sessions/chat-1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {world.token(*read('chat-1'))}\r\n\r\n"
        make: Any = config.http_protocol_class
        open_ = []
        before = resident()
        for _ in range(connections):
            one_ = make(config=config, server_state=state, app_state={})
            one_.connection_made(_Transport())
            one_.data_received(bytes(bytearray(line.encode())))
            open_.append(one_)
        print(f"idle connection after a poll, without the kernel's and the loop's part: "
              f"{(resident() - before) / connections:,.0f} bytes ({connections:,})")  # fmt: skip
        for one_ in open_:
            one_.connection_lost(OSError())

        heads = [
            RequestHead.read("GET", b"/api/v1/sessions/chat-%d" % n, b"",
                      [(b"authorization", b"Bearer " + t)], f"10.0.{n % 200}.{n % 250}")
            for n, t in enumerate(made[:1000])
        ]  # fmt: skip
        for head in heads:
            gateway.decide(head, *clock())
        before, started = resident(), time.perf_counter()
        for n in range(requests):
            gateway.decide(heads[n % len(heads)], *clock())
            if n % 1000 == 0:
                clock.advance(0.1)
                world.log.truncate(0)
        seconds = time.perf_counter() - started
        print(f"{requests:,} decisions: {(resident() - before) / 1024:+,.0f} KiB, {seconds:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("copies", 100_000),
        ("tokens", 10_000),
        ("connections", 5_000),
        ("requests", 1_000_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    asyncio.run(main(**vars(parser.parse_args())))

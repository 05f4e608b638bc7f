"""Measures microseconds for each kind of answer inside the process, without sockets.

    python tests/bench/inside.py

The program feeds connections as the loop does, with each request in a separate bytes object. The
kinds take turns, so that a busy moment hurts all of them. The least of many rounds counts.
"""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

import uvloop
from uvicorn.server import ServerState

from bff.app import Service
from bff.clock import system_clock
from bff.config import reader
from bff.demo.upstream import session
from bff.request import RequestHead
from bff.server import run as server
from bff.telemetry import Telemetry
from bff.tokens.mint import mint

KEY = "benchmark-signing-key-0123456789abcdef"
ORIGIN = "https://app.example.com"
REQUESTS = 500
"""Requests in a round."""
CONNECTIONS = 32
SESSIONS, CALLERS = 5_000, 500


class _Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written = bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 40000) if name == "peername" else default

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Do nothing: in a run this long a timeout may call it."""


class _Run:
    """One service, its connections and requests of one kind, with other requests between them."""

    def __init__(
        self,
        nowhere: TextIO,
        requests: list[bytes],
        status: int,
        *,
        sessions: int = 8,
        **changes: str,
    ) -> None:
        plenty = "999999999/minute"
        told = reader.load(
            {
                "TRIGGER_SECRET_KEY": "tr_dev_sk_bench",
                "BFF_SIGNING_KEYS": KEY,
                "BFF_ALLOWED_ORIGINS": ORIGIN,
                "BFF_CACHE_TTL": "3600",
                "BFF_UPSTREAM_BUDGET": "off",
                **dict.fromkeys(
                    ("BFF_RATE_LIMIT", "BFF_IP_RATE_LIMIT", "BFF_BAD_TOKEN_LIMIT"), plenty
                ),
                **changes,
            }
        )
        self.service = Service(told, Telemetry(nowhere))
        self.requests, self.status, self.asked = requests, status, 0
        gateway = self.service.gateway
        environment = next(iter(gateway.config.environments))
        for n in range(sessions):
            document = json.loads(json.dumps(session(n, f"chat-{n}")))
            copy = gateway.loader._project(environment, document, system_clock()[0])
            gateway.cache.put(copy)
        made = self.service.protocol
        config = server.config(self.service.browser_app, lifespan=False, protocol=made)
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"Tue, 24 Nov 2026 00:00:00 GMT")]
        self.wires = []
        for _ in range(CONNECTIONS):
            wire = _Transport()
            protocol = made(config=config, server_state=state, app_state={})
            protocol.connection_made(wire)
            self.wires.append((protocol, wire))
        for request in requests:
            self.wires[0][0].data_received(request)
        self.round()

    def round(self) -> float:
        """Measure a round; returns microseconds for each request."""
        take = self.requests
        data = [bytes(bytearray(take[(self.asked + n) % len(take)])) for n in range(REQUESTS)]
        self.asked += REQUESTS
        feeds = [self.wires[n % CONNECTIONS][0].data_received for n in range(REQUESTS)]
        began = time.perf_counter()
        for feed, request in zip(feeds, data, strict=True):
            feed(request)
        took = (time.perf_counter() - began) / REQUESTS * 1e6
        written = self.wires[0][1].written
        assert written.startswith(b"HTTP/1.1 %d" % self.status), written
        return took


class _Decide(_Run):
    """Measures `Gateway.decide` alone."""

    def round(self) -> float:
        lines = (line.partition(b": ") for line in self.requests[0].split(b"\r\n")[1:] if line)
        headers = [(name.lower(), value) for name, _, value in lines]
        head = RequestHead.read("GET", b"/api/v1/sessions/chat-1", b"", headers, "192.0.2.1")
        decide, (now, wall) = self.service.gateway.decide, system_clock()
        began = time.perf_counter()
        for _ in range(REQUESTS):
            decide(head, now, wall)
        return (time.perf_counter() - began) / REQUESTS * 1e6


def _request(method: str, id_: str, *lines: str, bearer: str | None = None) -> bytes:
    some = [
        f"{method} /api/v1/sessions/{id_} HTTP/1.1",
        "Host: 127.0.0.1:8787",
        f"Origin: {ORIGIN}",
    ]
    if bearer is not None:
        some.append(f"Authorization: Bearer {bearer}")
    return "\r\n".join([*some, *lines, "", ""]).encode()


def _token(actor: str, *scopes: str) -> str:
    issued = int(time.time())
    return mint(KEY, environment_id="e", scopes=scopes, issued=issued, ttl=7200, actor=actor)


def _runs(nowhere: TextIO) -> dict[str, _Run]:
    one, wide = _token("u", "read:sessions:chat-1"), _token("u", "read:sessions")
    callers = [_token(f"u{n}", "read:sessions") for n in range(CALLERS)]
    hit = _request("GET", "chat-1", bearer=one)
    asked = ("Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization")
    return {
        "a hit: the same bytes again": _Run(nowhere, [hit], 200),
        "a hit: known header lines, another session": _Run(
            nowhere, [_request("GET", f"chat-{n}", bearer=wide) for n in range(7)], 200
        ),
        f"a hit: known header lines, {SESSIONS:,} sessions, {CALLERS:,} callers": _Run(
            nowhere,
            [
                _request("GET", f"chat-{n * 7919 % SESSIONS}", bearer=callers[n * 31 % CALLERS])
                for n in range(SESSIONS)
            ],
            200,
            sessions=SESSIONS,
        ),
        "a hit: parsed, for its id is percent-encoded": _Run(
            nowhere,
            [_request("GET", id_, bearer=one) for id_ in ("chat%2D1", "ch%61t-1", "%63hat-1")],
            200,
        ),
        "the decision on a hit, alone": _Decide(nowhere, [hit], 200),
        "a 304": _Run(nowhere, [_request("GET", "chat-1", "If-None-Match: *", bearer=one)], 304),
        "a preflight": _Run(nowhere, [_request("OPTIONS", "chat-1", *asked)], 204),
        "a 401: no token": _Run(nowhere, [_request("GET", "chat-1")], 401),
        "a 401: a token that no key signed": _Run(
            nowhere, [_request("GET", "chat-1", bearer=one[:-6] + "AAAAAA")], 401
        ),
        "a 403": _Run(nowhere, [_request("GET", "chat-2", bearer=one)], 403),
        "a 429": _Run(nowhere, [hit], 429, BFF_RATE_LIMIT="1/minute"),
    }


def measure(rounds: int) -> dict[str, float]:
    """Return the least microseconds for each kind of answer."""

    async def all_of_them(nowhere: TextIO) -> dict[str, float]:
        runs, took = _runs(nowhere), dict[str, float]()
        for _ in range(rounds):
            for name, run in runs.items():
                took[name] = min(run.round(), took.get(name, float("inf")))
        for run in runs.values():
            await run.service.network.aclose()
        return took

    os.sched_setaffinity(0, {0})
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(all_of_them(nowhere))
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def table(took: dict[str, float]) -> list[str]:
    """Format the result as a Markdown table."""
    hit = next(iter(took.values()))
    return [
        "| in one process, without sockets | µs | to the first |",
        "|---|---:|---:|",
        *(f"| {name} | {one:.1f} | {one / hit:.2f} |" for name, one in took.items()),
    ]


if __name__ == "__main__":
    print("\n".join(table(measure(rounds=100))))

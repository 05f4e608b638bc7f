"""Helpers that the tests of incidents, chaos and properties share."""

import asyncio
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.world import ORIGIN, PATH, PATIENCE, World, http

from bff.request import RequestHead
from bff.response import Response

LANES: dict[str, dict[str, str]] = {
    "asgi": {"BFF_FAST_PATH": "false"},
    "fast": {"BFF_FAST_PATH": "true"},
}
"""The ways from a socket to the decision, by the settings that choose them: every test on the wire
runs once for each."""

WIDE_OPEN = {
    "BFF_RATE_LIMIT": "off",
    "BFF_IP_RATE_LIMIT": "off",
    "BFF_BAD_TOKEN_LIMIT": "off",
    "BFF_UPSTREAM_BUDGET": "off",
}
NOTHING_KEPT = {
    "BFF_CACHE_TTL": "0",
    "BFF_CACHE_STALE_WHILE_REVALIDATE": "0",
    "BFF_CACHE_STALE_IF_ERROR": "0",
    "BFF_CACHE_NEGATIVE_TTL": "0",
}


async def ask(
    world: World, segment: str, token: str | None, peer: str = "192.0.2.1", **fields: Any
) -> Response:
    """One request to the gateway's heart, without an HTTP client's cost and its tidying up."""
    headers = [(b"origin", ORIGIN.encode())]
    if token is not None:
        headers.append((b"authorization", b"Bearer " + token.encode("latin-1")))
    head = RequestHead.read("GET", (PATH + segment).encode("latin-1"), b"", headers, peer)
    head.fields = replace(head.fields, **fields)
    gateway = world.service.gateway
    answer = gateway.decide(head, *world.clock())
    return answer if isinstance(answer, Response) else await gateway.finish(answer)


def told(response: Response) -> dict[str, str]:
    """The headers of *response*."""
    return {name.decode(): value.decode("latin-1") for name, value in response.headers()}


def metric(gateway: Any, name: str, label: str | None = None) -> float:
    """Sum of a metric of a running gateway over its labels, or those with the value *label*."""
    text = http.get(gateway.ops_url + "/metrics").text
    labels = r"(?:{[^}]*})?" if label is None else rf'{{[^}}]*"{label}"[^}}]*}}'
    values = re.findall(rf"^{name}(?:_total)?{labels} (\S+)$", text, re.MULTILINE)
    assert values, f"no metric {name}"
    return sum(map(float, values))


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process holds."""
    statm = Path(f"/proc/{pid}/statm").read_text("ascii")
    return int(statm.split()[1]) * os.sysconf("SC_PAGESIZE")


def descriptors(pid: int | str = "self") -> int:
    """Files and sockets that a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def eventually(condition: Any, seconds: float = PATIENCE) -> bool:
    """Whether *condition* comes true in time; for what another process does."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


async def idle(world: World) -> None:
    """Let everything that is under way end."""
    await world.settle()
    for _ in range(5):
        await asyncio.sleep(0)


async def raw_request(
    app: Any, raw_path: bytes, headers: dict[str, str], method: str = "GET"
) -> list[dict[str, Any]]:
    """Send one request with exactly this path to an ASGI app; HTTP clients normalize paths."""
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": "/whatever",
        "raw_path": raw_path,
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, None, send)
    return messages

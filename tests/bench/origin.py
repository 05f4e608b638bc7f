"""A fast upstream for benchmarks: every session exists, and a document costs almost no time.

    python origin.py PORT [--projected] [--delay SECONDS]

``--projected`` answers only the fields that browsers may see, for peers that cannot project.
"""

import argparse
import asyncio
import json
import re

import uvloop

_PATH = re.compile(rb"GET /api/v1/sessions/(\S*) ")
_FIELDS: dict[str, object] = {
    "id": "session_0001bench",
    "externalId": "@",
    "type": "chat.agent",
    "taskIdentifier": "my-chat",
    "currentRunId": "run_0001",
    "closedAt": None,
    "closedReason": None,
    "expiresAt": None,
    "createdAt": "2026-01-02T03:04:05.678Z",
    "updatedAt": "2026-01-02T03:04:06.789Z",
    "metadata": None,
    "tags": [],
}
_HIDDEN = {
    "metadata": {"userId": "u_1", "notes": "x" * 200},
    "tags": ["plan:pro", "internal:1"],
    "triggerConfig": {"basePayload": {"systemPrompt": "y" * 400}},
}


class Connection(asyncio.Protocol):
    """Answers each complete GET in order."""

    def __init__(self, document: dict[str, object], delay: float) -> None:
        self._before, self._after = json.dumps(document).encode().split(b"@")
        self._delay = delay
        self._data = b""

    # uvloop's transports are not instances of asyncio's classes.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._data = (self._data + data).split(b"\r\n\r\n")
        for head in heads:
            found = _PATH.match(head)
            # The friendly id differs as well, or two sessions would count as one.
            id_ = found[1] if found else b"none"
            body = self._before.replace(b"0001bench", id_) + id_ + self._after
            answer = (
                b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\netag: "%b"\r\n'
                b"cache-control: public, s-maxage=3600\r\ncontent-length: %d\r\n\r\n%b"
            ) % (id_, len(body), body)
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def _serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--projected", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    told = parser.parse_args()
    document = _FIELDS if told.projected else _FIELDS | _HIDDEN
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(document, told.delay), "127.0.0.1", told.port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())

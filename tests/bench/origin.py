"""A fast upstream for benchmarks: every session exists, and a document costs almost no time.

    python origin.py PORT [--projected] [--delay SECONDS] [--rate EVENTS]

``--projected`` answers only the fields that browsers may see, for peers that cannot project. Each
session has a chat stream. Its first event comes at once; then it has ``--rate`` events a second if
the session is called ``busy-…``, and a ping every five seconds otherwise.
"""

import argparse
import asyncio
import json
import re
import time

import uvloop

_PATH = re.compile(rb"GET /api/v1/sessions/(\S*) ")
_STREAM = re.compile(rb"GET /realtime/v1/sessions/(\S*)/out ")
_PING_SECONDS = 5.0
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

    def __init__(self, document: dict[str, object], delay: float, rate: float) -> None:
        self._before, self._after = json.dumps(document).encode().split(b"@")
        self._delay = delay
        self._rate = rate
        self._events = 0
        self._data = b""

    # uvloop's transports are not instances of asyncio's classes.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._data = (self._data + data).split(b"\r\n\r\n")
        for head in heads:
            if stream := _STREAM.match(head):
                self._transport.write(_STREAM_HEAD)
                self._write_event(stream[1].startswith(b"busy-"))
                continue
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

    def _write_event(self, busy: bool) -> None:
        """Write an event, with the time at which it is written, and let the next one follow."""
        if self._transport.is_closing():
            return
        event = b"event: ping\ndata: {}\n\n"
        if busy or not self._events:
            event = _event(self._events)
        self._events += 1
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        pause = 1 / self._rate if busy else _PING_SECONDS
        asyncio.get_running_loop().call_later(pause, self._write_event, busy)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"x-stream-version: v2\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _event(number: int) -> bytes:
    """Make an event with one record, as upstream writes it: a word of an answer."""
    sent = f"@{time.monotonic_ns()}@"
    data = {"type": "text-delta", "id": "text-0", "delta": f"word {sent}"}
    body = json.dumps({"data": data, "id": f"part-{number}"}, separators=(",", ":"))
    record = {"seq_num": number, "body": body, "headers": [], "timestamp": 1_800_000_000_000}
    batch = json.dumps({"records": [record]}, separators=(",", ":"))
    return f"id: {number},1,{len(body)}\nevent: batch\ndata: {batch}\n\n".encode()


async def _serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--projected", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=10.0)
    told = parser.parse_args()
    document = _FIELDS if told.projected else _FIELDS | _HIDDEN
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(document, told.delay, told.rate), "127.0.0.1", told.port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())

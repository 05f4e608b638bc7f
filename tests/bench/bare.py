"""Servers that do no part of the job: the floor, and a route that forwards.

The first answer with fixed bytes. An ASGI callable and a Starlette route on uvicorn show the cost of the framework. The loop alone,
which writes the same bytes for any input, shows the cost of the kernel and the loop.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

BODY = Path(__file__).with_name("body.json").read_bytes()


async def callable_(scope: Scope, _receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def route(_: Request) -> Response:
    return Response(BODY, media_type="application/json")


starlette = Starlette(routes=[Route("/api/v1/sessions/{session}", route)])


def forwards(origin: str) -> Starlette:
    """The route that one would write by hand: it asks upstream, once for each request."""
    client = httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{origin}",
        headers={"authorization": "Bearer tr_dev_sk_bench"},
        trust_env=False,
    )

    async def forward(request: Request) -> Response:
        answer = await client.get(f"/api/v1/sessions/{request.path_params['session']}")
        return Response(answer.content, answer.status_code, media_type="application/json")

    return Starlette(routes=[Route("/api/v1/sessions/{session}", forward)])


class Loop(asyncio.Protocol):
    """Writes as many bytes as a hit."""

    _answer = b"HTTP/1.1 200 OK\r\nx: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        b"x" * 800,
        len(BODY),
        BODY,
    )

    # uvloop's transports are not instances of asyncio's classes.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, _: bytes) -> None:
        self._transport.write(self._answer)


async def _loop(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Loop, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        uvloop.run(_loop(int(sys.argv[2])))
    kind, *origin = sys.argv[1], *sys.argv[3:]
    app: Any = (
        forwards(*origin) if origin else {"callable": callable_, "starlette": starlette}[kind]
    )
    uvicorn.run(
        app, port=int(sys.argv[2]), http="httptools", loop="uvloop", ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip

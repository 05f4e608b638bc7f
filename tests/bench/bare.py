"""Servers on uvicorn that do no part of the job: answers with fixed bytes, and routes that forward.

An ASGI callable and a Starlette route show the cost of the framework.
"""

import sys
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
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
        limits=httpx2.Limits(max_connections=None),
        timeout=None,
    )

    async def forward(request: Request) -> Response:
        answer = await client.get(f"/api/v1/sessions/{request.path_params['session']}")
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def stream(request: Request) -> StreamingResponse:
        path = f"/realtime/v1/sessions/{request.path_params['session']}/out"
        sent = client.build_request("GET", path, headers={"accept": "text/event-stream"})
        answer = await client.send(sent, stream=True)
        headers = {n: answer.headers[n] for n in ("content-type", "x-stream-version")}
        close = BackgroundTask(answer.aclose)
        return StreamingResponse(answer.aiter_raw(), headers=headers, background=close)

    routes = [
        Route("/api/v1/sessions/{session}", forward),
        Route("/realtime/v1/sessions/{session}/out", stream),
    ]
    return Starlette(routes=routes)


if __name__ == "__main__":
    kind, port, *origin = sys.argv[1:]
    app: Any = (
        forwards(*origin) if origin else {"callable": callable_, "starlette": starlette}[kind]
    )
    uvicorn.run(
        app, port=int(port), http="httptools", loop="uvloop", ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip

"""The floor: a bare ASGI callable and a bare Starlette route on uvicorn, without any of the job."""

import sys
from pathlib import Path

import uvicorn
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

if __name__ == "__main__":
    app = {"callable": callable_, "starlette": starlette}[sys.argv[1]]
    uvicorn.run(
        app, port=int(sys.argv[2]), http="httptools", loop="uvloop", ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip

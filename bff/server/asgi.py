"""The ASGI side of the gateway: reads request heads, writes responses."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bff.clock import Clock
from bff.gateway.decide import Gateway
from bff.request import HeaderFields, RequestHead
from bff.response import Response
from bff.server.uvicorn_adapter import LOCAL_PEER

ADMIT: Final = "bff.admit"
"""The extension that returns a response if there is room for it in memory, else a refusal."""
PENDING: Final = "bff.pending"
"""The extension of an ASGI scope that holds the decision of the fast path on this request."""


class Endpoint:
    """Answers browsers."""

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self._gateway = gateway
        self._clock = clock

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request; ignore its body."""
        # A request is decided, and so counted, once.
        answer = scope.get("extensions", {}).get(PENDING)
        if answer is None:
            answer = self._gateway.decide(read_head(scope), *self._clock())
        response = await self._gateway.finish(answer)
        await send_response(admitted(scope, response), send)


class ErrorBoundary:
    """Answers unexpected exceptions with JSON that the browser may read.

    Starlette's own boundary is outside the middleware, so its answers lack the CORS headers.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; if that fails before an answer began, answer 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as exc:  # noqa: BLE001  the last place that can answer
            response = self._gateway.failed(read_head(scope), exc)
            if not began:
                await send_response(response, send)


def read_head(scope: Scope) -> RequestHead:
    """Read the request head from an ASGI *scope*."""
    peer = scope["client"][0] if scope.get("client") else LOCAL_PEER
    method, path, query = scope["method"], scope["raw_path"], scope.get("query_string", b"")
    return RequestHead.read(method, path, query, scope["headers"], peer)


def admitted(scope: Scope, response: Response) -> Response:
    """Return *response*, or a refusal if the connection has no room for it in memory."""
    admit = scope.get("extensions", {}).get(ADMIT)
    if admit is None:
        return response
    admitted: Response = admit(response, HeaderFields.read(scope["headers"]))
    return admitted


async def send_response(response: Response, send: Send) -> None:
    """Write *response* as ASGI messages."""
    await send(
        {"type": "http.response.start", "status": response.status, "headers": response.headers()}
    )
    await send({"type": "http.response.body", "body": response.body})

"""The ASGI side of the gateway: reads a head, writes a reply."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bff.clock import Clock
from bff.gateway.decide import Gateway
from bff.request import RequestHead
from bff.response import Response

LOAD = "bff.load"
"""Among an ASGI scope's extensions: what was decided on before the scope was made."""


class Endpoint:
    """Answers browsers."""

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self._gateway = gateway
        self._clock = clock

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request; its body, if any, is nobody's business."""
        # The fast lane may have decided already, and once is how often a request is counted.
        answer = scope.get("extensions", {}).get(LOAD)
        if answer is None:
            answer = self._gateway.decide(read_head(scope), *self._clock())
        response = await self._gateway.finish(answer)
        await send_response(response, send)


class ErrorBoundary:
    """Answers what nobody foresaw, as JSON that the browser may read.

    Starlette's own boundary stands outside of everything that adds headers.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer for it if that fails before an answer began."""
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
        except Exception as exc:  # noqa: BLE001  the last place where it can be told
            response = self._gateway.failed(read_head(scope), exc)
            if not began:
                await send_response(response, send)


def read_head(scope: Scope) -> RequestHead:
    """Pick from an ASGI *scope* what the gateway looks at."""
    peer = scope["client"][0] if scope.get("client") else "local"
    method, path, query = scope["method"], scope["raw_path"], scope.get("query_string", b"")
    return RequestHead.read(method, path, query, scope["headers"], peer)


async def send_response(response: Response, send: Send) -> None:
    """Write *response* as ASGI messages."""
    await send(
        {"type": "http.response.start", "status": response.status, "headers": response.headers()}
    )
    await send({"type": "http.response.body", "body": response.body})

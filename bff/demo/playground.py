"""The playground: a page that the demo's gateway serves, and the demo's routes for it.

The page consists of static files. It needs no build step and loads nothing from elsewhere; its
content security policy forbids that. The route that shows upstream's own documents reads the
pretend upstream; only the demo has it. The totals are the gateway's own metrics, and the requests
that the pretend upstream received.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bff import metrics
from bff.demo.upstream import Answer, PretendUpstream, Seen

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
)
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_FILES = (
    *("playground.css", "playground.js", "playground.svg", "stranger.html", "stranger.js"),
    *("chat.css", "chat.js", "tokens.js"),
)


def routes(
    upstream: PretendUpstream,
    tokens: Callable[[], dict[str, str]],
    counts: Mapping[tuple[str | int, ...], float],
) -> tuple[Route, ...]:
    """Return the routes of the page.

    Args:
        upstream: the pretend upstream.
        tokens: mints the page's tokens, by name.
        counts: the counters of the gateway.
    """
    received = 0

    async def totals(_: Request) -> Response:
        nonlocal received
        received += len(upstream.seen)
        upstream.seen.clear()  # a demo may run for days
        shown = {"upstream": received, "outage": upstream.override is not None}
        return JSONResponse(shown | _answers(counts), headers=headers())

    async def minted_tokens(_: Request) -> Response:
        return JSONResponse(tokens(), headers=headers())

    async def upstream_document(request: Request) -> Response:
        document = upstream.environments[0].find(request.path_params["session"])
        if document is None:
            return JSONResponse({"error": "Not found"}, 404, headers=headers())
        return JSONResponse(upstream.document(document), headers=headers())

    async def outage(request: Request) -> Response:
        upstream.override = _answer_500 if request.method == "PUT" else None
        return Response(status_code=204, headers=headers())

    return (
        Route("/", _file("playground.html")),
        *(Route(f"/demo/{name}", _file(name)) for name in _FILES),
        Route("/demo/tokens", minted_tokens),
        Route("/demo/totals", totals),
        Route("/demo/upstream/{session}", upstream_document),
        # A form of another site cannot send these methods.
        Route("/demo/outage", outage, methods=["PUT", "DELETE"]),
    )


def _answers(counts: Mapping[tuple[str | int, ...], float]) -> dict[str, object]:
    """Return how many requests of browsers the gateway answered, and the refusals by code."""
    browsers, refused = 0, Counter[str]()
    for key, number in counts.items():
        if key[0] != metrics.REQUESTS or key[1] == "preflight":
            continue
        _, _, status, code, *_ = key
        browsers += int(number)
        if int(status) >= HTTPStatus.BAD_REQUEST:
            refused[str(code)] += int(number)
    return {"browsers": browsers, "refused": refused}


async def _answer_500(_: Seen) -> Answer:
    return Answer(500, {"error": "The demo simulates an outage"})


def headers(name: str = "") -> dict[str, str]:
    """Return the header fields of the page's file *name*, or of its data."""
    ancestors = "'self'" if name.startswith("stranger") else "'none'"
    return {
        "content-security-policy": _POLICY.format(ancestors=ancestors),
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _file(name: str) -> Callable[[Request], Response]:
    path = Path(__file__).parent / name
    content, type_ = path.read_bytes(), _TYPES[path.suffix]

    def endpoint(_: Request) -> Response:
        return Response(content, headers=headers(name), media_type=type_)

    return endpoint

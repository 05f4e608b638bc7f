"""The playground's chat: the demo's route that shows both ends of a chat behind the gateway.

The page sends its messages to the gateway, and reads the answers from it. This route adds what no
browser may see: the records as upstream sent them, and the last message as the agent received it.
"""

import json
from typing import Any

import jwt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bff.demo.playground import headers
from bff.demo.upstream import PretendUpstream


def routes(upstream: PretendUpstream, identity_key: str, identity_field: str) -> tuple[Route, ...]:
    """Return the routes of the chat; the agent verifies identities with *identity_key*."""

    async def both_ends(request: Request) -> Response:
        channel = upstream.chats.channel(upstream.environments[0], request.path_params["session"])
        first = int(request.query_params.get("first", "0"))
        received = json.loads(channel.inputs[-1]) if channel.inputs else None
        body = {
            "records": channel.out[first:],
            "received": received,
            "speaker": _speaker(received, identity_key, identity_field),
        }
        return JSONResponse(body, headers=headers())

    return (Route("/demo/chat/{session}", both_ends),)


def _speaker(received: Any, key: str, field: str) -> str | None:
    """Tell who speaks, as an agent does: it believes the signed identity and nothing else."""
    metadata = ((received or {}).get("payload") or {}).get("metadata") or {}
    try:
        claims = jwt.decode(metadata.get(field, ""), key, algorithms=["HS256"], issuer="bff")
    except jwt.InvalidTokenError:
        return None
    actor: str = claims["act"]["sub"]
    return actor

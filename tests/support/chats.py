"""What tests of chats share: settings, requests, and streams as upstream sends them."""

import json
from typing import Any
from urllib.parse import quote

import httpx2
from support.world import OFF, ORIGIN, World

from bff.demo.upstream import Answer, Seen

AGENT_KEY = "agent-key-sentinel-0123456789abcdef"
ROUTE = "/realtime/v1/sessions/"
CHAT = OFF | {"BFF_CHAT": "true"}
"""Settings with chats, without the limits of other requests."""
IDENTITY = {"BFF_IDENTITY_FIELD": "__bff", "BFF_IDENTITY_KEY": AGENT_KEY}
BOTH = ("read:sessions:chat-1", "write:sessions:chat-1")
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "x-stream-version": "v2"}


def message(text: str = "hello", **changes: Any) -> dict[str, Any]:
    """A message of the official transport; *changes* of its payload."""
    said = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
    payload = {"message": said, "chatId": "chat-1", "trigger": "submit-message"}
    return {"kind": "message", "payload": payload | changes}


def batch(*bodies: Any, first: int = 0) -> bytes:
    """An event with one data record for each body."""
    records = [
        {"seq_num": first + n, "timestamp": 1, "headers": [], "body": json.dumps({"data": body})}
        for n, body in enumerate(bodies)
    ]
    return b"event: batch\nid: 1,1,1\ndata: %b\n\n" % json.dumps({"records": records}).encode()


async def append(
    world: World,
    body: Any = None,
    *,
    id_: str = "chat-1",
    token: str | None = None,
    **headers: str,
) -> httpx2.Response:
    """Send a message as a page does."""
    sent = {"authorization": f"Bearer {token or world.token(*BOTH)}", "origin": ORIGIN}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body or message()).encode()
    path = f"{ROUTE}{quote(id_, safe='')}/in/append"
    return await world.browser.post(path, headers=sent, content=content)


async def out(
    world: World, *, id_: str = "chat-1", token: str | None = None, **headers: str
) -> httpx2.Response:
    """Read a stream to its end."""
    sent = {"authorization": f"Bearer {token or world.token(*BOTH)}", "origin": ORIGIN}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"{ROUTE}{quote(id_, safe='')}/out"
    return await world.browser.get(path, headers=sent | {"accept": "text/event-stream"})


def streams(world: World, body: bytes = b"", **headers: str) -> None:
    """Let upstream answer each stream with *body*, and everything else as usual."""

    async def override(seen: Seen) -> Answer | None:
        if not seen.raw_path.endswith("/out"):
            return None
        return Answer(200, body, EVENTS | {n.replace("_", "-"): v for n, v in headers.items()})

    world.upstream.override = override


def inputs(world: World, id_: str = "chat-1") -> list[bytes]:
    """The bodies that upstream stored for a session."""
    return world.upstream.chats.channel(world.upstream.environments[0], id_).inputs


def sent(world: World) -> list[tuple[str, str]]:
    """Method and path of each request to a chat route upstream."""
    return [(s.method, s.raw_path) for s in world.upstream.seen if s.raw_path.startswith(ROUTE)]


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("code", "")

"""The chat routes of the pretend Trigger.dev API, with an agent that answers each message.

It imitates the measured behaviour of the server. It stores an append as it comes, once for each
part id. A stream starts after `Last-Event-ID`, and a finished turn brings a token. The records have
the forms of several writers, with commands to the storage between them.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any
from urllib.parse import unquote

import jwt

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Record = dict[str, Any]
Answered = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body and headers of an answer in one piece."""

ROUTE = re.compile(r"/realtime/v1/sessions/([^/]+)/(in/append|out)")
MAX_APPEND_BYTES = 1024 * 1024
DEFAULT_SECONDS = 60
MAX_SECONDS = 600
PING_SECONDS = 5.0
TURN_END = ["trigger-control", "turn-complete"]
"""The header of the record that ends a turn."""
_CLOSED = "Cannot append to a closed session"


@dataclass
class Channel:
    """Both directions of one session's chat."""

    out: list[Record] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    """Bodies as they came; the index is the `seq`."""
    parts: set[str] = field(default_factory=set)
    stopped: bool = False
    """The browser stopped the turn."""
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)
    """An agent answers one message after the other."""
    _readers: dict[asyncio.Event, asyncio.AbstractEventLoop] = field(default_factory=dict)

    def write(self, **record: Any) -> None:
        """Add a record to the stream; any thread may."""
        self.out.append({"seq_num": len(self.out), **record})
        for event, loop in list(self._readers.items()):
            loop.call_soon_threadsafe(event.set)

    @property
    def idle(self) -> bool:
        """Whether the last turn is complete."""
        headers = (name for record in self.out[-2:] for name in record.get("headers") or ())
        return TURN_END in headers

    async def read(self, start: int, seconds: float, ping: float) -> AsyncIterator[list[Record]]:
        """Yield the records from *start* as they come, and an empty list for each ping."""
        loop = asyncio.get_running_loop()
        ends, event = loop.time() + seconds, asyncio.Event()
        self._readers[event] = loop
        try:
            while True:
                event.clear()
                if records := self.out[start:]:
                    start += len(records)
                    yield records
                    continue
                left = ends - loop.time()
                if left <= 0:
                    return
                try:
                    await asyncio.wait_for(event.wait(), min(ping, left))
                except TimeoutError:
                    yield []
        finally:
            del self._readers[event]


class PretendChats:
    """The chats of all environments.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.channels: dict[tuple[str, str], Channel] = {}
        self.pace = 0.01
        """Seconds between two deltas of an answer."""
        self.answer: Callable[[str], str] = "{} — answered, üñí 😀 done.".format
        """Makes the agent's answer to a text."""
        self.ping = PING_SECONDS
        self.legacy = False
        """Turns end with a record of the old form."""
        self.closed_status = 400
        """The status for a message to a closed session: 409 since 4.8."""
        self.cut_after = 0
        """Records after which each stream is cut; 0 for never."""
        self.version = "v2"
        self._clock = clock
        self._turns: set[asyncio.Task[None]] = set()

    def channel(self, environment: Any, id_: str) -> Channel:
        """Return a session's channel by either id; browsers may read it before the session is."""
        document = environment.find(id_)
        key = (document["externalId"] or document["id"]) if document else id_
        return self.channels.setdefault((environment.id, key), Channel())

    async def serve(
        self,
        request: Any,
        receive: Receive,
        send: Send,
        *,
        credential: tuple[Any, tuple[str, ...] | None],
    ) -> Answered | None:
        """Return the answer to a request for one of the two routes, or None if it is a stream.

        *credential* is the sender's. A stream has been sent.
        """
        match = ROUTE.fullmatch(request.raw_path)
        assert match is not None  # noqa: S101  the caller matched it
        environment, scopes = credential
        id_, append = unquote(match[1]), match[2] != "out"
        document = environment.find(id_)
        if request.method != ("POST" if append else "GET"):
            return 405, {"error": "Method not allowed"}, {}
        if document is None and append:
            return 404, {"error": "Resource not found"}, {}
        if document is None and id_.startswith("session_"):
            return 404, {"error": "Not found"}, {"x-should-retry": "false"}
        if scopes is not None and not allows(
            scopes, "write" if append else "read", document or {"id": None, "externalId": id_}
        ):
            return 403, UNAUTHORIZED, {}
        if append:
            body = await read_body(receive, MAX_APPEND_BYTES)
            return self._append(request.header("x-part-id"), body, environment, document)
        streaming = asyncio.ensure_future(
            self._stream(request, send, self.channel(environment, id_))
        )
        leaving = asyncio.ensure_future(_left(receive))
        await asyncio.wait((streaming, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if streaming.done():
            await streaming
        streaming.cancel()
        return None

    # -- messages

    def _append(self, part: str | None, body: bytes, environment: Any, document: Any) -> Answered:
        if len(body) > MAX_APPEND_BYTES:
            return 413, {"error": "Request body too large"}, {}
        if document["closedAt"] is not None:
            answer: dict[str, Any] = {"ok": False, "error": _CLOSED}
            if self.closed_status != 400:  # noqa: PLR2004
                answer |= {"code": "session_closed", "closedReason": document["closedReason"]}
            return self.closed_status, answer, {}
        channel = self.channel(environment, document["id"])
        if part is not None and part in channel.parts:
            return 200, {"ok": True}, {}
        channel.parts.add(part or f"made-{len(channel.inputs)}")
        channel.inputs.append(body)
        seq = len(channel.inputs) - 1
        self._act(environment, document, channel, seq)
        return 200, {"ok": True, "seq": seq}, {}

    def _act(self, environment: Any, document: Any, channel: Channel, seq: int) -> None:
        try:
            chunk = json.loads(channel.inputs[seq])
            kind, payload = chunk["kind"], chunk.get("payload") or {}
        except (ValueError, TypeError, KeyError):
            return  # the server stores it, and no agent reads it
        if kind == "stop":
            channel.stopped = True
            return
        turn = asyncio.create_task(self._turn(environment, document, channel, seq, payload))
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)

    async def _turn(
        self, environment: Any, document: Any, channel: Channel, seq: int, payload: Any
    ) -> None:
        async with channel.turns:
            channel.stopped = False
            await self._answer_turn(channel, seq, payload)
            self._complete(environment, document, channel, seq)

    async def _answer_turn(self, channel: Channel, seq: int, payload: Any) -> None:
        """Answer one message, as an agent streams the answer of its model."""
        numbers = itertools.count()

        def chunk(**data: Any) -> None:
            number = next(numbers)
            body = json.dumps({"data": data, "id": f"t{seq}-{number}"})
            headers: dict[str, Any] = {} if number % 2 else {"headers": []}  # both occur
            channel.write(timestamp=round(self._clock() * 1000), body=body, **headers)

        said = _said(payload)
        message = payload.get("message") or {}
        if payload.get("trigger") == "action":
            return
        if "tool" in said:
            for data in _tool_call(seq):
                chunk(**data)
        else:
            id_ = f"text-{seq}"
            chunk(type="start", messageId=f"answer-{seq}")
            for part in message.get("parts") or ():
                if part.get("state") == "approval-responded":
                    chunk(type="tool-output-available", toolCallId=part["toolCallId"], output=21)
            chunk(type="start-step")
            chunk(type="text-start", id=id_)
            for word in re.findall(r"\S+\s*", self.answer(said)):
                if channel.stopped:
                    chunk(type="abort")
                    break
                chunk(type="text-delta", id=id_, delta=word)
                await asyncio.sleep(self.pace)
            else:
                chunk(type="text-end", id=id_)
                chunk(type="finish-step")
                chunk(type="finish")

    def _complete(self, environment: Any, document: Any, channel: Channel, seq: int) -> None:
        token = self._wide_token(environment, document)
        now = round(self._clock() * 1000)
        if self.legacy:
            data = {"type": "trigger:turn-complete", "publicAccessToken": token}
            body = json.dumps({"data": data, "id": f"t{seq}-end"})
            channel.write(timestamp=now, headers=[], body=body)
            return
        headers = [
            TURN_END,
            ["public-access-token", token],
            ["session-in-event-id", str(seq)],
            ["session-in-consumed-id", str(seq)],
        ]
        channel.write(timestamp=now, headers=headers, body="")
        channel.write(timestamp=now, headers=[["", "trim"]], body="AAAA")

    def _wide_token(self, environment: Any, document: Any) -> str:
        """Mint the token of a finished turn: it reads more than a browser should."""
        run, id_ = document["currentRunId"], document["externalId"] or document["id"]
        claims = {
            "iss": "https://id.trigger.dev",
            "aud": "https://api.trigger.dev",
            "sub": environment.id,
            "pub": True,
            "scopes": [f"read:runs:{run}", f"read:sessions:{id_}", f"write:sessions:{id_}"],
            "exp": int(self._clock()) + 3600,
        }
        return jwt.encode(claims, environment.root_key, algorithm="HS256")

    # -- the stream

    async def _stream(self, request: Any, send: Send, channel: Channel) -> None:
        start = int(request.header("last-event-id") or "-1") + 1
        if start == 0 and request.header("x-trigger-stream-start") == "latest":
            start = len(channel.out)
        wish = int(request.header("timeout-seconds") or DEFAULT_SECONDS)
        seconds = min(max(wish, 1), MAX_SECONDS)
        idle = request.header("x-peek-settled") == "1" and channel.idle
        lines = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"access-control-allow-origin", (request.header("origin") or "*").encode()),
            (b"access-control-expose-headers", b"*, x-stream-version, x-session-settled"),
            (b"x-stream-version", self.version.encode()),
        ]
        if idle:
            lines.append((b"x-session-settled", b"true"))
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        passed = 0
        async for records in channel.read(start, 0 if idle else seconds, self.ping):
            for part in self._parts(records):
                await send({"type": "http.response.body", "body": _event(part), "more_body": True})
                passed += len(part)
                if self.cut_after and passed >= self.cut_after:
                    raise ConnectionResetError  # the server closes without an end
        await send({"type": "http.response.body", "body": b""})

    def _parts(self, records: list[Record]) -> list[list[Record]]:
        if not self.cut_after:
            return [records]
        return [records[i : i + 1] for i in range(len(records))] or [[]]


async def read_body(receive: Receive, most: float = inf) -> bytes:
    """Read a body; one with more than *most* bytes is not read to its end."""
    body, more = b"", True
    while more and len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def allows(scopes: tuple[str, ...], allowed: str, document: Mapping[str, Any]) -> bool:
    """Whether *scopes* allow the action on *document*: any scope may cover either of its ids."""
    for scope in scopes:
        parts = scope.split(":") if isinstance(scope, str) else [""]
        action, type_, id_ = parts[0], ":".join(parts[1:2]), ":".join(parts[2:])
        if action == "admin" and not type_:
            return True
        if action not in (allowed, "*"):
            continue
        if type_ == "all":
            return True
        if type_ == "sessions" and id_ in ("", document["id"], document["externalId"]):
            return True
    return False


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(records: list[Record]) -> bytes:
    if not records:
        return b"event: ping\ndata: {}\n\n"
    data = json.dumps({"records": records}, ensure_ascii=False, separators=(",", ":"))
    last = records[-1]["seq_num"]
    return f"event: batch\nid: {last},{len(records)},{len(data)}\ndata: {data}\n\n".encode()


def _tool_call(seq: int) -> list[dict[str, Any]]:
    """The chunks of an answer that asks for the approval of a tool call."""
    call = f"call-{seq}"
    return [
        {"type": "start", "messageId": f"answer-{seq}"},
        {"type": "start-step"},
        {
            "type": "tool-input-available",
            "toolCallId": call,
            "toolName": "weather",
            "input": {"city": "Kyiv"},
        },
        {"type": "tool-approval-request", "toolCallId": call, "approvalId": f"approval-{seq}"},
        {"type": "finish-step"},
        {"type": "finish"},
    ]


def _said(payload: Mapping[str, Any]) -> str:
    parts = (payload.get("message") or {}).get("parts") or []
    text = " ".join(str(part.get("text") or part.get("state")) for part in parts)
    return text or str(payload.get("trigger"))


UNAUTHORIZED = {
    "error": "Unauthorized",
    "code": "unauthorized",
    "param": "access_token",
    "type": "authorization",
}

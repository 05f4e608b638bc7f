"""Targets for fuzzing: each takes bytes that anyone may send, and raises if a promise breaks.

`make fuzz` lets a coverage-guided fuzzer choose the bytes. In the suite hypothesis chooses them,
for a short time.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, ip_address
from typing import Any
from urllib.parse import unquote_to_bytes

from support import wire
from support.world import OFF, Clock, World, claims, sign
from uvicorn.server import ServerState

from bff.chat.messages import KEPT, MessagePolicy
from bff.chat.records import RecordFilter
from bff.demo.upstream import can_read, session
from bff.errors import Refused, UpstreamInvalid
from bff.limits import client_address
from bff.replicas import codec
from bff.request import RequestHead
from bff.response import Response
from bff.server.connection import BoundedProtocol
from bff.server.run import config
from bff.sessions import ids
from bff.sessions.document import parse_document
from bff.sessions.policy import DEFAULT_FIELDS, Policy
from bff.tokens.revocations import Revocation


def segment(data: bytes) -> None:
    """A segment is refused, or its id reaches upstream as one segment."""
    try:
        id_ = ids.parse_id(data)
    except Refused as refused:
        assert refused.refusal.code == "invalid_session_id"
        return
    path = ids.path(id_)
    last = path[len(ids.ROUTE) :]
    assert path.encode().startswith(ids.ROUTE)
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", last)
    assert last not in (".", "..")
    assert unquote_to_bytes(last) == unquote_to_bytes(data) == id_.encode()


def scopes(data: bytes) -> None:
    """Scopes grant the same as upstream grants for them."""
    texts = data.decode("latin-1").split("\n")
    document = {"id": "session_1", "externalId": texts.pop() or None}
    granted = ids.grant(texts)
    assert granted.covers("session_1", document["externalId"]) == can_read(tuple(texts), document)


def document(data: bytes) -> None:
    """Only named fields are shown, and the SDK can read them."""
    rules, _, body = data.partition(b"\n")
    paths = tuple(p for p in rules.decode("latin-1").split(",") if re.fullmatch(r"[\w.*-]+", p))
    paths = tuple(path for path in paths if all(path.split(".")))
    try:
        changes = json.loads(body)
    except (ValueError, RecursionError):
        changes = {}
    whole = session(1, "chat") | (changes if isinstance(changes, dict) else {"metadata": changes})
    try:
        read = parse_document(json.dumps(whole).encode(), requested_id=str(whole["id"]))
    except UpstreamInvalid:
        return
    shown = Policy(fields=DEFAULT_FIELDS, metadata=paths, tags=("public:*",)).project(read)
    assert set(shown) <= {*DEFAULT_FIELDS, "metadata", "tags"}
    assert all(tag.startswith("public:") for tag in shown["tags"])
    assert shown["metadata"] is None or isinstance(shown["metadata"], dict)
    leaves = set(_leaves(read["metadata"]))
    for path, value in _leaves(shown["metadata"] or {}):
        assert (path, value) in leaves
        steps = [rule.split(".") for rule in paths]
        assert any(
            len(rule) <= len(path)
            and all(s in (at, "*") for s, at in zip(rule, path, strict=False))
            for rule in steps
        ), path
    for name in ("id", "type", "taskIdentifier", "createdAt", "updatedAt"):
        assert isinstance(shown[name], str)
    for name in ("externalId", "metadata", "closedAt", "closedReason", "expiresAt"):
        assert name in shown


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    elif path:
        yield path, json.dumps(value)


_SPACE = codec.Namespace("origin", "policy", b"a key that no input can know")


def stored(data: bytes) -> None:
    """A value of the store decodes to what its digest and seal cover, or not at all."""
    about, _, body = data.partition(b"\n")
    concealed = codec.conceal(_SPACE.sealing_key, about.decode("utf-8", "replace"))
    head, text = codec._FORMAT + b" 1", concealed + b"\n" + body
    tag = codec._tag(_SPACE.sealing_key, "space", head + b"\n" + text)
    for value in (data, b"%b %b\n%b" % (head, tag, text)):
        assert codec.decode_introspection(_SPACE, b"", "chat-1", value) is None, "without the key"
        found = codec.decode_copy("space", "chat-1", value, key=_SPACE.sealing_key)
        if found is not None:
            assert "chat-1" in (found.id, found.external_id)
            assert isinstance(found.id, str)
            assert isinstance(found.external_id, str | None)
            assert isinstance(found.closed, bool)
            assert isinstance(found.missing, bool)
            assert isinstance(found.loaded + found.lifetime, float)


def revocation(data: bytes) -> None:
    """A message of a replica is a revocation or a ValueError."""
    try:
        read = Revocation.decode(data.decode("utf-8", "replace"))
    except ValueError:
        return
    assert read.before >= read.before, "a number"
    assert read.until >= read.until, "a number"
    assert Revocation.decode(read.encode()) == read


def forwarded(data: bytes) -> None:
    """The address is the peer's, or one that a trusted proxy sent."""
    trusted = [IPv4Network("10.0.0.0/8")]
    values = data.split(b"\n")
    assert client_address.browser_address("192.0.2.1", values, trusted) == "192.0.2.1"
    address = client_address.browser_address("10.0.0.1", values, trusted)
    ip_address(address)
    client_address.address_key(data.decode("latin-1"))


class _Transport(asyncio.Transport):
    """Records what is written, and whether the connection was closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("127.0.0.1", 80)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed, "nothing is written after the close"
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore the limits: nothing is kept."""

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Wire:
    """The fast path and ASGI answer the same bytes alike, and never with a failure."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._clock = Clock()
        self._world = World(self._clock, **OFF, BFF_TOKEN_COOKIE="__Host-t")
        self._runner.run(self._world.start(**self._world._changes))
        token = sign(claims(self._clock.wall, "read:sessions:chat-1", exp=9_000_000_000))
        self._token = token.encode()
        self._runner.run(self._world.get("chat-1"))

    def __call__(self, data: bytes) -> None:
        """Feed *data*, in which ``$T`` stands for a good token and NUL bytes divide the reads."""
        parts = [
            part for part in data.split(b"\0\0") if part
        ]  # a transport never delivers zero bytes
        reads = [part.replace(b"$T", self._token) for part in parts]
        answers = [self._runner.run(self._answers(reads, fast=fast)) for fast in (False, True)]
        assert answers[0] == answers[1], answers
        statuses = [int(s) for s in re.findall(rb"(?m)^HTTP/1.1 (\d+)", answers[0][0])]
        assert all(status < 500 for status in statuses), statuses

    def close(self) -> None:
        self._runner.run(self._world.__aexit__())
        self._runner.close()

    async def _answers(self, reads: list[bytes], *, fast: bool) -> tuple[bytes, bool]:
        service = self._world.service
        settings = config(service.browser_app, lifespan=False)
        settings.load()
        kind: Any = service.protocol if fast else service.bounded_protocol
        assert fast is (kind is not service.bounded_protocol)
        protocol: BoundedProtocol = kind(config=settings, server_state=ServerState(), app_state={})
        transport = _Transport()
        protocol.connection_made(transport)
        for read in reads:
            if not transport.closed:
                protocol.data_received(read)
            for _ in range(200):
                await asyncio.sleep(0)
                if not protocol.tasks:
                    break
        protocol.connection_lost(None)
        # These headers differ between any two answers.
        same = re.sub(rb"(x-request-id|date|age|server-timing): [^\r]*\r\n", b"", transport.written)
        return same, transport.closed


class Decision:
    """No head causes an exception or a 5xx, and no answer lets a header in."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._world = World(self._clock, **OFF, BFF_TOKEN_COOKIE="__Host-t")
        self._runner = asyncio.Runner()
        self._runner.run(self._world.start(**self._world._changes))

    def close(self) -> None:
        self._runner.run(self._world.__aexit__())
        self._runner.close()

    def __call__(self, data: bytes) -> None:
        """Decide on lines: method, path, query, then names and values of headers in turn."""
        method, path, query, *lines = [*data.split(b"\n"), b"", b""][: max(3, data.count(b"\n"))]
        headers = [(n.lower(), v) for n, v in zip(lines[::2], lines[1::2], strict=False)]
        head = RequestHead.read(method.decode("latin-1"), path, query, headers, "192.0.2.1")
        answer = self._world.service.gateway.decide(head, *self._clock())
        assert isinstance(answer, Response), "without a good token the gateway loads nothing"
        assert answer.status in (200, 204, 400, 401, 404, 405, 410, 429)
        assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", answer.head)
        assert b"\n\n" not in answer.head.replace(b"\r", b"")


_SECRET = b"eyJhbGciOiJIUzI1NiJ9.eyJzY29wZXMiOltdfQ.sentinel"
_KNOWN_EVENTS = (b"event: batch\n", b"event: ping\n", b"event: error\n", b"data: [DONE]")


def stream(data: bytes) -> None:
    """Any cut of a stream gives the same events, of known kinds, without upstream's tokens."""
    places, _, text = data.partition(b"\n")
    # A token stands wherever upstream may put one: never within a chunk of the app.
    text = text.replace(b"$T", _SECRET)
    cuts = sorted({min(place * 4, len(text)) for place in places})
    written = []
    for ends in ([], cuts):
        one = RecordFilter(defaultdict(int), max_event_bytes=4096)
        parts = zip([0, *ends], [*ends, len(text)], strict=True)
        written.append(b"".join(one.feed(text[a:b]) for a, b in parts))
    assert written[0] == written[1]
    for event in written[0].split(b"\n\n")[:-1]:
        assert event.startswith(_KNOWN_EVENTS), event
        if event.startswith(b"event: batch\n"):
            for record in json.loads(event.partition(b"data: ")[2])["records"]:
                assert record.keys() <= {"seq_num", "timestamp", "headers", "body"}
                assert _SECRET.decode() not in json.dumps(record["headers"])
                if not _is_of_the_app(record["body"]):
                    assert _SECRET.decode() not in record["body"]


def _is_of_the_app(body: str) -> bool:
    chunk = json.loads(body).get("data") if body.startswith("{") else body
    return not (isinstance(chunk, dict) and str(chunk.get("type")).startswith("trigger:"))


def message(data: bytes) -> None:
    """A body is refused, or written anew with allowed keys and the gateway's identity."""
    policy = MessagePolicy(identity_field="__bff")
    try:
        read = policy.read(data)
        read.check_chat(("chat-1", "s"))
    except Refused as refused:
        assert refused.refusal.code in ("invalid_message", "foreign_chat")
        return
    written = json.loads(read.encode("chat-1", lambda: "signed"))
    if written["kind"] == "stop":
        assert written == {"kind": "stop"}
        return
    payload = written["payload"]
    assert written.keys() == {"kind", "payload"}
    assert payload.keys() <= KEPT
    assert payload["chatId"] == "chat-1"
    assert payload["metadata"]["__bff"] == "signed"
    assert payload["trigger"] in ("submit-message", "regenerate-message", "action")


def answer(data: bytes) -> None:
    """An answer of upstream is read as httpx2 reads it, or refused; two NULs part the reads."""
    reads = data.split(b"\0\0")

    async def both() -> None:
        mine = await wire.ours(reads)
        assert mine in (wire.REFUSED, await wire.theirs(reads))

    asyncio.run(both())


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "segment": lambda: segment,
    "scopes": lambda: scopes,
    "document": lambda: document,
    "stored": lambda: stored,
    "revocation": lambda: revocation,
    "forwarded": lambda: forwarded,
    "stream": lambda: stream,
    "message": lambda: message,
    "decision": Decision,
    "wire": Wire,
    "answer": lambda: answer,
}

_RECORDS = b'data: {"records":[%b]}'
_DELTA = b'{"seq_num":1,"body":"{\\"data\\":{\\"type\\":\\"text\\"},\\"id\\":\\"p\\"}"}'
_TURN = (
    b'{"seq_num":2,"headers":[["trigger-control","turn-complete"],["public-access-token","$T"]]}'
)
_LEGACY = (
    b'{"seq_num":3,"body":"{\\"data\\":{\\"type\\":\\"trigger:turn-complete\\",\\"t\\":\\"$T\\"}}"}'
)

_GOOD = b"GET /api/v1/sessions/chat-1 HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer $T\r\n\r\n"
SEEDS: dict[str, list[bytes]] = {
    "segment": [b"chat-1", b"a%2Fb", b"..%2f", b"%252e", b"session_1", b"%C3%BC"],
    "scopes": [b"read:sessions:a\nadmin\na", b"*:all\n", b"read:sessions\nb"],
    "document": [b'plan,a.*.b\n{"metadata":{"plan":1,"a":{"x":{"b":[1]}}},"tags":["public:a"]}'],
    "stored": [b'["space","chat-1",null,false,false,1.5,2.5]\n{}', b'["space","x","chat-1"]\n'],
    "revocation": [
        b'{"kind":"jti","value":"a","before":null,"until":5}',
        b'{"kind":"jti","value":"a","before":0,"until":5}',
        b'{"kind":"all","value":"","before":NaN,"until":5}',
        b'{"kind":"all","value":"","before":5,"until":"nan"}',
    ],
    "forwarded": [b"1.2.3.4, 10.0.0.2", b"[::1]:80,::ffff:10.1.1.1\n9.9.9.9"],
    "stream": [
        b"\x05\x10\nevent: batch\nid: 1,1\n" + _RECORDS % (_DELTA + b"," + _TURN) + b"\n\n",
        b"\x09\n\xef\xbb\xbfevent: batch\r\n" + _RECORDS % _LEGACY + b"\r\n\r\nevent: ping\rdata\r",
        b"\nevent: error\ndata: $T\n\ndata: [DONE]\n\n: $T\n\nevent: batch\ndata: $T\n\n",
    ],
    "message": [
        b'{"kind":"stop"}',
        b'{"kind":"message","payload":{"chatId":"s","trigger":"action","metadata":{"__bff":1}}}',
        b'{"kind":"message","payload":{"chatId":"s","trigger":"submit-message","message":%b}}'
        % b'{"role":"user","parts":[]}',
        b'{"kind":"message","payload":{"chatId":"s","trigger":"action","action":1}}',
    ],
    "decision": [
        b"GET\n/api/v1/sessions/chat-1\n\nauthorization\nBearer x\norigin\nhttps://app.example.com",
        b"GET\n/api/v1/sessions\npage[size]=2\ncookie\n__Host-t=a\nsec-fetch-site\nsame-origin",
    ],
    "wire": [
        _GOOD,
        _GOOD + _GOOD,
        _GOOD[:40] + b"\0\0" + _GOOD[40:],
        _GOOD + b"\0\0" + _GOOD + b"\0\0" + _GOOD,
        _GOOD.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 3\r\nHost") + b"abc",
        _GOOD.replace(b"GET", b"PUT").replace(b"Host", b"Transfer-Encoding: chunked\r\nHost")
        + b"1\r\na\r\n0\r\n\r\n" + _GOOD,
        _GOOD.replace(b"Host", b"Connection: close\r\nHost") + _GOOD,
        _GOOD.replace(b"chat-1", b"chat-2?a=b"),
        b"OPTIONS * HTTP/1.1\r\n\r\n" + _GOOD + b"GARBAGE\r\n\r\n",
    ],
    "answer": [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n{}",
        b"HTTP/1.1 200 x\r\ntransfer-encoding:chunked\r\n\r\n1;a\r\n{\r\n\0\x001\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.1 103 x\r\nlink: a\r\n\r\nHTTP/1.1 404 x\r\nconnection: close\r\n\r\n",
    ],
}  # fmt: skip
WORDS = [
    *(b"\r\n", b"\n", b"\0\0", b"$T", b"HTTP/1.0", b"HTTP/1.1", b"Host:", b"Connection: close"),
    *(
        b"Transfer-Encoding: chunked",
        b"Content-Length: 0",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
    ),
    *(b"%2e%2e%2f", b"%00", b"?", b"#", b"session_", b"If-None-Match: *", b"Origin: null"),
    *(
        b"event: batch\n",
        b"data: ",
        b"\r",
        b"\\u0074",
        b"trigger:",
        b'"seq_num":1',
        b'"kind":"stop"',
    ),
    *(b'"role":"system"', b'"trigger":"close"', b'"sessionId":"x",', b'"payload":{'),
    *(b'"metadata":', b'"id":"session_1"', b"Infinity", b"1e999", b"[[[[", b"authorization\n"),
]
"""Pieces that the suite combines; a coverage-guided fuzzer needs none."""

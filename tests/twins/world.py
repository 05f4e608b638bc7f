"""Runs a history in one of its two worlds, and records all that observers can see."""

import asyncio
import contextvars
import json
import re
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, unquote

from support.differential import FakeTransport, Side, request
from support.kinds import Kind
from support.standin import Shared, StandIn
from support.world import ORIGIN, OWN_KEY, ROOT_KEY, World, pretend
from twins import combinations
from twins.history import (
    NUMBERS,
    PEOPLE,
    Ask,
    Change,
    History,
    Person,
    Purge,
    Revoke,
    Step,
    Weather,
)
from twins.loop import VirtualClock, VirtualLoop

from bff.demo.upstream import Answer, Document, Seen
from bff.digests import etag
from bff.request import RequestHead
from bff.response import Response

LATENCY = 0.03
"""Seconds of a call upstream."""
PATIENCE = 30.0
"""Seconds after the last step in which every request must be answered."""
_INSTANT = 0.001
"""Seconds between a request and a change of upstream that come at the same moment."""
_CURSOR = re.compile(rb'"(?:next|previous)":"([^"]+)"')
_REQUEST_ID = re.compile(rb"(?<=\r\nx-request-id: )[^\r]*")


@dataclass(eq=False)
class Exchange:
    """A request and all that its caller can see of it."""

    step: Ask
    began: float
    answer: bytes = b""
    """Its bytes, without the id of the request; empty without an answer."""
    request_id: bytes = b""
    ended: float | None = None
    decisions: list[str] = field(default_factory=list)
    """For each decision: "answer" or "wait"."""

    @property
    def took(self) -> float | None:
        """Seconds on the virtual clock; None without an answer."""
        return None if self.ended is None else self.ended - self.began

    @property
    def status(self) -> int:
        return int(self.answer[9:12] or b"0")


@dataclass(frozen=True)
class Call:
    """A request that upstream received."""

    at: float
    path: str
    credential: str
    caused_by: Exchange | None = field(compare=False)

    @property
    def id(self) -> str:
        return unquote(self.path.rpartition("/")[2])


@dataclass
class Record:
    """A history as one world lived it."""

    exchanges: list[Exchange] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


_exchange: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("x", default=None)
"""The request that a task or callback is for."""


class _Connection(FakeTransport):
    """A connection of one request."""

    def __init__(self, address: str, exchange: Exchange, done: "asyncio.Future[None]") -> None:
        super().__init__()
        self._address = address
        self._exchange = exchange
        self._done = done

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._address, 40000
        return super().get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        head, end, body = bytes(self.sent).partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        bodiless = self._exchange.step.method == "HEAD" or head[9:12] in (b"204", b"304")
        if end and (bodiless or length is None or len(body) >= int(length[1])):
            self._end()

    def close(self) -> None:
        super().close()
        self._end()

    def write_eof(self) -> None:
        super().write_eof()
        self._end()

    def _end(self) -> None:
        if self._done.done():
            return
        data, exchange = bytes(self.sent), self._exchange
        found = _REQUEST_ID.search(data)
        exchange.request_id = found[0] if found else b""
        exchange.answer = _REQUEST_ID.sub(b"*", data)
        exchange.ended = asyncio.get_running_loop().time()
        self._done.set_result(None)


class _Side(Side):
    """A process with its server's state."""

    def send(self, address: str, data: bytes, exchange: Exchange) -> "asyncio.Future[None]":
        done = asyncio.get_running_loop().create_future()
        transport = _Connection(address, exchange, done)
        make: Any = self.config.http_protocol_class
        transport.protocol = make(config=self.config, server_state=self.state, app_state={})
        transport.protocol.connection_made(transport)
        transport.protocol.data_received(data)
        done.add_done_callback(lambda _: transport.close())
        return done


@cache
def _kind(name: str) -> Kind:
    return Kind(name, Path(tempfile.mkdtemp(prefix="twins-")))


class Twin:
    """One of the two worlds of a history."""

    def __init__(self, history: History, side: int) -> None:
        self._history = history
        self._side = side
        self._weather = "fine"
        self._secrets = {name: pair[side] for name, pair in history.secrets.items()}
        self._record = Record()
        self._tokens: dict[str, str] = {}
        self._cursors: dict[str, list[str]] = {}
        self._pending: set[asyncio.Future[None]] = set()
        verify = history.combination["verify"]
        self._kind = _kind({"provider": "source"}.get(verify, verify.rpartition(",")[2]))
        self._both_keys = verify == "local,upstream"

    def run(self) -> Record:
        """Live through the history."""
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(self._run())
        return self._record

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop, self._clock = loop, VirtualClock(loop)
        self._began, self._wall = self._clock()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            for step in self._history.steps:
                await self._sleep_until(step.at)
                if not isinstance(step, Ask):
                    # Requests of the same moment end first, in however many turns of the loop.
                    await asyncio.sleep(_INSTANT)
                if self._side in step.worlds:
                    await self._take(step)
            await asyncio.sleep(PATIENCE)

    async def _sleep_until(self, at: float) -> None:
        if self._began + at > self._loop.time():
            woken = self._loop.create_future()
            self._loop.call_at(self._began + at, woken.set_result, None)
            await woken

    async def _start(self, stack: AsyncExitStack) -> None:
        combination = self._history.combination
        shared = Shared(self._loop.time)
        upstream = pretend(lambda: self._clock.wall)
        upstream.override = self._override
        self._sessions = upstream.environments[0].sessions
        for name in NUMBERS:
            self._change(name)
        settings = combinations.environ(combination) | self._kind.settings
        if self._both_keys:
            settings |= {"BFF_SIGNING_KEYS": OWN_KEY, "BFF_VERIFY": "local,upstream"}
        self._processes = []
        with patch("bff.app.Store", partial(_connect, shared)):
            for _ in range(int(combination["processes"])):
                world = World(self._clock, **settings)
                world.upstream = upstream
                await stack.enter_async_context(world)
                # They look at files and measure the loop, which would take most of the time.
                await world.service.background.stop("settings_watch", "loop_lag")
                self._processes.append(_Side(world, fast=combination["path"] == "fast"))
        for process in self._processes:
            gateway = process.world.service.gateway
            gateway.decide = partial(_note, gateway.decide)
        policy = self._processes[0].world.service.gateway.config.default_policy
        self._tags = b", ".join(
            etag(json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode())
            for shown in map(policy.project, self._secret_documents())
        )

    def _secret_documents(self) -> list[Document]:
        """The documents of secret sessions in both worlds: both send the same entity tags."""
        return [
            secret.document(NUMBERS[name])
            for name in ("X", "Y")
            for secret in self._history.secrets[name]
        ]

    # -- steps

    async def _take(self, step: Step) -> None:
        match step:
            case Ask():
                self._ask(step)
            case Weather(kind=kind):
                self._weather = kind
            case Change(name=name, secret=secret):
                # The ids of a session never change.
                kept = self._secrets[name].external_id
                self._secrets[name] = replace(secret, external_id=kept)
                self._change(name)
            case Purge(id=id_):
                for process in self._reached():
                    response = await process.world.ops.delete(
                        f"/cache/sessions/{quote(id_, safe='')}"
                    )
                    assert response.status_code in (204, 400), response.text
            case Revoke(kind=kind, value=value):
                for process in self._reached():
                    response = await process.world.ops.post("/revocations", json={kind: value})
                    assert response.status_code == 200, response.text

    def _reached(self) -> list[_Side]:
        """The processes to which an operator sends an order: replicas tell one another."""
        return self._processes[: 1 if self._history.combination["store"] == "on" else None]

    def _change(self, name: str) -> None:
        secret, number = self._secrets[name], NUMBERS[name]
        document = secret.document(number)
        self._sessions.pop(document["id"], None)
        if secret.exists:
            self._sessions[document["id"]] = document

    def _ask(self, step: Ask) -> None:
        person = PEOPLE[step.person]
        exchange = Exchange(step, self._loop.time())
        self._record.exchanges.append(exchange)
        send = partial(
            self._processes[step.process % len(self._processes)].send,
            person.address,
            self._bytes(step),
            exchange,
        )
        context = contextvars.copy_context()
        context.run(_exchange.set, exchange)
        done = context.run(send)
        done.add_done_callback(lambda _: self._keep_cursors(exchange))
        self._pending.add(done)

    def _keep_cursors(self, exchange: Exchange) -> None:
        kept = self._cursors.setdefault(exchange.step.person, [])
        for cursor in _CURSOR.findall(exchange.answer):
            if cursor.decode() not in kept:
                kept.append(cursor.decode())

    def _bytes(self, step: Ask) -> bytes:
        person, target = PEOPLE[step.person], step.target.decode()
        if step.cursor:
            parameter, name, number = step.cursor
            kept = self._cursors.get(name, [])
            cursor = kept[number] if number < len(kept) else "A" * 24
            target += f"&{parameter}={cursor}"
        lines, token = [], self._token(person)
        if step.cookie:
            lines += [f"cookie: {combinations.COOKIE}={token}", "sec-fetch-site: same-origin"]
        else:
            lines += [f"authorization: Bearer {token}"] if token else []
            lines.append(f"origin: {ORIGIN}")
        if step.condition:
            tags = "*" if step.condition == "any" else self._tags.decode()
            lines.append(f"if-none-match: {tags}")
        return request(*lines, method=step.method, target=target)

    def _token(self, person: Person) -> str:
        if person.text is not None:
            return person.text
        if person.name not in self._tokens:
            more: dict[str, Any] = {
                "act": {"sub": person.subject or person.name.partition(",")[0]},
                "iat": int(self._wall + person.issued),
                "exp": int(self._wall + person.lasts),
                "jti": person.jti,
            }
            claims = self._kind.claims(self._wall, *person.scopes, **more)
            # Where both verify tokens, a person's name decides about the key.
            if self._both_keys:
                self._kind.hmac_key = ROOT_KEY if len(person.name) % 2 else OWN_KEY
            self._tokens[person.name] = self._kind.sign(claims, forged=person.forged)
        return self._tokens[person.name]

    # -- upstream

    async def _override(self, seen: Seen) -> Answer | None:
        authorization = seen.header("authorization") or ""
        key = authorization.startswith("Bearer tr_")
        credential = "the secret key" if key else authorization[-12:]
        # Timers of a loop add up to times that differ by less than a nanosecond.
        call = Call(round(self._loop.time(), 6), seen.raw_path, credential, _exchange.get())
        self._record.calls.append(call)
        trouble = self._weather
        if key and trouble == "fine":  # upstream looks at a token before the session
            trouble = self._trouble(call.id)
        await asyncio.sleep(100.0 if trouble == "silent" else LATENCY)
        match trouble:
            case "500":
                return Answer(500, {"error": "down"})
            case "403":
                return Answer(403, {"error": "no", "code": "unauthorized"})
            case "401" if key:
                return Answer(401, {"error": "Invalid API key"})
            case "HTML":
                return Answer(200, b"<html>")
            case "429":
                reset = str(int((self._clock.wall + 3) * 1000))
                names = ("limit", "remaining", "reset")
                values = ("750", "0", reset)
                lines = {f"x-ratelimit-{n}": v for n, v in zip(names, values, strict=True)}
                return Answer(429, {"error": "limited"}, lines)
        return None

    def _trouble(self, id_: str) -> str:
        for name, secret in self._secrets.items():
            if id_ == secret.document(NUMBERS[name])["id"] or (id_ == secret.external_id):
                return secret.trouble
        return ""


def _connect(shared: Shared, _: object, **arguments: Any) -> StandIn:
    return StandIn(shared, **arguments)


def _note(decide: Any, head: RequestHead, now: float, wall: float) -> Any:
    """Decide, and note whether that is an answer."""
    answer = decide(head, now, wall)
    exchange = _exchange.get()
    if exchange is not None:
        exchange.decisions.append("answer" if isinstance(answer, Response) else "wait")
    return answer

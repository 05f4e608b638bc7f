"""The parts that most tests need: a clock, tokens, the service in one process, real servers."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self, cast
from urllib.parse import quote

import httpx2
import jwt
import uvicorn
from support.forked import Forked

from bff.app import Service
from bff.config import reader
from bff.copies.readiness import READINESS_ID
from bff.demo.upstream import Answer, Environment, PretendUpstream, Seen, session
from bff.ops.tracing import Tracing
from bff.telemetry import Telemetry
from bff.upstream.connection import Answer as UpstreamAnswer
from bff.upstream.connection import Request, Stream
from bff.upstream.other_hosts import Client, Network
from bff.upstream.pool import Address

ROOT_KEY = "tr_prod_rootKEYsentinel000000001"
SECRET_KEY = "tr_dev_sk_SECRETsentinel0000000001"
OWN_KEY = "own-signing-key-sentinel-0123456789abcdef"
NEW_KEY = "new-signing-key-sentinel-0123456789abcdef"
ENVIRONMENT_ID = "env_test"
ORIGIN = "https://app.example.com"
PATH = "/api/v1/sessions/"

KEPT = {
    name: text
    for name, text in os.environ.items()
    if name in {"PATH", "HOME"} or name.startswith("COVERAGE_")
}
"""Variables of the test run that a process which a test starts keeps."""

PATIENCE = 60.0
"""Seconds to wait for what must happen: no measure, but the end of a test that would hang."""

http = httpx2.Client(timeout=PATIENCE, limits=httpx2.Limits(max_keepalive_connections=0))
"""Asks real servers, each time on a connection of its own, so that any worker may have it.
(`httpx2.get` would read every certificate authority anew, at 40 ms a call.)"""


class Clock:
    """Both times, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_800_000_000.0

    def __call__(self) -> tuple[float, float]:
        return self.now, self.wall

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


def claims(wall: float, *scopes: object, **changes: Any) -> dict[str, Any]:
    """Claims of a good token; a change to None removes one."""
    good = {
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "sub": ENVIRONMENT_ID,
        "pub": True,
        "scopes": list(scopes),
        "iat": int(wall),
        "exp": int(wall) + 900,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def sign(payload: dict[str, Any], key: str = OWN_KEY, **kwargs: Any) -> str:
    kwargs.setdefault("algorithm", "HS256")
    return jwt.encode(payload, key, **kwargs)


def read(*ids: str) -> list[str]:
    return [f"read:sessions:{id_}" for id_ in ids]


def environ(**changes: str | None) -> dict[str, str]:
    """Settings of a gateway that accepts tokens of `OWN_KEY`; a change to None removes one."""
    good: dict[str, str | None] = {
        "TRIGGER_SECRET_KEY": SECRET_KEY,
        "TRIGGER_API_URL": "http://127.0.0.1:1",
        "BFF_SIGNING_KEYS": OWN_KEY,
        "BFF_ENVIRONMENT_ID": ENVIRONMENT_ID,
        "BFF_ALLOWED_ORIGINS": ORIGIN,
    }
    return {name: text for name, text in (good | changes).items() if text is not None}


def pretend(wall: Any) -> PretendUpstream:
    """An upstream with a handful of sessions, and keys that these tests know."""
    environment = Environment(
        ENVIRONMENT_ID, ROOT_KEY, {SECRET_KEY: ("read:sessions", "write:sessions")}
    )
    environment.bucket.limit = environment.bucket.remaining = 1_000_000
    environment.add(session(1, "chat-1"))
    environment.add(session(2, "chat-2"))
    environment.add(session(3))
    environment.add(session(4, "a/b: c%?#ü"))
    environment.add(session(5, "chat-closed", closedAt="2026-02-01T00:00:00.500Z"))
    return PretendUpstream(environment, clock=wall)


def until(
    met: Callable[[], object], what: Callable[[], str] = lambda: "it does not come to pass"
) -> None:
    """Wait for what another process does; *what* says how it went instead."""
    ends = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < ends, what()
        time.sleep(0.02)


OFF = {
    f"BFF_{name}": "off"
    for name in ("RATE_LIMIT", "IP_RATE_LIMIT", "BAD_TOKEN_LIMIT", "UPSTREAM_BUDGET")
}
"""Settings without limits."""
FRIENDLY = {"chat-1": session(1)["id"], "chat-2": session(2)["id"]}


class Through:
    """Sends requests to what an httpx2 transport reaches: an ASGI app, say."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def stream(self, address: Address, request: Request) -> Stream:
        """The whole answer at once: what comes as time passes needs a socket."""
        answer = await self.send(address, request)
        stream = Stream(answer.status, answer.headers, cast("Any", _Ended()))
        stream.feed(answer.body)
        stream.end(None)
        return stream

    async def send(self, address: Address, request: Request) -> UpstreamAnswer:
        url = httpx2.URL(
            scheme="https" if address.secure else "http",
            host=address.host,
            port=address.port,
            raw_path=request.target,
        )
        lines = request.lines.split(b"\r\n")[:-1]
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        asked = httpx2.Request(request.method.decode(), url, headers=headers, content=request.body)
        answer = await self._transport.handle_async_request(asked)
        body = await answer.aread()
        fields = {name.lower(): value for name, value in answer.headers.items()}
        return UpstreamAnswer(answer.status_code, fields, body)

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Ended:
    """The connection of a stream that has arrived whole."""

    def resume_reading(self) -> None:
        pass

    pause_reading = abort = resume_reading


def through(transport: httpx2.AsyncBaseTransport) -> Network:
    """Make a network of an httpx2 transport alone."""
    return Network(Through(transport), Client(transport, connect_timeout=1))


class World:
    """The whole service in this process: no sockets, but every other part is the real one."""

    def __init__(self, clock: Clock, **changes: str | None) -> None:
        self.clock = clock
        self.upstream = pretend(lambda: clock.wall)
        self.transport: httpx2.AsyncBaseTransport | None = None
        """How upstream is reached, if not in this process."""
        self.log = io.StringIO()
        self.telemetry = Telemetry(self.log)
        self.tracing: Tracing | None = None
        self._changes = changes
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "World":
        await self.start(**self._changes)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def start(self, **changes: str | None) -> None:
        """Start (again) with other settings, in front of the same upstream."""
        await self._stack.aclose()
        self.told = dict(changes)
        transport = self.transport or httpx2.ASGITransport(self.upstream)
        self.service = Service(
            reader.load(environ(**changes)),
            self.telemetry,
            reload=lambda: reader.load(environ(**self.told)),
            clock=self.clock,
            network=through(transport),
            tracing=self.tracing,
        )
        app = self.service.browser_app
        await self._stack.enter_async_context(app.router.lifespan_context(app))
        self.browser = await self._stack.enter_async_context(_browser(app))
        self.ops = await self._stack.enter_async_context(
            _browser(self.service.ops_app, "http://127.0.0.1:9787")
        )

    def reload(self, **changes: str | None) -> None:
        """Change settings while it runs."""
        self.told |= changes
        self.service.reload()

    def token(self, *scopes: object, **changes: Any) -> str:
        return sign(claims(self.clock.wall, *scopes, **changes))

    def signed_with(self, key: str, *ids: str) -> str:
        """A token that reads the sessions *ids*, signed with *key*."""
        return sign(claims(self.clock.wall, *read(*ids)), key)

    async def get(
        self,
        id_: str,
        *scopes: object,
        token: str | None = None,
        method: str = "GET",
        **headers: str,
    ) -> httpx2.Response:
        """Ask for a session as a browser of the allowed origin; scopes default to naming it."""
        token = token or self.token(*(scopes or read(id_)))
        sent = {"authorization": f"Bearer {token}", "origin": ORIGIN, "cache-control": "max-age=0"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = PATH + quote(id_, safe="")
        return await self.browser.request(method, url, headers=sent)

    @property
    def calls(self) -> int:
        """How many requests upstream saw, apart from the gateway's own question."""
        return sum(not seen.raw_path.endswith(READINESS_ID) for seen in self.upstream.seen)

    async def settle(self) -> None:
        """Let loads in the background end."""
        while len(self.service.gateway.cache.loads):
            await asyncio.sleep(0)

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        """Let upstream answer this from now on; 0 lets it answer as usual."""

        async def override(_: Seen) -> Answer:
            return Answer(
                status, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )

        self.upstream.override = override if status else None

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@asynccontextmanager
async def _browser(app: Any, url: str = "http://gateway") -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=url) as client:
        yield client


class running_upstream:  # noqa: N801  reads as what it is: with running_upstream() as upstream
    """The pretend upstream on a socket, in a thread; `seen` is its evidence."""

    def __init__(self, port: int = 0) -> None:
        self.app = pretend(time.time)
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(self.app, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self) -> "running_upstream":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def seen(self) -> list[Seen]:
        """Its requests, apart from those that a gateway sends at start and while it is idle."""
        own = (PATH + READINESS_ID, "/api/v1/auth/")
        return [one for one in self.app.seen if not one.raw_path.startswith(own)]


class Gateway:
    """`bff serve` in a process of its own, which `support.forked` starts."""

    process: Forked | subprocess.Popen[str]

    def __init__(self, upstream_port: int, *options: str, **changes: str | None) -> None:
        good: dict[str, str | None] = {
            "TRIGGER_API_URL": f"http://127.0.0.1:{upstream_port}",
            "BFF_PORT": "0",
            "BFF_OPS_PORT": "0",
            "BFF_UPSTREAM_TIMEOUT": "30",  # upstream is a thread of a busy process
            "BFF_UPSTREAM_CONNECT_TIMEOUT": "20",
        }
        self._environ = environ(**good | changes)
        self._lines: list[str] = []
        self._arguments = ["serve", *options]

    def _start(self) -> Forked | subprocess.Popen[str]:
        return Forked(self._arguments, KEPT | self._environ)

    def __enter__(self) -> Self:
        self.process = self._start()
        assert self.process.stdout is not None
        while '"listening"' not in (first := self.process.stdout.readline()):
            if not first.startswith("{"):
                raise AssertionError(first + self.process.stdout.read())
            self._lines.append(first)
        self._lines.append(first)
        listening = json.loads(first)
        self.port = int(listening["browser"].rpartition(":")[2])
        self.ops_port = int(listening["ops"].rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"
        self.ops_url = f"http://127.0.0.1:{self.ops_port}"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    def _wait(self) -> None:
        def met() -> bool:
            try:
                http.get(self.url + "/healthz")
            except httpx2.TransportError:
                return False
            return True

        until(met, lambda: "the gateway does not answer:\n" + self.output)

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=PATIENCE)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def output(self) -> str:
        """Everything it printed so far."""
        return "".join(self._lines)

    def token(self, *scopes: object, **changes: Any) -> str:
        return sign(claims(time.time(), *scopes, **changes))

    def raw(self, data: bytes, *, timeout: float = PATIENCE) -> bytes:
        """Send bytes that end in a close, and read until the gateway closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received


class Executed(Gateway):
    """`python -m bff serve`, for a test of the start itself, or of another `command`."""

    process: subprocess.Popen[str]

    def __init__(self, upstream_port: int, *options: str, **changes: str | None) -> None:
        super().__init__(upstream_port, *options, **changes)
        self.command = [sys.executable, "-m", "bff", *self._arguments]

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            env=KEPT | self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

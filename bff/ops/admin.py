"""Serves the ops port: health, readiness, metrics, purges and revocations.

No token protects it; the network must. One worker accepts a connection and answers for all workers.
If another worker or replica does not confirm an order, the answer says so.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bff import metrics, strict_json
from bff.background import Background
from bff.clock import Clock
from bff.copies.readiness import WATCH_SECONDS
from bff.errors import Refusal, Refused
from bff.gateway.decide import Gateway
from bff.ops.status import breakdown
from bff.replicas.sharing import Sharing
from bff.replicas.valkey import StoreUnavailable
from bff.response import Response as BoundedResponse
from bff.server.bounds import Bounds, ConnectionLimiter
from bff.server.connection import NewestProtocol
from bff.server.worker_ipc import CALL_SECONDS, WorkerPeers
from bff.sessions import ids
from bff.telemetry import Telemetry, merge
from bff.tokens.revocations import Revocation, RevocationError, parse

LEARN_SECONDS: Final = 10.0
"""Seconds that a new worker waits for its peers' revocations, which may be many. Without them it
could accept a revoked token."""
MAX_CONNECTIONS: Final = 128
"""Connections on the ops port; the descriptors for them are kept free."""
_MAX_HEAD: Final = 16384
"""Bytes of a request's line and headers."""
_MAX_BUFFERED: Final = 16 * 1024 * 1024
"""Bytes in memory of unread answers; the metrics of 64 workers take less."""
_MAX_BODY: Final = 8192
"""Bytes of a request's body; a revocation has a few hundred."""


@dataclass(eq=False)
class Ops:
    """Serves the ops port, and executes the orders of other workers in this one.

    Args:
        gateway: the gateway of this worker.
        telemetry: its metrics and log.
        sharing: the other replicas; None without a store.
        background: the loops beside requests.
        peers: the other workers; None if this process is the only one.
        names: host names of the ops port, beside addresses and localhost.
        clock: the two times.
    """

    gateway: Gateway
    telemetry: Telemetry
    sharing: Sharing | None
    background: Background
    peers: WorkerPeers | None
    names: tuple[str, ...]
    clock: Clock
    _checks: "set[asyncio.Task[None]]" = field(default_factory=set, init=False)
    """The event loop holds tasks weakly."""

    def __post_init__(self) -> None:
        self.app = Starlette(
            middleware=[Middleware(BrowserFilter, names=self.names)],
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/cache/sessions/{session:path}", self._purge, methods=["DELETE"]),
                Route("/revocations", self._list_revocations),
                Route("/revocations", self._revoke, methods=["POST"]),
                Route("/revocations", self._undo, methods=["DELETE"]),
            ],
            exception_handlers={RevocationError: _refused, Refused: _refused},
        )

    # -- workers

    async def join(self) -> None:
        """Start to answer the other workers, and copy their revocations."""
        if self.peers is None:
            return
        self.peers.listen(self._execute)
        answers = await self.peers.call("revocations", timeout=LEARN_SECONDS)
        for revocations in answers.values():
            for text in revocations or ():
                self.apply_revocation(text)
        if all(revocations is None for revocations in answers.values()):
            self.telemetry.log.error("revocations_not_learned", remedy="send them again")

    async def _execute(self, command: str, *arguments: Any) -> Any:
        """Execute another worker's command; true confirms an order."""
        match command:
            case "metrics":
                return self.telemetry.metrics().decode()
            case "readiness":
                await self._check_readiness(*arguments)
                return self._readiness()
            case "revocations":
                return [revocation.encode() for revocation in self.gateway.revocations.all()]
            case "revoke":
                return self.apply_revocation(*arguments)
            case "news":
                for news in arguments:
                    self.gateway.news.receive(*news)
            case "purge":
                self._purge_copies(*arguments)
                return True
        return None

    async def _ask_peers(self, *command: str) -> Mapping[int, Any]:
        return {} if self.peers is None else await self.peers.call(*command)

    def apply_revocation(self, text: str) -> bool:
        """Apply a peer's or replica's revocation; False if it is malformed or the list is full."""
        try:
            self.gateway.revocations.add(Revocation.decode(text), self.clock()[1])
        except ValueError:
            self.telemetry.log.error("revocation_not_heard")
            return False
        return True

    def _purge_copies(self, id_: str) -> None:
        for name in self.gateway.config.environments:
            self.gateway.cache.purge(name, id_)

    # -- routes

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def _readiness(self) -> dict[str, tuple[bool, str]]:
        environments = self.gateway.config.environments.values()
        return {one.name: self.gateway.readiness.state(one) for one in environments}

    async def _check_readiness(self, *verbose: str) -> None:
        """Start a readiness check; only a verbose request waits for its end."""
        if not verbose:
            check = asyncio.create_task(self.gateway.readiness.check(WATCH_SECONDS))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        else:
            # A worker that waits for a slow upstream must not count as silent.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALL_SECONDS / 2):
                    await self.gateway.readiness.check()

    async def _readyz(self, request: Request) -> Response:
        """Answer whether requests can be decided; with ``?verbose``, show every check."""
        verbose = ("verbose",) if "verbose" in request.query_params else ()
        answers, _ = await asyncio.gather(
            self._ask_peers("readiness", *verbose), self._check_readiness(*verbose)
        )
        environments = self._readiness()
        for number, answer in answers.items():
            for name, (ready, reason) in (answer or {}).items():
                if not ready and environments.get(name, (True,))[0]:
                    environments[name] = (False, f"worker {number}: {reason}")
        body: dict[str, Any] = {
            "environments": {
                name: {"ready": ready, "reason": reason}
                for name, (ready, reason) in environments.items()
            }
        }
        if stopped := sorted(task for task, up in self.background.up.items() if not up):
            body["background"] = {"restarting": stopped}
        if answers:
            # A silent worker accepts no connections, so the others are ready without it.
            silent = _silent(answers)
            body["workers"] = {"answering": 1 + len(answers) - len(silent), "silent": silent}
        # One environment that is not ready must not take the others out of service.
        ready = any(ready for ready, _ in environments.values())
        if verbose:
            lines = breakdown(body | self._store_state(), self.telemetry.gauges(), ready=ready)
            return PlainTextResponse(lines, 200 if ready else Refusal("not_ready").status)
        if ready:
            return JSONResponse({"status": "ready", **body, **self._store_state()})
        return _refusal(Refusal("not_ready"), **body)

    def _store_state(self) -> dict[str, str]:
        if self.sharing is None:
            return {}
        replicas = self.sharing.replicas
        if self.sharing.up:
            return {"store": f"up, replicas: {replicas}"}
        return {
            "store": f"down ({self.sharing.store.reason}): this replica works without it, with "
            f"its share (1 in {replicas}) of the limits and the budget"
        }

    async def _revoke(self, request: Request) -> Response:
        """Revoke tokens from the next request on; `revocations.parse` defines the body."""
        revocation = parse(await _json_body(request), self.clock()[1])
        return await self._announce(revocation, "revoked")

    async def _undo(self, request: Request) -> Response:
        """Undo a revocation; the body names it as for `_revoke`."""
        _, wall = self.clock()
        undoing = replace(parse(await _json_body(request), wall), undone=True)
        named = (undoing.kind, undoing.value)
        # An undoing that was not confirmed is sent again.
        if named not in {(r.kind, r.value) for r in self.gateway.revocations.in_force(wall)}:
            return _refusal(Refusal("not_found", "No such revocation is in force"))
        return await self._announce(undoing, "undone")

    async def _announce(self, revocation: Revocation, done: str) -> Response:
        """Apply a revocation in this worker, at the other workers and at the other replicas."""
        self.gateway.revocations.add(revocation, self.clock()[1])
        if revocation.undone:
            self.telemetry.log.warning("revocation_undone", kind=revocation.kind)
        else:
            self.telemetry.log.warning("revoked", kind=revocation.kind)
        text = revocation.encode()
        unconfirmed = await self._order(done, ("revoke", text), lambda shared: shared.revoke(text))
        return unconfirmed or JSONResponse({done: revocation.kind, "until": revocation.until})

    async def _order(
        self,
        done: str,
        command: tuple[str, ...],
        share: Callable[[Sharing], Awaitable[None]],
    ) -> Response | None:
        """Give an order to the other workers and replicas; None if all have confirmed it."""
        silent = _silent(await self._ask_peers(*command))
        text = f"Worker {', '.join(map(str, silent))} did not answer: {done} at the others only"
        try:
            if self.sharing is not None:
                await share(self.sharing)
        except StoreUnavailable:
            text = f"The store is down: {done} at this replica only"
        else:
            if not silent:
                return None
        return _refusal(Refusal("not_ready", f"{text}; send it again"))

    async def _list_revocations(self, _: Request) -> Response:
        kept = self.gateway.revocations.in_force(self.clock()[1])
        return JSONResponse({"revocations": [one.shown() for one in kept if not one.undone]})

    async def _purge(self, request: Request) -> Response:
        """Purge a session, under both its ids and in every environment, in every replica."""
        id_ = ids.parse_id(request.scope["raw_path"].removeprefix(b"/cache/sessions/"))
        self._purge_copies(id_)
        self.telemetry.count(metrics.PURGES)

        async def share(sharing: Sharing) -> None:
            for name in self.gateway.config.environments:
                await sharing.purge(name, id_)

        unconfirmed = await self._order("purged", ("purge", id_), share)
        return unconfirmed or Response(status_code=HTTPStatus.NO_CONTENT)

    async def _metrics(self, _: Request) -> Response:
        text = self.telemetry.metrics().decode()
        if self.peers is not None:
            text = merge({**await self.peers.call("metrics"), self.peers.number: text})
        return Response(text, media_type="text/plain; version=0.0.4")


def ops_protocol() -> "partial[NewestProtocol]":
    """Return the factory of connections to the ops port, with tight bounds."""
    bounds = Bounds(
        head_bytes=_MAX_HEAD,
        headers=100,
        request_seconds=10.0,
        idle_seconds=75.0,
        unread_seconds=75.0,
        # Those that end count until they have ended.
        connections=2 * MAX_CONNECTIONS,
        connections_per_address=2 * MAX_CONNECTIONS,
        buffered_bytes=_MAX_BUFFERED,
    )
    return partial(
        NewestProtocol,
        open_={},
        most=MAX_CONNECTIONS,
        bounds=bounds,
        connections=ConnectionLimiter(bounds, trusted=(), count=lambda _: None),
        refuse=_render,
    )


def _render(refusal: Refusal, _peer: str, _origin: bytes | None) -> BoundedResponse:
    response = _refusal(refusal)
    head = b"".join(b"%b: %b\r\n" % line for line in response.raw_headers)
    return BoundedResponse(response.status_code, head, bytes(response.body))


class BrowserFilter:
    """Refuses requests that a page in a browser sent, on whichever machine the browser runs.

    A page may point its own host name at this port (DNS rebinding). Its browser then takes the port
    for the page's origin, so the Host must be an address, localhost or a configured name. For a
    request to another origin, the browser sets headers that no script can change. A person may
    still type an address by hand.
    """

    def __init__(self, app: ASGIApp, *, names: tuple[str, ...]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if any(
            name == b"origin" or (name.startswith(b"sec-fetch-site") and value != b"none")
            for name, value in headers
        ):
            text = "The ops port refuses requests of pages in browsers"
        elif len(hosts) > 1 or not all(map(self._allowed, hosts)):
            text = "Address the ops port by an IP address, or add its name to BFF_OPS_NAMES"
        else:
            await self._app(scope, receive, send)
            return
        await _refusal(Refusal("bad_request", text))(scope, receive, send)

    def _allowed(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.lower() in self._names
        return True


def _refusal(refusal: Refusal, **members: object) -> Response:
    body = {"error": refusal.text, "code": refusal.code, **members}
    return JSONResponse(body, refusal.status)


def _silent(answers: Mapping[int, Any]) -> list[int]:
    return sorted(number for number, answer in answers.items() if not answer)


async def _refused(_: Request, exc: Exception) -> Response:
    return _refusal(exc.refusal if isinstance(exc, Refused) else Refusal("bad_request", str(exc)))


async def _json_body(request: Request) -> dict[str, Any]:
    """Parse the body of a request that changes something.

    A page in a browser could send another content type to a foreign origin without a preflight.

    Raises:
        RevocationError: the headers are wrong, or the body is too long or not a JSON object.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" or "cookie" in request.headers:
        raise RevocationError("Send JSON with Content-Type: application/json and without a cookie")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise RevocationError(f"Send at most {_MAX_BODY} bytes")
    try:
        value = strict_json.loads(bytes(body))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RevocationError("Send a JSON object")
    return value

"""The ops port: what the operator asks and orders. It has no tokens: the network is its lock.

Whichever worker accepts a connection answers for all of them, and says so where it cannot.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bff import metrics
from bff.clock import Clock
from bff.errors import Refusal, Refused
from bff.gateway.decide import Gateway
from bff.replicas.sharing import Sharing
from bff.replicas.valkey import StoreUnavailable
from bff.server.worker_ipc import CALL_SECONDS, WorkerPeers
from bff.sessions import ids
from bff.telemetry import Telemetry, together
from bff.tokens.revocations import Revocation, RevocationError, parse

LEARN_SECONDS = 10.0
"""For a worker that starts to be told what was revoked: there may be many, and it matters."""


class Ops:
    """The routes of the ops port.

    Args:
        gateway: what they are about.
        sharing: the other replicas; None without a store.
        peers: the other workers; None if this process is the only one.
        names: by which the port may be asked for, beside addresses and localhost.
        clock: the two times.
    """

    def __init__(
        self,
        gateway: Gateway,
        telemetry: Telemetry,
        *,
        sharing: Sharing | None,
        peers: WorkerPeers | None,
        names: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._sharing = sharing
        self._peers = peers
        self._clock = clock
        self.app = Starlette(
            middleware=[Middleware(NoBrowsers, names=names)],
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/cache/sessions/{session:path}", self._purge, methods=["DELETE"]),
                Route("/revocations", self._revoke, methods=["POST"]),
            ],
        )

    # -- among workers

    async def join(self) -> None:
        """Answer the other workers from now on, and learn of them what was revoked."""
        if self._peers is None:
            return
        self._peers.listen(self._answer)
        answers = await self._peers.call("revocations", timeout=LEARN_SECONDS)
        for known in answers.values():
            for text in known or ():
                self.hear_revocation(text)
        if all(known is None for known in answers.values()):
            self._telemetry.log.error("revocations_not_learned", remedy="send them again")

    async def _answer(self, question: str, *words: str) -> Any:
        """Answer another worker; what it is told is confirmed with true."""
        match question:
            case "metrics":
                return self._telemetry.metrics().decode()
            case "readiness":
                readiness, environments = self._gateway.readiness, self._gateway.config.environments
                with contextlib.suppress(TimeoutError):  # a slow upstream is no slow worker
                    async with asyncio.timeout(CALL_SECONDS / 2):
                        await readiness.check()
                return {name: readiness.state(one) for name, one in environments.items()}
            case "revocations":
                return [known.encode() for known in self._gateway.revocations.all()]
            case "revoke":
                return self.hear_revocation(*words)
            case "purge":
                self._forget(*words)
                return True
        return None

    async def _ask(self, *question: str) -> Mapping[int, Any]:
        return {} if self._peers is None else await self._peers.call(*question)

    def hear_revocation(self, text: str) -> bool:
        """Take in what a worker or a replica told, unless it is foreign or there is no room."""
        try:
            self._gateway.revocations.add(Revocation.decode(text), self._clock()[1])
        except ValueError:
            self._telemetry.log.error("revocation_not_heard")
            return False
        return True

    def _forget(self, id_: str) -> None:
        for name in self._gateway.config.environments:
            self._gateway.cache.purge(name, id_)

    # -- the routes

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        others, known = await asyncio.gather(
            self._ask("readiness"), self._gateway.readiness.check()
        )
        found = dict(known)
        for number, theirs in others.items():
            for name, (ready, reason) in (theirs or {}).items():
                if not ready and found.get(name, (True,))[0]:
                    found[name] = (False, f"worker {number}: {reason}")
        told: dict[str, Any] = {
            "environments": {
                name: {"ready": ready, "reason": reason} for name, (ready, reason) in found.items()
            }
        }
        if others:
            # They accept no connection, so nobody waits for them: the rest is ready without them.
            told["workers"] = {
                "answering": 1 + len(others) - len(_silent(others)),
                "silent": _silent(others),
            }
        # One environment's trouble must not take the others out of service.
        if any(ready for ready, _ in found.values()):
            return JSONResponse({"status": "ready", **told, **self._store_state()})
        return _refusal(Refusal("not_ready"), **told)

    def _store_state(self) -> dict[str, str]:
        if self._sharing is None:
            return {}
        if self._sharing.up:
            return {"store": f"there, with {self._sharing.replicas} replicas"}
        return {
            "store": f"away ({self._sharing.store.reason}): this replica goes on alone, with its "
            f"share of 1 in {self._sharing.replicas} of the limits"
        }

    async def _revoke(self, request: Request) -> Response:
        """Take tokens back, from the next request on; see `revocations.parse` for the body."""
        _, wall = self._clock()
        try:
            revocation = parse(await _json_body(request), wall)
            self._gateway.revocations.add(revocation, wall)
        except RevocationError as exc:
            return _refusal(Refusal("bad_request", str(exc)))
        self._telemetry.log.warning("revoked", kind=revocation.kind)
        heard = await self._ask("revoke", revocation.encode())
        try:
            if self._sharing is not None:
                await self._sharing.revoke(revocation.encode())
        except StoreUnavailable:
            return _alone("revoked at")
        if silent := _silent(heard):
            return _unconfirmed("revoked", silent)
        return JSONResponse({"revoked": revocation.kind, "until": revocation.until})

    async def _purge(self, request: Request) -> Response:
        """Forget a session, under both its ids and in every environment, in every replica."""
        segment = request.scope["raw_path"].removeprefix(b"/cache/sessions/")
        try:
            id_ = ids.parse_id(segment)
        except Refused as refused:
            return _refusal(refused.refusal)
        self._forget(id_)
        self._telemetry.count(metrics.PURGES)
        heard = await self._ask("purge", id_)
        try:
            for name in self._gateway.config.environments if self._sharing else ():
                await self._sharing.purge(name, id_)  # type: ignore[union-attr]  # just asked
        except StoreUnavailable:
            return _alone("purged from")
        if silent := _silent(heard):
            return _unconfirmed("purged", silent)
        return Response(status_code=204)

    async def _metrics(self, _: Request) -> Response:
        text = self._telemetry.metrics().decode()
        if self._peers is not None:
            texts = {**await self._peers.call("metrics"), self._peers.number: text}
            text = together(texts)
        return Response(text, media_type="text/plain; version=0.0.4")


class NoBrowsers:
    """Lets no page in a browser ask, wherever that browser is.

    A page may point a name of its own at this port (DNS rebinding), and its browser then takes it
    for the page's own origin; so a name has to be one of ours. What another origin's page asks says
    so in headers that no script can set. An address typed by hand is welcome.
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
            trouble = "The ops port is not for pages in browsers"
        elif len(hosts) > 1 or not all(map(self._known, hosts)):
            trouble = "Ask for the ops port by an address, or name it in BFF_OPS_NAMES"
        else:
            await self._app(scope, receive, send)
            return
        await _refusal(Refusal("bad_request", trouble))(scope, receive, send)

    def _known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.lower() in self._names
        return True


def _refusal(refusal: Refusal, **members: object) -> Response:
    told = {"error": refusal.text, "code": refusal.code, **members}
    return JSONResponse(told, refusal.status)


def _silent(answers: Mapping[int, Any]) -> list[int]:
    return sorted(number for number, answer in answers.items() if not answer)


def _unconfirmed(what: str, silent: list[int]) -> Response:
    """Tell an operator that other workers could not be told."""
    numbers = ", ".join(map(str, silent))
    text = f"Worker {numbers} gave no answer: {what} elsewhere; send it again"
    return _refusal(Refusal("not_ready", text))


async def _json_body(request: Request) -> dict[str, Any]:
    """Read the body of a request that changes something.

    No page in a browser gets here (see `NoBrowsers`), and one that says it sends JSON to another
    origin would have to ask before.

    Raises:
        RevocationError: it may not be read, or holds no object.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" or "cookie" in request.headers:
        raise RevocationError("Send JSON, with Content-Type: application/json, and no cookie")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise RevocationError(f"Send at most {_MAX_BODY} bytes")
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise RevocationError("Send a JSON object")
    return read


def _alone(did: str) -> Response:
    """Tell an operator that other replicas could not be told."""
    text = f"The store is away: {did} this replica alone; send it again"
    return _refusal(Refusal("not_ready", text))


_MAX_BODY = 8192

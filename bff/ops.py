"""The ops port: what the operator asks and orders. It has no tokens: the network is its lock."""

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bff import sessions
from bff.asgi import Clock
from bff.errors import Refusal
from bff.fleet import Fleet
from bff.gateway import Gateway
from bff.revocations import RevocationError, parse
from bff.store import Away
from bff.telemetry import Telemetry


class Ops:
    """The routes of the ops port.

    Args:
        gateway: what they are about.
        fleet: the other replicas; None without a store.
        clock: the two times.
    """

    def __init__(
        self, gateway: Gateway, telemetry: Telemetry, *, fleet: Fleet | None, clock: Clock
    ) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._fleet = fleet
        self._clock = clock
        self.app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/cache/sessions/{session:path}", self._purge, methods=["DELETE"]),
                Route("/revocations", self._revoke, methods=["POST"]),
            ]
        )

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        found = await self._gateway.loader.readiness()
        environments = {
            name: {"ready": ready, "reason": reason} for name, (ready, reason) in found.items()
        }
        # One environment's trouble must not take the others out of service.
        if any(ready for ready, _ in found.values()):
            return JSONResponse(
                {"status": "ready", "environments": environments, **self._store_state()}
            )
        refusal = Refusal("not_ready", retry_after=2)
        return JSONResponse(
            {"error": refusal.detail, "code": refusal.code, "environments": environments},
            refusal.kind.status,
        )

    def _store_state(self) -> dict[str, str]:
        if self._fleet is None:
            return {}
        if self._fleet.up:
            return {"store": f"there, with {self._fleet.replicas} replicas"}
        return {
            "store": f"away ({self._fleet.store.reason}): this replica goes on alone, with its "
            f"share of 1 in {self._fleet.replicas} of the limits"
        }

    async def _revoke(self, request: Request) -> Response:
        """Take tokens back, from the next request on; see `revocations.parse` for the body."""
        _, wall = self._clock()
        try:
            revocation = parse(await _json_body(request), wall)
            self._gateway.revocations.add(revocation, wall)
        except RevocationError as exc:
            return JSONResponse({"error": str(exc), "code": "bad_request"}, 400)
        self._telemetry.log.warning("revoked", kind=revocation.kind)
        try:
            if self._fleet is not None:
                await self._fleet.revoke(revocation.encode())
        except Away:
            return _alone("revoked at")
        return JSONResponse({"revoked": revocation.kind, "until": revocation.until})

    async def _purge(self, request: Request) -> Response:
        """Forget a session, under both its ids and in every environment, in every replica."""
        segment = request.scope["raw_path"].removeprefix(b"/cache/sessions/")
        try:
            id_ = sessions.parse_id(segment)
        except Refusal as refusal:
            return JSONResponse(
                {"error": refusal.detail, "code": refusal.code}, refusal.kind.status
            )
        for name in self._gateway.environments:
            self._gateway.cache.purge(name, id_)
        self._telemetry.count("bff_purges")
        try:
            for name in self._gateway.environments if self._fleet else ():
                await self._fleet.purge(name, id_)  # type: ignore[union-attr]  # just asked
        except Away:
            return _alone("purged from")
        return Response(status_code=204)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._telemetry.metrics(), media_type="text/plain; version=0.0.4")


async def _json_body(request: Request) -> dict[str, Any]:
    """Read the body of a request that changes something.

    No page in a browser gets here: its requests say where they come from, and one that says it
    sends JSON to another origin would have to ask before.

    Raises:
        RevocationError: it may not be read, or holds no object.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" or not _BROWSERS.isdisjoint(request.headers.keys()):
        raise RevocationError("Send JSON, with its content type, and not from a browser")
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
    away = Refusal("not_ready", f"The store is away: {did} this replica alone; send it again")
    return JSONResponse({"error": away.detail, "code": away.code}, away.kind.status)


_MAX_BODY = 8192
_BROWSERS = frozenset({"origin", "sec-fetch-site", "cookie"})

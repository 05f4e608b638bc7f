"""The composition root: settings in, two ASGI applications out. Nothing is wired anywhere else."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bff import __version__, sessions
from bff.auth import Issuer, Verifier
from bff.cache import Ages, Cache, Copy
from bff.errors import Refusal
from bff.gateway import Environment, Gateway, Head, Limits, Load
from bff.limits import Budget, Limiter
from bff.replies import Replies, Reply
from bff.revocations import Revocation, RevocationError, Revocations, parse
from bff.scopes import Grant
from bff.settings import EnvironmentSettings, Rate, Settings, SourceSettings
from bff.sources import KeySet, Source, read_jwks, shared_key
from bff.telemetry import Telemetry
from bff.upkeep import Upkeep
from bff.upstream import Quota, Transport, Upstream, client, fetch
from bff.verdicts import Verdicts

Clock = Callable[[], tuple[float, float]]


def system_clock() -> tuple[float, float]:
    """Read the two times: one that never jumps, and Unix seconds."""
    return time.monotonic(), time.time()  # noqa: TID251  here real time enters


class Service:
    """One gateway with what it owns: its client, its loads under way, its two applications.

    Args:
        settings: what the gateway was told.
        telemetry: where it counts and logs.
        clock: the two times.
        transport: how upstream is reached; for tests.
        routes: more routes for the browser port; for the demo.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        clock: Clock = system_clock,
        transport: Transport | None = None,
        routes: tuple[BaseRoute, ...] = (),
    ) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()
        self._http = client(
            connect_timeout=settings.upstream_connect_timeout,
            timeout=settings.upstream_timeout,
            transport=transport,
        )
        self._settings = settings
        self._sources = tuple(map(_source, settings.token_sources))
        self._ids: dict[str, str] = {}
        """Environment ids that upstream told, by the environment's name."""
        self.gateway = Gateway(
            environments={e.name: self._environment(e, settings) for e in settings.environments},
            verifier=self._verifier(settings),
            cache=Cache(
                Ages(
                    ttl=settings.cache_ttl,
                    closed_ttl=settings.cache_closed_ttl,
                    stale_while_revalidate=settings.cache_stale_while_revalidate,
                    stale_if_error=settings.cache_stale_if_error,
                    negative_ttl=settings.cache_negative_ttl,
                ),
                max_bytes=settings.cache_max_bytes,
                spawn=self._spawn,
                on_mismatch=lambda: telemetry.count("bff_mismatched_copies"),
            ),
            verdicts=Verdicts(self._spawn),
            revocations=Revocations(),
            limits=Limits(
                address=_limiter("address", settings.ip_rate_limit),
                bad_token=_limiter("bad-token", settings.bad_token_limit),
                caller=_limiter("caller", settings.rate_limit),
            ),
            token_cookie=settings.token_cookie.encode() if settings.token_cookie else None,
            trusted_proxies=settings.trusted_proxies,
            default_policy=settings.default_policy,
            policies=settings.policies,
            replies=Replies(settings.allowed_origins, cookie=settings.token_cookie is not None),
            pages=_PAGES,
            telemetry=telemetry,
            clock=clock,
            request_ids=_request_ids(),
        )
        telemetry.gauges = self._gauges
        self._telemetry = telemetry
        self.upkeep = self._upkeep()
        self.browser_app = Starlette(
            routes=routes,
            middleware=[Middleware(ErrorBoundary, gateway=self.gateway)],
            lifespan=self._lifespan,
        )
        # Not a catch-all route: Starlette matches decoded paths, and `.*` stops at a line break.
        self.browser_app.router.default = Endpoint(self.gateway, clock)
        self.browser_app.router.redirect_slashes = False
        self.ops_app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/revocations", self._revoke, methods=["POST"]),
            ]
        )

    def _environment(self, environment: EnvironmentSettings, settings: Settings) -> Environment:
        rate = environment.upstream_budget
        budget = Budget(rate.limit, rate.seconds) if rate else Budget(None)

        def observe(quota: Quota) -> None:
            now, wall = self._clock()
            budget.observe(
                now, limit=quota.limit, remaining=quota.remaining, reset=quota.reset - wall
            )

        upstream = Upstream(
            self._http,
            url=environment.api_url,
            secret_key=environment.secret_key.reveal(),
            branch=environment.branch,
            timeout=settings.upstream_timeout,
            user_agent=f"bff/{__version__}",
            observe=observe,
        )
        return Environment(environment.name, upstream, budget)

    def _verifier(self, settings: Settings) -> Verifier[Grant]:
        issuers = [
            Issuer(
                e.name,
                e.id or self._ids.get(e.name),
                tuple(key.reveal() for key in e.signing_keys),
                upstream="upstream" in e.verify,
                pending=e.learn and e.name not in self._ids,
            )
            for e in settings.environments
        ]
        return Verifier(issuers, sessions.grant, sources=self._sources)

    def _learned(self, name: str, id_: str) -> None:
        """Go on with the id that upstream told of the environment *name*."""
        self._ids[name] = id_
        self.gateway.verifier = self._verifier(self._settings)

    def _spawn(self, load: Coroutine[Any, Any, Copy | Refusal]) -> asyncio.Task[Copy | Refusal]:
        task = asyncio.create_task(load)
        # The loop holds tasks weakly, and whoever waits for this one may leave.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self._http:
            upkeep = asyncio.create_task(self.upkeep.run())
            yield
            upkeep.cancel()
            await asyncio.wait([upkeep])
            if self._tasks:
                await asyncio.wait(self._tasks)  # each is bounded by the upstream timeout

    def _upkeep(self) -> Upkeep:
        return Upkeep(
            lambda url: fetch(self._http, url, self._settings.upstream_timeout),
            self._sources,
            {
                e.name: self.gateway.environments[e.name].upstream.environment_id
                for e in self._settings.environments
                if e.learn
            },
            learned=self._learned,
            clock=self._clock,
            telemetry=self._telemetry,
        )

    # -- the ops port

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        found = await self.gateway.readiness()
        environments = {
            name: {"ready": ready, "reason": reason} for name, (ready, reason) in found.items()
        }
        # One environment's trouble must not take the others out of service.
        if any(ready for ready, _ in found.values()):
            return JSONResponse({"status": "ready", "environments": environments})
        refusal = Refusal("not_ready", retry_after=2)
        return JSONResponse(
            {"error": refusal.detail, "code": refusal.code, "environments": environments},
            refusal.kind.status,
        )

    async def _revoke(self, request: Request) -> Response:
        """Take tokens back, from the next request on; see `revocations.parse` for the body."""
        _, wall = self._clock()
        try:
            revocation = parse(await _json_body(request), wall)
            self.revoke(revocation)
        except RevocationError as exc:
            return JSONResponse({"error": str(exc), "code": "bad_request"}, 400)
        return JSONResponse({"revoked": revocation.kind, "until": revocation.until})

    def revoke(self, revocation: Revocation) -> None:
        """Take in a revocation, told here or by another replica.

        Raises:
            RevocationError: there is no room.
        """
        self.gateway.revocations.add(revocation, self._clock()[1])
        self._telemetry.log.warning("revoked", kind=revocation.kind)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._telemetry.metrics(), media_type="text/plain; version=0.0.4")

    def _gauges(self) -> dict[str, dict[tuple[str, ...], float]]:
        now, _ = self._clock()
        gateway, environments = self.gateway, self.gateway.environments
        left = {name: e.budget.left(now) for name, e in environments.items()}
        return {
            "bff_copies": {(): len(gateway.cache)},
            "bff_copy_bytes": {(): gateway.cache.bytes},
            "bff_loads_in_flight": {(): gateway.cache.flights},
            "bff_verified_tokens": {(): len(gateway.verifier)},
            "bff_revocations": {(): len(gateway.revocations)},
            "bff_stretched_ttl_seconds": {
                (name,): e.budget.stretched for name, e in environments.items()
            },
            "bff_budget_left": {
                (name,): float("inf") if n is None else n for name, n in left.items()
            },
            "bff_ready": {
                (name,): float(gateway.ready(environment)[0])
                for name, environment in environments.items()
            },
        }


class Endpoint:
    """The ASGI side of the gateway: reads a head, writes a reply."""

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self._gateway = gateway
        self._clock = clock

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request; its body, if any, is nobody's business."""
        answer = self._gateway.decide(read_head(scope), *self._clock())
        reply = await self._gateway.finish(answer) if isinstance(answer, Load) else answer
        await send_reply(reply, send)


class ErrorBoundary:
    """Answers what nobody foresaw, as JSON that the browser may read.

    Starlette's own boundary stands outside of everything that adds headers.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer for it if that fails before an answer began."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as exc:  # noqa: BLE001  the last place where it can be told
            reply = self._gateway.failed(read_head(scope), exc)
            if not began:
                await send_reply(reply, send)


def read_head(scope: Scope) -> Head:
    """Pick from an ASGI *scope* what the gateway looks at."""
    peer = scope["client"][0] if scope.get("client") else "local"
    return Head.read(scope["method"], scope["raw_path"], scope["headers"], peer)


async def send_reply(reply: Reply, send: Send) -> None:
    """Write *reply* as ASGI messages."""
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers()})
    await send({"type": "http.response.body", "body": reply.body})


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


_MAX_BODY = 8192
_BROWSERS = frozenset({"origin", "sec-fetch-site", "cookie"})


def _source(told: SourceSettings) -> Source:
    keys = [shared_key(key.reveal()) for key in told.shared_keys]
    if told.jwks is not None:
        keys = list(read_jwks(told.jwks, told.algorithms))
    key_set = KeySet(keys, url=told.jwks_url, trusted_seconds=told.keys_trusted)
    return Source(
        name=told.name,
        environment=told.environment,
        issuer=told.issuer,
        audiences=told.audiences,
        algorithms=told.algorithms,
        keys=key_set,
        scopes_path=told.scopes_path,
        scopes_are_text=told.scopes_are_text,
        required=told.required,
    )


def _limiter(name: str, rate: Rate | None) -> Limiter | None:
    return Limiter(name, rate.limit, rate.seconds) if rate else None


def _request_ids() -> Callable[[], bytes]:
    """Ids that no other process makes: a random prefix and a count, which cost a hit nothing."""
    prefix, numbers = os.urandom(6).hex().encode(), count()
    return lambda: b"%b-%x" % (prefix, next(numbers))


_PAGES = {
    b"/": json.dumps(
        {
            "name": "bff",
            "version": __version__,
            "description": "The browser-facing gateway of Trigger.dev sessions",
            "routes": ["GET /api/v1/sessions/{session}", "GET /healthz"],
        }
    ).encode(),
    b"/healthz": b'{"status": "ok"}',
}

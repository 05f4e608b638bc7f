"""The composition root: settings in, two ASGI applications out. Nothing is wired anywhere else."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
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
from bff.settings import EnvironmentSettings, Rate, Settings
from bff.telemetry import Telemetry
from bff.upstream import Quota, Transport, Upstream, client
from bff.wire import Bounds, Doors, Guard

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
        self.gateway = Gateway(
            environments={e.name: self._environment(e, settings) for e in settings.environments},
            verifier=Verifier(
                [
                    Issuer(e.name, e.id, tuple(key.reveal() for key in e.signing_keys))
                    for e in settings.environments
                ],
                sessions.grant,
            ),
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
            limits=Limits(
                address=_limiter("address", settings.ip_rate_limit),
                bad_token=_limiter("bad-token", settings.bad_token_limit),
                caller=_limiter("caller", settings.rate_limit),
            ),
            trusted_proxies=settings.trusted_proxies,
            default_policy=settings.default_policy,
            policies=settings.policies,
            replies=Replies(settings.allowed_origins),
            pages=_PAGES,
            telemetry=telemetry,
            clock=clock,
            request_ids=_request_ids(),
        )
        bounds = Bounds(
            head_bytes=settings.max_head_bytes,
            headers=settings.max_headers,
            request_seconds=settings.request_timeout,
            idle_seconds=settings.idle_timeout,
            connections=settings.max_connections,
            connections_per_address=settings.max_connections_per_address,
        )
        self._doors = Doors(
            bounds,
            trusted=settings.trusted_proxies,
            count=lambda reason: telemetry.count("bff_closed_connections", reason),
        )
        self.protocol = partial(
            Guard, bounds=bounds, doors=self._doors, refuse=self.gateway.malformed
        )
        """Makes the protocol of each connection on the browser port."""
        telemetry.gauges = self._gauges
        self._telemetry = telemetry
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
            secret_keys=[key.reveal() for key in environment.secret_keys],
            branch=environment.branch,
            timeout=settings.upstream_timeout,
            user_agent=f"bff/{__version__}",
            observe=observe,
        )
        return Environment(environment.name, upstream, budget)

    def _spawn(self, load: Coroutine[Any, Any, Copy | Refusal]) -> asyncio.Task[Copy | Refusal]:
        task = asyncio.create_task(load)
        # The loop holds tasks weakly, and whoever waits for this one may leave.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self._http:
            yield
            if self._tasks:
                await asyncio.wait(self._tasks)  # each is bounded by the upstream timeout

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

    async def _metrics(self, _: Request) -> Response:
        return Response(self._telemetry.metrics(), media_type="text/plain; version=0.0.4")

    def _gauges(self) -> dict[str, dict[tuple[str, ...], float]]:
        now, _ = self._clock()
        gateway, environments = self.gateway, self.gateway.environments
        left = {name: e.budget.left(now) for name, e in environments.items()}
        return {
            "bff_connections": {(): self._doors.open},
            "bff_copies": {(): len(gateway.cache)},
            "bff_copy_bytes": {(): gateway.cache.bytes},
            "bff_loads_in_flight": {(): gateway.cache.flights},
            "bff_verified_tokens": {(): len(gateway.verifier)},
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

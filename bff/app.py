"""The composition root: settings in, two ASGI applications out. Nothing is wired anywhere else."""

import asyncio
import hmac
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from bff import __version__
from bff.clock import Clock, system_clock
from bff.config.reload import Watch
from bff.config.runtime import Environment, Limits, RuntimeConfig
from bff.config.settings import EnvironmentSettings, Settings, SettingsError, SourceSettings
from bff.config.values import Rate
from bff.copies.cache import Cache
from bff.digests import fingerprint
from bff.errors import Refusal
from bff.gateway.decide import Gateway
from bff.limits.budget import Budget
from bff.limits.rate import Limiter, Unlimited
from bff.ops.admin import Ops
from bff.ops.key_refresh import KeyRefresh
from bff.ops.tracing import TracedEndpoint, Tracing
from bff.replicas.codec import Namespace
from bff.replicas.sharing import Sharing
from bff.replicas.valkey import Store, StoreError
from bff.response import ResponseBuilder
from bff.server import fast_path
from bff.server.asgi import Endpoint, ErrorBoundary
from bff.server.connection import BoundedProtocol, Bounds, ConnectionLimiter
from bff.server.worker_ipc import WorkerPeers
from bff.sessions import ids, openapi
from bff.sessions.copy import Ages, Copy, make_copy
from bff.telemetry import Telemetry
from bff.tokens.introspected import Introspections
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet, read_jwks, shared_key
from bff.tokens.revocations import Revocations
from bff.tokens.verify import Issuer, Verifier
from bff.upstream.api import Quota, Upstream
from bff.upstream.client import Client, Transport

T = TypeVar("T")


LAG_SECONDS = 0.5
"""Between two looks at how late the event loop is."""


WATCH_SECONDS = 1.0
"""Between two looks at the files that settings came from."""


FIXED = (
    "host",
    "port",
    "ops_host",
    "ops_port",
    "ops_names",
    "upstream_connect_timeout",
    "upstream_timeout",
    "tracing",
    "store_url",
    "store_timeout",
    "fast_lane",
    "max_head_bytes",
    "max_headers",
    "request_timeout",
    "idle_timeout",
    "max_connections",
    "max_connections_per_address",
)
"""Settings that sockets and connections were opened with: a change of them waits for a restart."""


class Service:
    """One gateway with what it owns: its client, its loads under way, its two applications.

    Args:
        settings: what the gateway was told.
        telemetry: where it counts and logs.
        reload: reads the settings again; raises `SettingsError`.
        clock: the two times.
        transport: how upstream is reached; for tests.
        routes: more routes for the browser port; for the demo.
        tracing: makes spans; None for none.
        peers: the other workers; None if this process is the only one.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        reload: Callable[[], Settings] | None = None,
        clock: Clock = system_clock,
        transport: Transport | None = None,
        routes: tuple[BaseRoute, ...] = (),
        tracing: Tracing | None = None,
        peers: WorkerPeers | None = None,
    ) -> None:
        self._tracing = tracing
        self._clock = clock
        self._told = settings
        self._connected = False
        self._patience = settings.upstream_timeout
        self._tasks: set[asyncio.Task[Any]] = set()
        self._client = Client(
            connect_timeout=settings.upstream_connect_timeout, transport=transport
        )
        self._telemetry = telemetry
        self._settings_current = True
        self._reload_settings = reload
        # From now on, not from when the loop is reached: a key may be removed while this starts.
        self._files = Watch(settings.files)
        self.sharing = self._sharing(settings) if settings.store_url else None
        self._ids: dict[str, tuple[object, str]] = {}
        """Environment ids that upstream told: by name, each with what it was told of."""
        cache: Cache[Copy | Refusal] = Cache(
            _ages(settings),
            max_bytes=settings.cache_max_bytes,
            spawn=self._spawn,
            on_mismatch=lambda: telemetry.count("bff_mismatched_copies"),
        )
        self.gateway = Gateway(
            self._config(settings, None),
            cache=cache,
            introspections=Introspections(self._spawn),
            revocations=Revocations(),
            telemetry=telemetry,
            clock=clock,
            request_ids=_request_ids(),
            sharing=self.sharing,
        )
        bounds = Bounds(
            head_bytes=settings.max_head_bytes,
            headers=settings.max_headers,
            request_seconds=settings.request_timeout,
            idle_seconds=settings.idle_timeout,
            connections=settings.max_connections,
            connections_per_address=settings.max_connections_per_address,
        )
        self._connections = ConnectionLimiter(
            bounds,
            trusted=settings.trusted_proxies,
            count=lambda reason: telemetry.count("bff_closed_connections", reason),
        )
        self.bounded_protocol = partial(
            BoundedProtocol,
            bounds=bounds,
            connections=self._connections,
            refuse=self.gateway.malformed,
        )
        """Makes the protocol of a connection on the browser port, without the fast path."""
        # A span is a task's and a route is Starlette's: the fast path has neither.
        fast = settings.fast_lane and tracing is None and not routes
        self.protocol = (
            fast_path.protocol(self.gateway, self.bounded_protocol, clock)
            if fast
            else self.bounded_protocol
        )
        """Makes the protocol of each connection on the browser port."""
        telemetry.gauges = self._gauges
        self.key_refresh = self._key_refresh()
        self._key_refresh_task: asyncio.Task[None] | None = None
        self.browser_app = Starlette(
            routes=routes,
            middleware=[Middleware(ErrorBoundary, gateway=self.gateway)],
            lifespan=self._lifespan,
        )
        # Not a catch-all route: Starlette matches decoded paths, and `.*` stops at a line break.
        self.browser_app.router.default = (
            TracedEndpoint(self.gateway, clock, tracing)
            if tracing
            else Endpoint(self.gateway, clock)
        )
        self.browser_app.router.redirect_slashes = False
        self.ops = Ops(
            self.gateway,
            telemetry,
            sharing=self.sharing,
            peers=peers,
            names=settings.ops_names,
            clock=clock,
        )
        self.ops_app = self.ops.app

    def reload(self) -> None:
        """Read the settings again and go on by them: by all of them, or on trouble by none.

        Never raises: whoever sent the signal, or changed the file, reads the log.
        """
        if self._reload_settings is None:
            return
        log, before = self._telemetry.log, self._told
        try:
            told = self._reload_settings()
            config = self._config(told, self.gateway.config)
        except Exception as exc:  # noqa: BLE001  what runs goes on, whatever it was
            self._settings_current = False
            self._telemetry.count("bff_reloads", "failed")
            if isinstance(exc, SettingsError):
                log.error("settings_not_reloaded", problems=exc.problems)
            else:
                self._telemetry.exception("settings_not_reloaded", exc)
            return
        self.gateway.apply(config)
        self._connections.trusted = config.trusted_proxies
        if self.sharing is not None:
            self.sharing.apply(_namespaces(told), told.cache_negative_ttl)
        self._told, self._settings_current = told, True
        self._restart_key_refresh()
        self._telemetry.count("bff_reloads", "ok")
        log.info("settings_reloaded")
        fixed = [name for name in FIXED if getattr(told, name) != getattr(before, name)]
        if fixed:
            names = [f"BFF_{name.upper()}" for name in fixed]
            log.warning("settings_need_restart", settings=names)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._files.changed():
                self.reload()
            if self._files.files != self._told.files:
                self._files = Watch(self._told.files)

    async def _measure_lag(self) -> None:
        while True:
            due = self._clock()[0] + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._telemetry.observe("bff_loop_lag_seconds", max(0.0, self._clock()[0] - due))

    def _config(self, settings: Settings, before: RuntimeConfig | None) -> RuntimeConfig:
        """Build everything that *settings* decide, keeping counts where nothing changed."""
        issuers = tuple(
            Issuer(
                e.name,
                self._id(e),
                tuple(key.reveal() for key in e.signing_keys),
                upstream="upstream" in e.verify,
                pending=e.learn and self._id(e) is None,
            )
            for e in settings.environments
        )
        known = before.verifier if before else None
        # Keys that were fetched stay, where the new settings would fetch the same.
        sources = _sources(settings, self._told, () if known is None else known.sources)
        if known is not None and (known.issuers, known.sources) == (issuers, sources):
            verifier = known
        else:
            verifier = Verifier(issuers, ids.grant, sources=sources, before=known)
        environments = before.environments if before else {}
        off = Unlimited("")
        limits = before.limits if before else Limits(address=off, bad_token=off, caller=off)
        return RuntimeConfig(
            environments={
                e.name: self._environment(e, environments.get(e.name))
                for e in settings.environments
            },
            verifier=verifier,
            ages=_ages(settings),
            max_bytes=settings.cache_max_bytes,
            limits=Limits(
                address=_limiter("address", settings.ip_rate_limit, limits.address, self.sharing),
                bad_token=_limiter(
                    "bad-token", settings.bad_token_limit, limits.bad_token, self.sharing
                ),
                caller=_limiter("caller", settings.rate_limit, limits.caller, self.sharing),
            ),
            trusted_proxies=settings.trusted_proxies,
            default_policy=settings.default_policy,
            policies=settings.policies,
            responses=ResponseBuilder(
                settings.allowed_origins, cookie=settings.token_cookie is not None
            ),
            token_cookie=settings.token_cookie.encode() if settings.token_cookie else None,
            pages=_PAGES | {b"/openapi.json": _openapi(settings)},
        )

    def _environment(
        self, environment: EnvironmentSettings, before: Environment | None
    ) -> Environment:
        rate = environment.upstream_budget
        origin = (environment.api_url, self._id(environment), environment.branch)
        if before is not None and before.origin != origin:
            before = None
        limit, seconds = (rate.limit, rate.seconds) if rate else (None, 1)
        if before is not None and (before.budget.limit, before.budget.seconds) == (limit, seconds):
            budget = before.budget
        else:
            budget = Budget(limit, seconds)

        def observe(quota: Quota) -> None:
            now, wall = self._clock()
            budget.observe(
                now, limit=quota.limit, remaining=quota.remaining, reset=quota.reset - wall
            )
            if self.sharing is not None:
                self.sharing.observe(
                    environment.name,
                    limit=quota.limit,
                    remaining=quota.remaining,
                    reset=quota.reset - wall,
                )

        upstream = Upstream(
            self._client,
            url=environment.api_url,
            secret_keys=[key.reveal() for key in environment.secret_keys],
            branch=environment.branch,
            timeout=self._patience,
            user_agent=f"bff/{__version__}",
            observe=observe,
        )
        if self._tracing:
            upstream = self._tracing.upstream(upstream)
        return Environment(environment.name, origin, upstream, budget)

    def _sharing(self, settings: Settings) -> Sharing:
        telemetry, clock = self._telemetry, self._clock
        assert settings.store_url is not None  # noqa: S101  asked by who calls

        def changed(reason: str | None) -> None:
            if reason is None:
                telemetry.log.info("store_there", replicas=store.replicas)
                self._spawn(sharing.republish([r.encode() for r in self.gateway.revocations.all()]))
            else:
                telemetry.log.warning("store_away", reason=reason, replicas=store.replicas)

        store = Store(
            settings.store_url,
            timeout=settings.store_timeout,
            name=os.urandom(8).hex(),
            count=lambda outcome, by: telemetry.count("bff_store_commands", outcome, by=by),
            changed=changed,
        )
        sharing = Sharing(
            store,
            namespaces=_namespaces(settings),
            make=make_copy,
            negative_ttl=settings.cache_negative_ttl,
            deadline=self._patience,
            clock=clock,
            spawn=self._spawn,
            tokens=lambda: os.urandom(8).hex(),
            count=telemetry.count,
            on_purge=self._forget,
            on_revocation=self._hear_revocation,
        )
        return sharing

    def _hear_revocation(self, text: str) -> None:
        self.ops.hear_revocation(text)

    def _forget(self, environment: str, id_: str) -> None:
        self.gateway.cache.purge(environment, id_)

    def _learned(self, environment: EnvironmentSettings, id_: str) -> None:
        """Go on with the id that upstream told of *environment*."""
        self._ids[environment.name] = (_told_of(environment), id_)
        self.gateway.apply(self._config(self._told, self.gateway.config))

    def _id(self, environment: EnvironmentSettings) -> str | None:
        """The id as the settings have it or, of that very key and place, upstream."""
        told_of, id_ = self._ids.get(environment.name, (None, None))
        return environment.id or (id_ if told_of == _told_of(environment) else None)

    def _spawn(self, load: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(load)
        # The loop holds tasks weakly, and whoever waits for this one may leave.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self._client:
            await self.connect()
            # Held by this frame, which outlives them.
            beside = [asyncio.create_task(self._watch()), asyncio.create_task(self._measure_lag())]
            self._key_refresh_task = asyncio.create_task(self.key_refresh.run())
            yield
            for task in (*beside, self._key_refresh_task):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)  # each is bounded by the upstream timeout
            if self.sharing is not None:
                await self.sharing.stop()
            if self._tracing:
                await asyncio.to_thread(self._tracing.close)

    async def connect(self) -> None:
        """Reach the store, if there is one; once.

        Raises:
            StoreError: it cannot be used, and is not optional.
        """
        if self.sharing is None or self._connected:
            return
        self._connected = True
        try:
            await self.sharing.start()
        except StoreError as exc:
            if not self._told.store_optional:
                await self.sharing.stop()
                raise
            self._telemetry.log.warning("store_away", reason=str(exc))

    def _key_refresh(self) -> KeyRefresh:
        environments = self.gateway.environments
        return KeyRefresh(
            lambda url: self._client.fetch(url, timeout=self._patience),
            self.gateway.verifier.sources,
            {
                e.name: (environments[e.name].upstream.environment_id, partial(self._learned, e))
                for e in self._told.environments
                if e.learn and self._id(e) is None
            },
            clock=self._clock,
            telemetry=self._telemetry,
        )

    def _restart_key_refresh(self) -> None:
        """Let the upkeep know what the settings are now."""
        self.key_refresh = self._key_refresh()
        if self._key_refresh_task is not None:
            self._key_refresh_task.cancel()
            self._key_refresh_task = asyncio.create_task(self.key_refresh.run())

    def _gauges(self) -> dict[str, dict[tuple[str, ...], float]]:
        now, _ = self._clock()
        gateway, environments = self.gateway, self.gateway.environments
        left = {name: e.budget.left(now) for name, e in environments.items()}
        return {
            "bff_build_info": {(__version__,): 1},
            "bff_settings_current": {(): float(self._settings_current)},
            "bff_signing_key_used_timestamp_seconds": {
                (use.environment, str(use.number)): use.last for use in gateway.verifier.uses
            },
            "bff_connections": {(): self._connections.open},
            "bff_store_up": {(): float(self.sharing.up)} if self.sharing else {},
            "bff_replicas": {(): self.sharing.replicas} if self.sharing else {},
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
                (name,): float(gateway.loader.ready(environment)[0])
                for name, environment in environments.items()
            },
        }


def _limiter(name: str, rate: Rate | None, before: Limiter, sharing: Sharing | None) -> Limiter:
    if rate is None:
        return Unlimited(name)
    if (before.limit, before.seconds) == (rate.limit, rate.seconds):
        return before
    return Limiter(name, rate.limit, rate.seconds, provider=sharing)


def _namespaces(settings: Settings) -> dict[str, Namespace]:
    """Where each environment's things are in the store: apart from whatever differs."""
    policies = {type_: policy.fingerprint for type_, policy in settings.policies.items()}
    config = fingerprint(__version__, settings.default_policy.fingerprint, sorted(policies.items()))
    return {
        # Without an id, the key alone says which environment it is.
        e.name: Namespace(
            fingerprint(e.name, e.api_url, e.branch, e.id or e.secret_keys[0].reveal()),
            config,
            _seal(e),
        )
        for e in settings.environments
    }


def _seal(environment: EnvironmentSettings) -> bytes:
    """Make the key that seals verdicts: another for each upstream, and for each set of keys."""
    e = environment
    signing_keys = [key.reveal() for key in e.signing_keys]
    told = [__version__, e.name, e.api_url, e.branch, e.id, e.verify, signing_keys]
    key = b"bff verdicts " + e.secret_keys[0].reveal().encode()
    return hmac.digest(key, json.dumps(told).encode(), "sha256")


def _told_of(environment: EnvironmentSettings) -> object:
    """What decides which environment upstream tells of."""
    return environment.api_url, environment.branch, environment.secret_keys


def _sources(settings: Settings, before: Settings, known: tuple[Source, ...]) -> tuple[Source, ...]:
    """Make the token sources; *known* are those of the settings *before*, in their order."""
    pairs = list(zip(before.token_sources, known, strict=False))

    def source(told: SourceSettings) -> Source:
        fetched = None
        for was, one in pairs:
            if was == told:
                return one
            origin = (told.jwks_url, told.algorithms, told.keys_trusted)
            if told.jwks_url and origin == (was.jwks_url, was.algorithms, was.keys_trusted):
                fetched = one.keys
        keys = [shared_key(key.reveal()) for key in told.shared_keys]
        if told.jwks is not None:
            keys = list(read_jwks(told.jwks, told.algorithms))
        return Source(
            name=told.name,
            environment=told.environment,
            issuer=told.issuer,
            audiences=told.audiences,
            algorithms=told.algorithms,
            keys=KeySet(keys, url=told.jwks_url, trusted_seconds=told.keys_trusted)
            if fetched is None
            else fetched,
            scopes_path=told.scopes_path,
            scopes_are_text=told.scopes_are_text,
            required=told.required,
        )

    return tuple(map(source, settings.token_sources))


def _ages(settings: Settings) -> Ages:
    return Ages(
        ttl=settings.cache_ttl,
        closed_ttl=settings.cache_closed_ttl,
        stale_while_revalidate=settings.cache_stale_while_revalidate,
        stale_if_error=settings.cache_stale_if_error,
        negative_ttl=settings.cache_negative_ttl,
    )


def _openapi(settings: Settings) -> bytes:
    told = openapi.document(
        settings.default_policy, settings.policies, __version__, cookie=settings.token_cookie
    )
    return json.dumps(told).encode()


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
            "routes": [
                "GET /api/v1/sessions",
                "GET /api/v1/sessions/{session}",
                "GET /openapi.json",
                "GET /healthz",
            ],
        }
    ).encode(),
    b"/healthz": b'{"status": "ok"}',
}

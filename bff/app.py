"""The composition root: settings in, two ASGI applications out. Nothing is wired anywhere else."""

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from bff import metrics
from bff.background import Background, Beat
from bff.clock import Clock, system_clock
from bff.config.builder import ConfigBuilder
from bff.config.reload import Reload
from bff.config.settings import Settings
from bff.gateway.decide import Gateway
from bff.gateway.features import LastingParts
from bff.ops.admin import Ops, ops_protocol
from bff.ops.changes import Changes, report_key
from bff.ops.gauges import read_gauges
from bff.ops.tracing import TracedEndpoint, Tracing
from bff.replicas.alone import Alone, AnySharing
from bff.replicas.republisher import OTHERS_SECONDS
from bff.replicas.sharing import Sharing
from bff.replicas.store import Store
from bff.replicas.valkey import StoreAddress, StoreError
from bff.server import fast_path
from bff.server.asgi import Endpoint, ErrorBoundary
from bff.server.bounds import Bounds, ConnectionLimiter
from bff.server.connection import BoundedProtocol
from bff.server.worker_ipc import WorkerNews, WorkerPeers
from bff.telemetry import Telemetry
from bff.upstream.other_hosts import Network

T = TypeVar("T")

_ID_BYTES: Final = 8
"""Random bytes of a request id: too many for two requests of one log to share an id."""
_IDS_DRAWN: Final = 512
"""Request ids for which random bytes are drawn at once."""
LAG_SECONDS: Final = 0.5
"""Seconds between two measurements of how late the event loop is."""


class Service:
    """One gateway with what it owns: its client, its loads in flight, its two applications.

    Args:
        settings: what the gateway starts with.
        telemetry: where it counts and logs.
        reload: reads the settings again; raises `SettingsError`.
        clock: reads the two clocks.
        network: how other servers are reached, if not on sockets; for tests.
        routes: more routes for the browser port; for the demo.
        tracing: makes spans; None if tracing is off.
        peers: the other workers; None if this process is the only one.
        max_connections: a lower bound than the setting's, if there are too few descriptors.
        unconfirmed: environments whose id is set, but was not compared with upstream's.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        reload: Callable[[], Settings] | None = None,
        clock: Clock = system_clock,
        network: Network | None = None,
        routes: tuple[BaseRoute, ...] = (),
        tracing: Tracing | None = None,
        peers: WorkerPeers | None = None,
        max_connections: int | None = None,
        unconfirmed: frozenset[str] = frozenset(),
    ) -> None:
        telemetry.level = settings.log_level
        self._clock = clock
        self._telemetry = telemetry
        self.tracing = tracing
        self._connected = False
        self._timeout = settings.upstream_timeout
        self._tasks: set[asyncio.Task[Any]] = set()
        self.background = Background(telemetry)
        self.network = network or Network.open(
            ca_file=settings.upstream_ca_file,
            connect_timeout=settings.upstream_connect_timeout,
            clock=clock,
        )
        shared = self._make_sharing(settings, settings.store_url) if settings.store_url else None
        alone = Alone(clock, WorkerNews(peers, self._spawn).announce) if peers else Alone(clock)
        self.sharing: AnySharing = shared or alone
        self._builder = ConfigBuilder(
            self.network.api,
            timeout=self._timeout,
            sharing=self.sharing,
            provider=shared.limits if shared else None,
            clock=clock,
            trace=tracing.upstream if tracing else lambda upstream: upstream,
            on_key=partial(report_key, telemetry, clock),
        )
        self.gateway = self._make_gateway(settings)
        self.connections, self.bounded_protocol = _make_protocol(
            settings,
            self.gateway,
            telemetry,
            max_connections=max_connections or settings.max_connections,
        )
        """The second makes the protocol of a connection, without the fast path."""
        # A span is a task's and a route is Starlette's: the fast path has neither.
        fast = settings.fast_path and tracing is None and not routes
        self.protocol = (
            fast_path.protocol(self.gateway, self.bounded_protocol, clock)
            if fast
            else self.bounded_protocol
        )
        """Makes the protocol of each connection on the browser port."""
        telemetry.gauges = partial(read_gauges, self)
        self.changes = Changes(
            settings,
            builder=self._builder,
            gateway=self.gateway,
            sharing=self.sharing,
            connections=self.connections,
            background=self.background,
            fetch=lambda url: self.network.others.fetch(url, timeout=self._timeout),
            telemetry=telemetry,
            clock=clock,
            unconfirmed=set(unconfirmed),
        )
        self.reload = Reload(
            settings,
            read=reload or (lambda: settings),
            apply=self.changes.apply,
            telemetry=telemetry,
        )
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
            sharing=shared,
            background=self.background,
            peers=peers,
            names=settings.ops_names,
            clock=clock,
        )
        self.ops_app = self.ops.app
        self.ops_protocol = ops_protocol()
        """Makes the protocol of each connection on the ops port."""

    # -- the parts

    def _make_gateway(self, settings: Settings) -> Gateway:
        config = self._builder.build(settings)
        lasting = LastingParts(
            config,
            telemetry=self._telemetry,
            clock=self._clock,
            sharing=self.sharing,
            spawn=self._spawn,
            request_ids=_request_ids(),
            part_ids=lambda: os.urandom(16).hex(),
        )
        return Gateway(config, lasting)

    def _make_sharing(self, settings: Settings, address: StoreAddress) -> Sharing:
        telemetry = self._telemetry

        def changed(reason: str | None) -> None:
            if reason is None:
                telemetry.log.info("store_there", replicas=store.replicas)
            else:
                telemetry.log.warning("store_away", reason=reason, replicas=store.replicas)

        store = Store(
            address,
            background=self.background,
            timeout=settings.store_timeout,
            name=_token(),
            count=lambda outcome, by: telemetry.count(metrics.STORE_COMMANDS, outcome, by=by),
            changed=changed,
            revocations=lambda: self.gateway.revocations.in_force(self._clock()[1]),
            waits=lambda: telemetry.log.info("store_incomplete", seconds=OTHERS_SECONDS),
            begun=lambda: telemetry.log.warning("store_data_begun"),
            random=os.urandom,
        )
        return Sharing(
            store,
            deadline=self._timeout,
            clock=self._clock,
            spawn=self._spawn,
            tokens=_tokens(),
            count=telemetry.count,
            # The gateway and the ops are made later.
            on_purge=lambda name, id_: self.gateway.cache.purge(name, id_),  # noqa: PLW0108
            on_revocation=lambda text: self.ops.apply_revocation(text),  # noqa: PLW0108
            on_news=lambda *news: self.gateway.news.receive(*news),  # noqa: PLW0108
        )

    # -- its life

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        # The event loop holds tasks weakly, and whatever waits for this one may end.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self.connect()
        self.changes.start()
        self.reload.start()
        self.background.start("settings_watch", self.reload.watch, deadline=30.0)
        lag = partial(measure_lag, self._telemetry, self._clock)
        self.background.start("loop_lag", lag, deadline=30.0)
        self.background.start("readiness", self.gateway.readiness.run, deadline=120.0)
        self.background.start("streams", self.gateway.stream_checks.watch_streams, deadline=30.0)
        self.background.start(
            "listeners", self.gateway.stream_checks.watch_listeners, deadline=30.0
        )
        yield
        self.reload.stop()
        await self.background.stop(
            "settings_watch", "loop_lag", "readiness", "streams", "listeners", "key_refresh"
        )
        self.gateway.loader.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)  # each is bounded by the upstream timeout
        await self.sharing.stop()
        await self.background.stop()
        await self.network.aclose()
        if self.tracing:
            await self.tracing.close()

    async def connect(self) -> None:
        """Connect to the store, if there is one; once.

        Raises:
            StoreError: the store cannot be used, and it is not optional.
        """
        if self._connected:
            return
        self._connected = True
        try:
            await self.sharing.start()
        except StoreError as exc:
            if not self.reload.settings.store_optional:
                await self.sharing.stop()
                raise
            self._telemetry.log.warning("store_away", reason=str(exc))

    def drain(self) -> None:
        """Show that this gateway ends, and end its streams over the time that the settings give."""
        self.gateway.readiness.is_stopping = True
        gateway, seconds = self.gateway, self.gateway.config.chat.drain_seconds
        self._spawn(gateway.streams.drain(seconds))
        self._spawn(gateway.listeners.drain(seconds))

    def note_short(self) -> None:
        """Count and log that the system had no descriptor for a connection."""
        self._telemetry.count(metrics.CLOSED_CONNECTIONS, "no_descriptor")
        self._telemetry.often("no_descriptor", self.now, logging.ERROR)

    @property
    def now(self) -> float:
        """Seconds on the clock that never jumps."""
        return self._clock()[0]


async def measure_lag(telemetry: Telemetry, clock: Clock, beat: Beat) -> None:
    """Measure how late the event loop is, without end."""
    while True:
        beat()
        due = clock()[0] + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        telemetry.observe(metrics.LOOP_LAG_SECONDS, max(0.0, clock()[0] - due))


def _make_protocol(
    settings: Settings, gateway: Gateway, telemetry: Telemetry, *, max_connections: int
) -> "tuple[ConnectionLimiter, partial[BoundedProtocol]]":
    bounds = Bounds(
        head_bytes=settings.max_head_bytes,
        headers=settings.max_headers,
        request_seconds=settings.request_timeout,
        idle_seconds=settings.idle_timeout,
        unread_seconds=settings.idle_timeout,
        connections=max_connections,
        connections_per_address=settings.max_connections_per_address,
        buffered_bytes=settings.max_buffered_bytes,
    )
    connections = ConnectionLimiter(
        bounds,
        trusted=settings.trusted_proxies,
        count=lambda reason: telemetry.count(metrics.CLOSED_CONNECTIONS, reason),
    )
    gateway.streams.is_memory_full = lambda: connections.buffers.full
    return connections, partial(
        BoundedProtocol, bounds=bounds, connections=connections, refuse=gateway.malformed
    )


def _token() -> str:
    return os.urandom(8).hex()


def _tokens() -> Callable[[], str]:
    """Make tokens that no other process makes, and none twice."""
    own, numbers = _token(), itertools.count()
    return lambda: f"{own}{next(numbers)}"


def _request_ids() -> Callable[[], bytes]:
    """Make ids of random bytes: a count would tell every browser how many requests there are.

    The bytes are drawn for many ids at once, so an id costs a hit no more than a count would.
    """

    def ids() -> Iterator[bytes]:
        while True:
            digits = os.urandom(_ID_BYTES * _IDS_DRAWN).hex().encode()
            for start in range(0, len(digits), 2 * _ID_BYTES):
                yield digits[start : start + 2 * _ID_BYTES]

    return ids().__next__

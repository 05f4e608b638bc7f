"""Reads the gauges of a gateway, for `/metrics`."""

from itertools import product
from typing import Protocol

from bff import __version__, metrics
from bff.background import Background
from bff.config.reload import Reload
from bff.gateway.decide import Gateway
from bff.ops.tracing import Tracing
from bff.replicas.alone import AnySharing
from bff.replicas.sharing import Sharing
from bff.server.bounds import ConnectionLimiter


class Gauged(Protocol):
    """The part of `bff.app.Service` that has gauges."""

    gateway: Gateway
    sharing: AnySharing
    reload: Reload
    background: Background
    connections: ConnectionLimiter
    tracing: Tracing | None

    @property
    def now(self) -> float:
        """Seconds on the clock that never jumps."""


def read_gauges(service: Gauged) -> dict[str, dict[tuple[str, ...], float]]:
    """Read the samples of every gauge of *service*, by label values.

    Counters whose labels are known are included as 0, so that Prometheus sees their first increase.
    """
    gateway, sharing = service.gateway, service.sharing
    environments, verifier = gateway.config.environments, gateway.config.verifier
    left = {name: e.budget.left(service.now) for name, e in environments.items()}
    shared = isinstance(sharing, Sharing)
    return {
        metrics.BUILD_INFO: {(__version__,): 1},
        metrics.SETTINGS_CURRENT: {(): float(service.reload.current)},
        metrics.SIGNING_KEY_USED: {
            (use.environment, str(use.number)): use.last for use in verifier.uses
        },
        metrics.BACKGROUND_UP: {(t,): float(up) for t, up in service.background.up.items()},
        metrics.BUFFERED_BYTES: {(): service.connections.buffers.held},
        metrics.SPANS_LOST: {(): service.tracing.lost if service.tracing else 0},
        metrics.CONNECTIONS: {(): service.connections.total},
        metrics.STREAMS: {(): len(gateway.streams)},
        metrics.LISTENERS: {(): len(gateway.listeners)},
        metrics.FOLLOWED: {(): gateway.listeners.watched},
        metrics.STORE_UP: {(): float(sharing.up)} if shared else {},
        metrics.REPLICAS: {(): sharing.replicas} if shared else {},
        metrics.LOADS: dict.fromkeys(product(environments, metrics.LOAD_OUTCOMES), 0.0),
        metrics.CACHE: dict.fromkeys(product(environments, metrics.CACHE_RESULTS), 0.0),
        metrics.SECRET_KEY_CHANGES: {(name,): 0.0 for name in environments},
        metrics.COPIES: {(): len(gateway.cache)},
        metrics.COPY_BYTES: {(): gateway.cache.bytes},
        metrics.LOADS_IN_FLIGHT: {(): len(gateway.cache.loads)},
        metrics.LOADS_QUEUED: {(name,): len(gateway.loader.queue(name)) for name in environments},
        metrics.VERIFIED_TOKENS: {(): len(verifier)},
        metrics.REVOCATIONS: {(): len(gateway.revocations)},
        metrics.STRETCHED_TTL_SECONDS: {
            (name,): min(e.budget.hot.stretch, gateway.config.ages.max_stretch)
            for name, e in environments.items()
        },
        metrics.BUDGET_LEFT: {
            (name,): float("inf") if n is None else n for name, n in left.items()
        },
        metrics.READY: {
            (name,): float(gateway.readiness.state(environment)[0])
            for name, environment in environments.items()
        },
        metrics.UPSTREAM_UP: {
            (name,): float(e.health == "ok") for name, e in environments.items() if e.health
        },
        metrics.SECRET_KEY_IN_USE: {
            (name,): e.upstream.credentials.in_use + 1 for name, e in environments.items()
        },
    }

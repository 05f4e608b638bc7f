"""Changes the running gateway: new settings, ids that upstream returned, keys that it rejected."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from bff import metrics
from bff.background import Background
from bff.clock import Clock
from bff.config.builder import ConfigBuilder, same_environment
from bff.config.settings import EnvironmentSettings, Settings
from bff.gateway.decide import Gateway
from bff.ops.environment_id import learn
from bff.ops.key_refresh import IdRequest, KeyRefresh
from bff.replicas.alone import AnySharing
from bff.server.bounds import ConnectionLimiter
from bff.telemetry import Telemetry


@dataclass(eq=False)
class Changes:
    """Applies the settings to every part that depends on them.

    Attributes:
        settings: those in force: first those that the gateway starts with.
        builder: builds the configuration of the gateway.
        fetch: fetches a public document by URL.
        unconfirmed: environments whose id is set, but was not compared with upstream's.
    """

    settings: Settings
    builder: ConfigBuilder
    gateway: Gateway
    sharing: AnySharing
    connections: ConnectionLimiter
    background: Background
    fetch: Callable[[str], Awaitable[bytes]]
    telemetry: Telemetry
    clock: Clock
    unconfirmed: set[str]

    def __post_init__(self) -> None:
        self._share()
        self.key_refresh = self._make_key_refresh()

    def start(self) -> None:
        """Run the key refresh, in place of one that runs."""
        self.background.start("key_refresh", *self.key_refresh.loops(), deadline=120.0)

    def apply(self, settings: Settings) -> None:
        """Use new settings: all of them, or none if they cannot be built."""
        config = self.builder.build(settings, (self.settings, self.gateway.config))
        self.gateway.apply(config)
        self.telemetry.level = settings.log_level
        self.connections.trusted = config.trusted_proxies
        before = {e.name: e for e in self.settings.environments}
        self.unconfirmed |= {
            e.name
            for e in settings.environments
            if e.id is not None
            and (e.name not in before or not same_environment(e, before[e.name]))
        }
        self.settings = settings
        self._share()
        self.key_refresh = self._make_key_refresh()
        self.start()

    def _share(self) -> None:
        """Apply the settings, and the ids learned so far, to the sharing."""
        settings = self.settings
        secrets = [key.reveal().encode() for e in settings.environments for key in e.secret_keys]
        namespaces = self.builder.namespaces(settings)
        self.sharing.apply(namespaces, settings.cache_negative_ttl, secrets)

    def _make_key_refresh(self) -> KeyRefresh:
        config, builder, settings = self.gateway.config, self.builder, self.settings
        return KeyRefresh(
            self.fetch,
            config.verifier.sources,
            {
                e.name: IdRequest(
                    partial(learn, config.environments[e.name].upstream),
                    partial(self._learn, e),
                    is_needed=e.learn,
                )
                for e in settings.environments
                if ((e.learn or settings.store_url) and builder.id_of(e) is None)
                or e.name in self.unconfirmed
            },
            clock=self.clock,
            telemetry=self.telemetry,
        )

    def _learn(self, environment: EnvironmentSettings, id_: str) -> None:
        """Use the id that upstream returned for *environment*, or refuse tokens if it is wrong."""
        self.unconfirmed.discard(environment.name)
        self.builder.learn(environment, id_)
        if self.builder.differs(environment):
            self.telemetry.log.error(
                "environment_id_differs",
                environment=environment.name,
                remedy="no token is accepted: correct BFF_ENVIRONMENT_ID, BFF_BRANCH or "
                "TRIGGER_SECRET_KEY; bff check --probe shows the id of the key",
            )
        config = self.builder.build(self.settings, (self.settings, self.gateway.config))
        self.gateway.apply(config)
        self._share()


def report_key(telemetry: Telemetry, clock: Clock, environment: str, number: int) -> None:
    """Report that upstream rejected a secret key, so that the next one took over."""
    telemetry.count(metrics.SECRET_KEY_CHANGES, environment)
    telemetry.often(
        "secret_key_rejected",
        clock()[0],
        logging.ERROR,
        environment=environment,
        now_used=number,
        remedy="upstream rejects the key that was used before; if it is rotated out, remove it "
        "from TRIGGER_SECRET_KEY",
    )

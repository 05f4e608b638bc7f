"""Whether the gateway can serve each environment, as far as it knows, and why."""

import asyncio
from typing import Final

from bff.clock import Clock
from bff.config.runtime import Environment
from bff.copies.cache import Cache
from bff.copies.loader import REJECTED, Loader
from bff.errors import Refusal
from bff.sessions.copy import Copy

CHECK_SECONDS: Final = 2.0
"""Seconds between two readiness checks of one environment, however often an operator asks."""


class Readiness:
    """Tells an operator which environments can be served."""

    def __init__(
        self,
        loader: Loader,
        *,
        cache: "Cache[Copy | Refusal]",
        clock: Clock,
    ) -> None:
        self._loader = loader
        self._cache = cache
        self._clock = clock

    async def check(self) -> dict[str, tuple[bool, str]]:
        """Check every environment; calls upstream where its state is not known."""
        now, _ = self._clock()
        environments = self._loader.config.environments
        loads = [
            self._loader.check(environment, now)
            for environment in environments.values()
            if not environment.health == environment.last_load == "ok"
            if now - environment.checked >= CHECK_SECONDS
            if environment.budget.wait(now) <= 0
        ]
        if loads:
            await asyncio.wait(loads)
        return {name: self.state(environment) for name, environment in environments.items()}

    def state(self, environment: Environment) -> tuple[bool, str]:
        """Whether *environment* can be served, and why; calls nothing."""
        now, _ = self._clock()
        if environment.name in self._loader.config.verifier.pending:
            return False, (
                "the environment's id is not known yet, so the gateway cannot tell its tokens: "
                "if the secret key cannot tell it, set BFF_ENVIRONMENT_ID"
            )
        if environment.health == "ok":
            return True, "the upstream answers and accepts the key"
        if environment.health == "upstream_rejected_credentials":
            return (
                False,
                f"the upstream rejects the secret key, or it may not read sessions: {REJECTED}",
            )
        trouble = "the upstream was not called yet"
        if environment.health:
            trouble = f"the upstream fails ({environment.health})"
        if self._cache.has_usable(environment.name, now):
            return True, f"{trouble}; copies are served meanwhile"
        return False, f"{trouble}, and there is no copy to serve"

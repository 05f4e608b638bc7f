"""Readiness: whether the gateway can decide requests, and what it knows about upstream.

An upstream outage does not make a gateway unready. The gateway still decides requests, serves
copies and tells browsers what is wrong. A load balancer without a ready gateway would send errors
without CORS headers. Only readiness checks decide whether upstream works. A load does not, because
a browser chooses its id.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final

from bff import metrics
from bff.background import Beat
from bff.clock import Clock
from bff.config.runtime import Environment
from bff.copies.cache import Cache
from bff.copies.loader import KEY_REMEDY, Loader
from bff.errors import Refused, UpstreamError
from bff.replicas.alone import AnySharing
from bff.sessions import ids
from bff.telemetry import Telemetry
from bff.upstream.pool import cause

READINESS_ID: Final = "session_readiness_probe"
"""The id of a readiness check: upstream answers 404 for it if it accepts the secret key."""
CHECK_SECONDS: Final = 2.0
"""Seconds between two readiness checks of one environment, however often an operator asks."""
WATCH_SECONDS: Final = 30.0
"""Seconds between two readiness checks that no operator requests. Ten replicas then spend one call
in three seconds; the default budget has thirty in that time."""
TROUBLE_SECONDS: Final = 10.0
"""Seconds between two such checks while upstream fails, so that a recovery shows soon."""


@dataclass(eq=False)
class Readiness:
    """Tells an operator which environments can be served, and whether upstream works.

    Attributes:
        is_stopping: whether the gateway shuts down.
    """

    loader: Loader
    cache: Cache
    sharing: AnySharing
    telemetry: Telemetry
    clock: Clock
    is_stopping: bool = False

    async def run(self, beat: Beat) -> None:
        """Check upstream periodically until cancelled: an idle gateway notices an outage too."""
        while True:
            beat()
            await asyncio.sleep(TROUBLE_SECONDS)
            await self.check(WATCH_SECONDS - TROUBLE_SECONDS / 2)

    async def check(self, age: float = CHECK_SECONDS) -> None:
        """Ask upstream about each environment whose health is unknown, bad or *age* seconds old."""
        now, _ = self.clock()
        due = [
            environment
            for environment in self.loader.config.environments.values()
            if now - environment.checked >= (age if environment.health == "ok" else CHECK_SECONDS)
        ]
        await asyncio.gather(*map(self._ask, due))

    async def _ask(self, environment: Environment) -> None:
        """Ask upstream for a session that does not exist; it costs one call of the budget."""
        spend = partial(
            self.sharing.limits.spend,
            environment.name,
            environment.budget,
            timeout=self.sharing.timeout,
        )

        async def spend_again() -> None:
            if await spend() > 0:
                raise Refused("over_budget")

        if await spend() > 0:
            return
        code, why = "ok", None
        try:
            await environment.upstream.get(ids.path(READINESS_ID), read=bytes, again=spend_again)
        except UpstreamError as error:
            # Upstream's own 404 and 429 come after it accepted the key.
            code = "ok" if error.code in ("not_found", "over_budget") else error.code
            why = cause(error)
        except Refused:
            return
        except Exception as exc:  # noqa: BLE001  one failed check must not end `run`
            self.telemetry.exception("readiness_check_failed", exc)
            code = "internal"
        self.telemetry.count(metrics.UPSTREAM_CHECKS, environment.name, code)
        self._log(environment, code, why)
        environment.health, environment.checked = code, self.clock()[0]

    def _log(self, environment: Environment, code: str, why: str | None) -> None:
        """Log a change of health, unless the last load met and logged it already."""
        before, log = environment.health, self.telemetry.log
        if code in (before, environment.last_load) or (code == "ok" and before is None):
            return
        fields = {"environment": environment.name, "outcome": code}
        if code == "ok":
            log.warning("upstream_recovered", **fields)
        elif code == "upstream_rejected_credentials":
            log.error("upstream_rejects_our_key", remedy=KEY_REMEDY, **fields)
        else:
            log.warning("upstream_failing", why=why, **fields)

    # -- the report

    def state(self, environment: Environment) -> tuple[bool, str]:
        """Whether requests for *environment* can be decided, and whether upstream works. No I/O."""
        if self.is_stopping:
            return False, "the gateway shuts down"
        trouble = self._keyless(environment.name)
        if trouble:
            return False, trouble
        return True, self.upstream(environment)

    def _keyless(self, name: str) -> str | None:
        """Say why no token of an environment can be verified; None if one can."""
        _, wall = self.clock()
        verifier = self.loader.config.verifier
        sources = [source for source in verifier.sources if source.environment == name]
        if any(source.keys.trusted(wall) for source in sources):
            return None
        if name in verifier.pending:
            return (
                "the gateway accepts no token: it has not fetched the environment's id, or that "
                "differs from the settings; see environment_id_… in the log, or set "
                "BFF_ENVIRONMENT_ID"
            )
        issuer = next((one for one in verifier.issuers if one.environment == name), None)
        if issuer is not None and (issuer.keys or issuer.upstream):
            return None
        return "the gateway has no trusted key for its tokens: see bff_key_fetches_total"

    def upstream(self, environment: Environment) -> str:
        """Say whether upstream works, by the last readiness check."""
        now, _ = self.clock()
        seconds = now - environment.checked
        if environment.health is None:
            return "the upstream was not checked yet"
        age = f"checked {seconds:.0f} s ago"
        if environment.health == "ok":
            if seconds <= WATCH_SECONDS:
                return f"the upstream answers and accepts the key ({age})"
            return f"unknown: the upstream's last answer is {seconds:.0f} s old"
        if environment.health == "upstream_rejected_credentials":
            text = f"the upstream rejects the secret key, or it may not read sessions: {KEY_REMEDY}"
        else:
            text = f"the upstream fails ({environment.health})"
        copies = self.cache.has_usable(environment.name, now)
        more = "copies are served meanwhile" if copies else "there is no copy to serve"
        return f"{text} ({age}); {more}"

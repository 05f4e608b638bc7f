"""The shared copy of a session: fresh, stale, or to be loaded."""

from dataclasses import dataclass

from bff import metrics
from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.load_queue import TURN_SECONDS
from bff.copies.loader import Loader
from bff.errors import Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import HIT, STALE, STALE_IF_ERROR
from bff.gateway.context import RequestContext
from bff.gateway.pending import FALLBACK_SECONDS, PendingLoad, Served
from bff.sessions.copy import Copy, NegativeEntry, State
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller


@dataclass(eq=False)
class Lookup:
    """Finds copies by one configuration, and starts loads."""

    config: RuntimeConfig
    admission: Admission
    cache: Cache
    loader: Loader
    telemetry: Telemetry

    def find(
        self, request: RequestContext, caller: Caller, session_id: str, *, alone: bool = True
    ) -> Served | PendingLoad:
        """Find a copy that this caller may read, or the load that will bring one.

        *alone* says that the request is for this session alone.

        Raises:
            Refused: ``not_found``, ``unauthorized`` or ``over_budget``.
        """
        now, environment = request.now, self.config.environments[caller.environment]
        entry = self.cache.find(environment.name, session_id, now)
        if entry is None:
            self.admission.refuse_revoked_session(request, caller, session_id)
            return self._load(request, caller, session_id, environment, None, alone=alone)
        if isinstance(entry, NegativeEntry):
            self.admission.refuse_revoked_session(request, caller, session_id)
            self.telemetry.count(metrics.CACHE, environment.name, "negative")
            raise Refused("not_found")
        # The ids of a session never change, so an old copy still has the right ids.
        self.admission.authorize(request, caller, entry)
        if now >= entry.hot_until:
            self._count_hot(request, caller, environment, entry)
        ages = self.cache.ages
        if ages.fresh(entry, now, 0.0):
            return entry, HIT
        hot, key = environment.budget.hot, caller.limit_key(request.address)
        entry.share = hot.take_over(entry.share, key, now, ages.ttl)
        if ages.fresh(entry, now, entry.share.stretch):
            return entry, HIT
        return self._refresh(request, caller, session_id, environment, entry, alone=alone)

    def _count_hot(
        self, request: RequestContext, caller: Caller, environment: Environment, copy: Copy
    ) -> None:
        """Count the session as hot, once in an epoch."""
        hot, key = environment.budget.hot, caller.limit_key(request.address)
        copy.share = hot.count(copy.share, key, request.now, self.cache.ages.ttl)
        copy.hot_until = hot.epoch_ends

    def _refresh(
        self,
        request: RequestContext,
        caller: Caller,
        session_id: str,
        environment: Environment,
        copy: Copy,
        *,
        alone: bool,
    ) -> Served | PendingLoad:
        """Use an older copy as its age permits, and queue the load of a newer one."""
        now = request.now
        state = self.cache.ages.state(copy, now, copy.share.stretch)
        if state is State.STALE:
            if now >= copy.retry_at:
                key = caller.limit_key(request.address)
                self.loader.refresh(environment, session_id, copy, key)
            return copy, STALE
        if state is State.EXPIRED:
            return self._load(request, caller, session_id, environment, None, alone=alone)
        if now < copy.retry_at:
            return copy, STALE_IF_ERROR
        return self._load(request, caller, session_id, environment, copy, alone=alone)

    def _load(
        self,
        request: RequestContext,
        caller: Caller,
        session_id: str,
        environment: Environment,
        fallback: Copy | None,
        *,
        alone: bool,
    ) -> Served | PendingLoad:
        """Wait for the load in flight, or for a new load if its turn is near."""
        now = request.now
        key = caller.limit_key(request.address)
        load, collapsed = self.loader.request(environment, session_id, fallback, key, alone=alone)
        if load is None:
            expected = environment.budget.wait(now, len(self.loader.queue(environment.name)))
        else:
            expected = load.expected(now)
            if expected <= (TURN_SECONDS if fallback is None else FALLBACK_SECONDS):
                return PendingLoad(
                    request, caller, session_id, load, fallback, collapsed, self.config
                )
            load.leave(again=True)
            if alone:
                load.keep(expected)
        if fallback is not None:
            return fallback, STALE_IF_ERROR
        raise Refused("over_budget", retry_after=expected)

"""The shared copy of a session: fresh, stale, or to be loaded."""

from dataclasses import dataclass

from bff import metrics
from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.load_queue import TURN_SECONDS
from bff.copies.loader import Loader
from bff.errors import Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import HIT, STALE, STALE_IF_ERROR
from bff.gateway.context import RequestContext
from bff.gateway.pending import FALLBACK_SECONDS, PendingLoad, Served
from bff.sessions.copy import Copy, State
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
        if not isinstance(entry, Copy):
            self.admission.refuse_revoked_session(request, caller, session_id)
            if entry is None:
                return self._load(request, caller, session_id, None, alone=alone)
            self.telemetry.count(metrics.CACHE, environment.name, "negative")
            raise Refused("not_found")
        # The ids of a session never change, so an old copy still has the right ids.
        self.admission.authorize(request, caller, entry)
        ages = self.cache.ages
        if now >= entry.hot_until:  # the session is counted as hot once in an epoch
            hot, key = environment.budget.hot, caller.limit_key(request.address)
            entry.share = hot.count(entry.share, key, now, ages.ttl)
            entry.hot_until = hot.epoch_ends
        if ages.fresh(entry, now, 0.0):
            return entry, HIT
        hot, key = environment.budget.hot, caller.limit_key(request.address)
        entry.share = hot.take_over(entry.share, key, now, ages.ttl)
        if ages.fresh(entry, now, entry.share.stretch):
            return entry, HIT
        state = ages.state(entry, now, entry.share.stretch)
        if state is State.STALE:
            if now >= entry.retry_at:
                self.loader.refresh(environment, session_id, entry, key)
            return entry, STALE
        fallback = entry if state is State.STALE_IF_ERROR else None
        if fallback is not None and now < entry.retry_at:
            return fallback, STALE_IF_ERROR
        return self._load(request, caller, session_id, fallback, alone=alone)

    def _load(
        self,
        request: RequestContext,
        caller: Caller,
        session_id: str,
        fallback: Copy | None,
        *,
        alone: bool,
    ) -> Served | PendingLoad:
        """Wait for the load in flight, or for a new load if its turn is near."""
        environment = self.config.environments[caller.environment]
        now = request.now
        key = caller.limit_key(request.address)
        load, collapsed = self.loader.request(environment, session_id, fallback, key, alone=alone)
        if load is None:
            expected = environment.budget.wait(now, len(self.loader.queue(environment.name)))
        else:
            expected = load.expected(now)
            if expected <= (TURN_SECONDS if fallback is None else FALLBACK_SECONDS):
                return PendingLoad(request, caller, session_id, load, fallback, collapsed)
            load.leave(again=True)
            if alone:
                load.keep(expected)
        if fallback is not None:
            return fallback, STALE_IF_ERROR
        raise Refused("over_budget", retry_after=expected)

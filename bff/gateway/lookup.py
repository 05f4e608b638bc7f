"""The shared copy of a session: fresh, stale, or to be loaded."""

from bff import metrics
from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.loader import Loader
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.answers import HIT, STALE, STALE_IF_ERROR
from bff.gateway.context import RequestContext
from bff.gateway.pending import PendingLoad, Served
from bff.sessions.copy import Copy, NegativeEntry, State
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.scopes import Grant


class Lookup:
    """Finds copies by one configuration, and starts loads."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        admission: Admission,
        cache: "Cache[Copy | Refusal]",
        loader: Loader,
        telemetry: Telemetry,
    ) -> None:
        self._config = config
        self._environments = config.environments
        self._admission = admission
        self._cache = cache
        self._loader = loader
        self._telemetry = telemetry

    def find(
        self, request: RequestContext, caller: Caller[Grant], session_id: str
    ) -> Served | PendingLoad:
        """Find a copy that this caller may read, or the load that will bring one.

        Raises:
            Refused: ``not_found``, ``unauthorized`` or ``over_budget``.
        """
        now, environment = request.now, self._environments[caller.environment]
        entry = self._cache.find(environment.name, session_id, now)
        if entry is None:
            self._admission.refuse_revoked_session(request, caller, session_id)
            return self._load(request, caller, session_id, environment, None)
        if isinstance(entry, NegativeEntry):
            self._admission.refuse_revoked_session(request, caller, session_id)
            self._telemetry.count(metrics.CACHE, environment.name, "negative")
            raise Refused("not_found")
        # The ids of a session never change, so those of an old copy still hold.
        self._admission.authorize(request, caller, entry)
        budget = environment.budget
        entry.epoch = budget.count_hot(entry.epoch, now)
        if self._cache.ages.fresh(entry, now, budget.stretched):
            return entry, HIT
        return self._refresh(request, caller, session_id, environment, entry)

    def _refresh(
        self,
        request: RequestContext,
        caller: Caller[Grant],
        session_id: str,
        environment: Environment,
        copy: Copy,
    ) -> Served | PendingLoad:
        """Use a copy that is not fresh as far as its age allows, and load a new one."""
        now, budget = request.now, environment.budget
        state = self._cache.ages.state(copy, now, budget.stretched)
        in_flight = self._loader.in_flight(environment.name, session_id) is not None
        delay = max(self._loader.delay(budget, now), copy.retry - now)
        if state is State.STALE:
            if not in_flight and delay <= 0:
                self._loader.start(environment, session_id, copy, now)
            return copy, STALE
        if state is State.STALE_IF_ERROR:
            if not in_flight and delay > 0:
                return copy, STALE_IF_ERROR
            return self._load(request, caller, session_id, environment, copy)
        return self._load(request, caller, session_id, environment, None)

    def _load(
        self,
        request: RequestContext,
        caller: Caller[Grant],
        session_id: str,
        environment: Environment,
        fallback: Copy | None,
    ) -> PendingLoad:
        """Join the load in flight, or start it."""
        task = self._loader.in_flight(environment.name, session_id)
        collapsed = task is not None
        if task is None:
            delay = self._loader.delay(environment.budget, request.now)
            if delay > 0:
                raise Refused("over_budget", retry_after=delay)
            task = self._loader.start(environment, session_id, fallback, request.now)
        return PendingLoad(request, caller, session_id, task, fallback, collapsed, self._config)

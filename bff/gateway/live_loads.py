"""Asks for the loads, and the peeks, that listeners need.

Listeners ask for loads as polls do, in turns, so that a session is loaded once a TTL for all.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from bff.config.runtime import RuntimeConfig
from bff.errors import Refusal, Refused
from bff.gateway.answers import STALE_IF_ERROR
from bff.gateway.context import RequestContext
from bff.gateway.live import Grounds
from bff.gateway.lookup import Lookup
from bff.gateway.peeks import Peeks
from bff.gateway.pending import PendingLoad
from bff.live.answering import Answering, NoAnswering
from bff.live.listeners import Listeners, Watch
from bff.sessions.copy import Copy
from bff.tokens.caller import Caller

TICK_SECONDS: Final = 0.1
"""Seconds between two looks for sessions that need a load."""
LOOKED_UP_AT_ONCE: Final = 500
"""Sessions that one look asks for at most: the work of a second is bounded."""


@dataclass(eq=False)
class LiveLoads:
    """Asks by one configuration.

    Args:
        listeners: those that are open.
        lookup: finds the load of a session.
        answering: whether agents are answering.
        peeks: ask upstream for that.
    """

    config: RuntimeConfig
    listeners: Listeners
    lookup: Lookup
    answering: Answering | NoAnswering
    peeks: Peeks

    def look(self, now: float, wall: float) -> Iterator[None]:
        """Ask for the loads that listeners need; yields between parts of the work."""
        for number, watch in enumerate(self.listeners.due(now, LOOKED_UP_AT_ONCE), start=1):
            self._ask(watch, now, wall)
            if number % 100 == 0:
                yield
        self.peeks.start(self.config, now)

    def _ask(self, watch: Watch, now: float, wall: float) -> None:
        """Look a session up as a poll does; a copy that is fresh needs no load."""
        grounds: Grounds = watch.next_follower().grounds
        request, caller, ages = grounds.request, grounds.caller, self.config.ages
        request.now, request.wall = now, wall
        _, name = watch.key
        try:
            served = self.lookup.find(request, caller, name)
        except Refused as refused:
            if refused.refusal.code == "not_found":
                stretch = self._stretch(request, caller)
                watch.due = now + max(ages.ttl, min(stretch, ages.max_stretch), ages.negative_ttl)
                self.listeners.missing(watch)
            elif refused.refusal.code != "unauthorized":  # another follower is next
                watch.old = True
            return
        if isinstance(served, PendingLoad):
            if served.fallback is not None:
                watch.old = True
                self.peeks.want(self.answering, served.fallback, now, ages.ttl)
                self.listeners.update(served.fallback)
            if watch.load is not served.load:
                watch.load = served.load
                served.task.add_done_callback(partial(self._loaded, watch))
            served.load.leave(again=True)  # nobody waits for it: the copy comes to `changed`
            return
        copy, outcome = served
        self.peeks.want(self.answering, copy, now, ages.ttl)
        self.listeners.changed(copy)
        watch.old = outcome is STALE_IF_ERROR
        fresh_until = ages.fresh_until(copy, copy.share.stretch)
        if now < fresh_until:
            # Looked up again sooner, because the stretch may become shorter.
            watch.due = min(fresh_until, now + max(1.0, (fresh_until - now) / 4))

    def _stretch(self, request: RequestContext, caller: Caller) -> float:
        hot = self.config.environments[caller.environment].budget.hot
        return hot.stretch_of(caller.limit_key(request.address))

    def _loaded(self, watch: Watch, outcome: "asyncio.Future[Copy | Refusal]") -> None:
        watch.load = None
        brought = None if outcome.cancelled() else outcome.result()
        if isinstance(brought, Refusal):
            if brought.code == "not_found":
                self.listeners.missing(watch)
            else:
                watch.old = True

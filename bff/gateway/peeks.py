"""Asks upstream for listeners whether turns are under way, once a session and TTL.

Sessions wait in a queue, because peeks have a budget of their own: each session has its turn before
another one has its second. A peek that fails leaves the session unknown.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bff import metrics
from bff.clock import Clock
from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.single_flight import SingleFlight
from bff.errors import UpstreamError
from bff.live.answering import Answering, NoAnswering, Peek
from bff.replicas.alone import AnySharing
from bff.sessions.copy import Copy, Key
from bff.telemetry import Telemetry

MAX_PEEKS: Final = 32
"""Peeks under way at once: each has a connection of its own."""


@dataclass(eq=False)
class Peeks:
    """The peeks of one process.

    Args:
        answering: what they tell.
        is_followed: whether a listener follows a session.
        in_flight: runs them, one for each session.
        sharing: the other replicas.
        clock: reads the two clocks.
    """

    answering: Answering
    is_followed: Callable[[Copy], bool]
    in_flight: "SingleFlight[Key, None]"
    sharing: AnySharing
    telemetry: Telemetry
    clock: Clock
    _waiting: dict[str, OrderedDict[Key, Copy]] = field(default_factory=dict)

    def want(self, answering: Answering | NoAnswering, copy: Copy, now: float, ttl: float) -> None:
        """Queue a peek for a session that listeners follow, if its last one is *ttl* seconds old.

        *answering* is `NoAnswering` if the feature is off.
        """
        key = copy.keys[0]
        waiting = self._waiting.setdefault(copy.environment, OrderedDict())
        is_running = self.in_flight.get(key) is not None
        if key in waiting or (not is_running and answering.due(copy, now, ttl)):
            waiting[key] = copy

    def start(self, config: RuntimeConfig, now: float) -> None:
        """Start the peeks that the budget allows now."""
        for name, waiting in self._waiting.items():
            environment = config.environments.get(name)
            if environment is None or not config.live.answering:
                waiting.clear()
                continue
            while (
                waiting
                and len(self.in_flight) < MAX_PEEKS
                and self.sharing.limits.wait(name, environment.peeks, now) <= 0
            ):
                key, copy = waiting.popitem(last=False)
                if not self.is_followed(copy):  # its listeners left while it waited
                    continue
                self.in_flight.start(key, self._peek(environment, copy, config.ages.ttl))

    async def _peek(self, environment: Environment, copy: Copy, ttl: float) -> None:
        outcome = "ok"
        try:
            peek = await self.sharing.peek(
                environment.name,
                copy.id,
                environment.peeks,
                ttl,
                partial(self._ask, environment, copy),
            )
        except UpstreamError as error:
            outcome = error.code
        else:
            if peek is None:  # the budget is spent: the session keeps its turn
                waiting = self._waiting[environment.name]
                waiting.setdefault(copy.keys[0], copy)
                waiting.move_to_end(copy.keys[0], last=False)
                return
            self.answering.peeked(copy, peek)
        self.telemetry.count(metrics.PEEKS, environment.name, outcome)

    async def _ask(self, environment: Environment, copy: Copy) -> Peek:
        began, _ = self.clock()
        has_record = self.answering.has_record(copy)
        return Peek(await environment.chat.peek(copy.id, has_record=has_record), began)

"""The parts of the gateway: some outlive every change of the settings, the others are made anew.

No request sees a part of new settings, because the gateway replaces all `Features` at once.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from bff import metrics
from bff.chat.appends import Appends
from bff.chat.streams import Streams
from bff.clock import Clock
from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.loader import Loader
from bff.copies.readiness import Readiness
from bff.copies.single_flight import SingleFlight
from bff.gateway.admission import Admission
from bff.gateway.aliases import Aliases
from bff.gateway.answers import Answers
from bff.gateway.chats import Chats
from bff.gateway.introspection import Introspector
from bff.gateway.lists import Lists
from bff.gateway.live import Live
from bff.gateway.live_loads import LiveLoads
from bff.gateway.lookup import Lookup
from bff.gateway.members import Members
from bff.gateway.news import News
from bff.gateway.peeks import Peeks
from bff.gateway.routes import Routes
from bff.gateway.stream_checks import StreamChecks
from bff.live.answering import Answering, NoAnswering
from bff.live.listeners import Listeners
from bff.replicas.alone import AnySharing
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.introspected import Introspections
from bff.tokens.revocations import Revocations


class LastingParts:
    """The parts that outlive a change of the settings: what the gateway remembers, and its tools.

    Args:
        config: the configuration that the gateway starts with.
        telemetry: its metrics and log.
        clock: reads the two clocks, after a wait.
        sharing: the other replicas.
        spawn: runs a task to its end, even if every request that waits for it leaves.
        request_ids: makes the id of an answer.
        part_ids: makes an id for a message that has none.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        telemetry: Telemetry,
        clock: Clock,
        sharing: AnySharing,
        spawn: Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"],
        request_ids: Callable[[], bytes],
        part_ids: Callable[[], str],
    ) -> None:
        def now() -> float:
            return clock()[0]

        self.telemetry, self.clock, self.sharing = telemetry, clock, sharing
        self.request_ids, self.part_ids = request_ids, part_ids
        self.introspections, self.revocations = Introspections(), Revocations()
        self.streams, self.listeners = Streams(telemetry, now), Listeners(telemetry, now)
        self.appends = Appends(now)
        self.pauses: dict[str, float] = {}
        """By environment, until when upstream wants no messages."""
        self.cache = Cache(
            config.ages,
            max_bytes=config.max_bytes,
            spawn=spawn,
            on_mismatch=lambda: telemetry.count(metrics.MISMATCHED_COPIES),
            on_copy=self.listeners.changed,
        )
        self.loader = Loader(
            config, cache=self.cache, telemetry=telemetry, clock=clock, sharing=sharing
        )
        self.readiness = Readiness(
            self.loader, cache=self.cache, sharing=sharing, telemetry=telemetry, clock=clock
        )
        self.introspector = Introspector(
            self.introspections,
            in_flight=SingleFlight(spawn),
            loader=self.loader,
            sharing=sharing,
            telemetry=telemetry,
            clock=clock,
        )
        self.stream_checks = StreamChecks(self.streams, self.listeners, clock)
        self.answering = Answering(
            now,
            changed=self.listeners.changed_beside,
            announce=lambda name, *turn: sharing.announce(name, "turn", *turn),
        )
        self.peeks = Peeks(
            self.answering,
            is_followed=self.listeners.follows,
            in_flight=SingleFlight(spawn),
            sharing=sharing,
            telemetry=telemetry,
            clock=clock,
        )
        self.news = News(self.listeners, self.answering, sharing, clock)


def _ignore(_: Caller) -> None:
    """Note no token: there are no lists that it could make outdated."""


class Features:
    """The features of the gateway by one configuration."""

    def __init__(self, config: RuntimeConfig, lasting: LastingParts) -> None:
        loader, introspector = lasting.loader, lasting.introspector
        revocations, telemetry = lasting.revocations, lasting.telemetry
        self.routes = Routes(config.pages, chat=config.chat.enabled)
        self.admission = admission = Admission(
            config,
            revocations=revocations,
            telemetry=telemetry,
            on_token=lasting.news.note_token if config.live.enabled else _ignore,
        )
        answering = lasting.answering if config.live.answering else NoAnswering()
        self.answers = Answers(config.responses, admission=admission, telemetry=telemetry)
        self.lookup = Lookup(
            config, admission=admission, cache=lasting.cache, loader=loader, telemetry=telemetry
        )
        self.chats = Chats(
            config,
            admission=admission,
            revocations=revocations,
            lookup=self.lookup,
            pairs=loader.pairs,
            counts=telemetry.counts,
            streams=lasting.streams,
            appends=lasting.appends,
            part_ids=lasting.part_ids,
            pauses=lasting.pauses,
            turns=answering,
        )
        members = Members(
            admission=admission, introspector=introspector, lookup=self.lookup, loader=loader
        )
        self.aliases = Aliases(pairs=loader.pairs, members=members)
        self.live = Live(
            config,
            admission=admission,
            answers=self.answers,
            cache=lasting.cache,
            introspector=introspector,
            revocations=revocations,
            pairs=loader.pairs,
            listeners=lasting.listeners,
            answering=answering,
        )
        loads = LiveLoads(
            config,
            listeners=lasting.listeners,
            lookup=self.lookup,
            answering=answering,
            peeks=lasting.peeks,
        )
        self.lists = Lists(
            config,
            admission=admission,
            answers=self.answers,
            members=members,
            live=self.live,
            telemetry=telemetry,
        )
        introspector.apply(config, admission)
        lasting.stream_checks.apply(self.chats, self.live, loads)

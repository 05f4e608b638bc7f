"""The parts of the gateway: some outlive every change of the settings, the others are made anew.

No request sees a part of new settings, because the gateway replaces all `Features` at once.
"""

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

from bff.chat.appends import Appends
from bff.chat.streams import Streams
from bff.clock import Clock
from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.loader import Loader
from bff.copies.readiness import Readiness
from bff.copies.single_flight import SingleFlight
from bff.errors import Refusal
from bff.gateway.admission import Admission
from bff.gateway.aliases import Aliases
from bff.gateway.answers import Answers
from bff.gateway.chats import Chats
from bff.gateway.claimants import Claimants
from bff.gateway.introspection import Introspector, Outcome
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
from bff.sessions.copy import Copy, Key
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.introspected import Introspections
from bff.tokens.revocations import Revocations
from bff.tokens.scopes import Grant


@dataclass(slots=True, kw_only=True)
class LastingParts:
    """The parts that outlive a change of the settings: what the gateway remembers, and its tools.

    Attributes:
        in_flight: runs introspections, one for each token and session.
        clock: reads the two clocks, after a wait.
        request_ids: makes the id of an answer.
        sharing: the other replicas.
        streams: the open streams of chats.
        listeners: the open event streams of session state.
        appends: the messages under way.
        part_ids: makes an id for a message that has none.
        peeks_in_flight: runs peeks, one for each session.
        pauses: by environment, until when upstream wants no messages.
    """

    config: InitVar[RuntimeConfig]
    cache: "Cache[Copy | Refusal]"
    introspections: Introspections
    in_flight: "SingleFlight[tuple[bytes, str], Outcome]"
    revocations: Revocations
    telemetry: Telemetry
    clock: Clock
    request_ids: Callable[[], bytes]
    sharing: AnySharing
    streams: Streams
    listeners: Listeners
    appends: Appends
    part_ids: Callable[[], str]
    peeks_in_flight: "SingleFlight[Key, None]"
    pauses: dict[str, float] = field(default_factory=dict)
    loader: Loader = field(init=False)
    readiness: Readiness = field(init=False)
    introspector: Introspector = field(init=False)
    stream_checks: StreamChecks = field(init=False)
    answering: Answering = field(init=False)
    peeks: Peeks = field(init=False)
    news: News = field(init=False)

    def __post_init__(self, config: RuntimeConfig) -> None:
        self.loader = Loader(
            config,
            cache=self.cache,
            telemetry=self.telemetry,
            clock=self.clock,
            sharing=self.sharing,
        )
        self.readiness = Readiness(
            self.loader,
            cache=self.cache,
            sharing=self.sharing,
            telemetry=self.telemetry,
            clock=self.clock,
        )
        self.introspector = Introspector(
            self.introspections,
            in_flight=self.in_flight,
            loader=self.loader,
            sharing=self.sharing,
            telemetry=self.telemetry,
            clock=self.clock,
        )
        self.stream_checks = StreamChecks(self.streams, self.listeners, self.clock)
        self.answering = Answering(
            lambda: self.clock()[0],
            changed=self.listeners.changed_beside,
            announce=lambda name, *turn: self.sharing.announce(name, "turn", *turn),
        )
        self.peeks = Peeks(
            self.answering,
            is_followed=self.listeners.follows,
            in_flight=self.peeks_in_flight,
            sharing=self.sharing,
            telemetry=self.telemetry,
            clock=self.clock,
        )
        self.news = News(self.listeners, self.answering, self.sharing, self.clock)


def _ignore(_: Caller[Grant]) -> None:
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
        self.claimants = Claimants(introspector, self.chats)
        members = Members(admission=admission, introspector=introspector, lookup=self.lookup)
        self.aliases = Aliases(config, pairs=loader.pairs, members=members)
        self.live = Live(
            config,
            admission=admission,
            answers=self.answers,
            cache=lasting.cache,
            introspector=introspector,
            lookup=self.lookup,
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

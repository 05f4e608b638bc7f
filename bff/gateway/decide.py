"""The path of one request, from its head to the answer: START WITH THIS FILE.

`Gateway.decide` answers from memory and does no I/O. If the request has to wait, it returns a
`Pending`, and `Gateway.finish` waits until there is a response. After every wait the gateway admits
the request again, and decides on the copy that the load brought. `answers` makes every response.
It first checks whether this caller may read the session.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from bff import metrics
from bff.chat.appends import Appends
from bff.chat.streams import Streams
from bff.clock import Clock
from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.loader import Loader
from bff.copies.readiness import Readiness
from bff.copies.single_flight import SingleFlight
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.aliases import Aliases
from bff.gateway.answers import Answers
from bff.gateway.chat_messages import PendingMessage, decide_message
from bff.gateway.chat_streams import PendingStream, decide_stream
from bff.gateway.chats import Chats
from bff.gateway.context import RequestContext
from bff.gateway.introspection import Introspector, Outcome
from bff.gateway.lists import Lists
from bff.gateway.live import TICK_SECONDS, Live
from bff.gateway.lookup import Lookup
from bff.gateway.members import Members
from bff.gateway.peeks import Peeks
from bff.gateway.pending import Pending, PendingLease, PendingLoad, Served
from bff.gateway.routes import CHAT_IN, CHAT_OUT, LIST, SESSION, Routes
from bff.limits.rate import LeasePending
from bff.live.answering import Answering, NoAnswering
from bff.live.listener import Listener
from bff.live.listeners import Listeners
from bff.replicas.alone import AnySharing
from bff.request import HeaderFields, RequestHead
from bff.response import Response
from bff.sessions import ids
from bff.sessions.copy import Copy, Key, State
from bff.stream_registry import CHECK_SECONDS
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller, Claimant
from bff.tokens.introspected import Introspections
from bff.tokens.revocations import Revocations
from bff.tokens.scopes import Grant

HOLDERS: Final = (PendingStream, PendingMessage)
"""Pending answers that hold what they must release, whatever the decision is."""


RECENT_SECONDS: Final = 60.0
"""Seconds after its issue in which a token is announced to other replicas: a page uses a new token
at once."""


class Gateway:
    """Answers browsers. It knows neither Starlette nor sockets.

    Args:
        config: what the settings decide; `apply` changes it.
        in_flight: runs introspections, one for each token and session.
        clock: reads the two clocks, after a wait.
        request_ids: makes the id of an answer.
        sharing: the other replicas.
        streams: the open streams of chats.
        listeners: the open event streams of session state.
        appends: the messages under way.
        part_ids: makes an id for a message that has none.
        peeks: runs the requests that tell whether agents are answering, one for each session.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        cache: "Cache[Copy | Refusal]",
        introspections: Introspections,
        in_flight: "SingleFlight[tuple[bytes, str], Outcome]",
        revocations: Revocations,
        telemetry: Telemetry,
        clock: Clock,
        request_ids: Callable[[], bytes],
        sharing: AnySharing,
        streams: Streams,
        listeners: Listeners,
        appends: Appends,
        part_ids: Callable[[], str],
        peeks: "SingleFlight[Key, None]",
    ) -> None:
        self.cache = cache
        self.introspections = introspections
        self.revocations = revocations
        self.telemetry = telemetry
        self.sharing = sharing
        self.clock = clock
        self.streams = streams
        self.listeners = listeners
        listeners.show, listeners.newest = self.show_change, self.newest
        listeners.version = self.version
        self.answering = Answering(
            lambda: clock()[0],
            changed=listeners.changed_beside,
            announce=lambda environment, *turn: sharing.announce(environment, "turn", *turn),
        )
        self._peeks = Peeks(
            self.answering,
            is_followed=listeners.follows,
            in_flight=peeks,
            sharing=sharing,
            telemetry=telemetry,
            clock=clock,
        )
        self._appends = appends
        self._part_ids = part_ids
        self._pauses: dict[str, float] = {}
        self._request_ids = request_ids
        self.loader = Loader(config, cache=cache, telemetry=telemetry, clock=clock, sharing=sharing)
        self.readiness = Readiness(
            self.loader, cache=cache, sharing=sharing, telemetry=telemetry, clock=clock
        )
        self._introspector = Introspector(
            introspections,
            in_flight=in_flight,
            loader=self.loader,
            sharing=sharing,
            telemetry=telemetry,
            clock=clock,
        )
        self._use(config)

    def apply(self, config: RuntimeConfig) -> None:
        """Use *config* from now on. No request sees a part of it: this method awaits nothing.

        Copies stay, unless they would look different now or come from another upstream. A load in
        flight goes on: its document is projected by the new policy when it arrives.
        """
        before = self.config
        moved = before.origins != config.origins
        if moved or config.verifier is not before.verifier:
            self.introspections.forget()
        if moved:
            self.answering.forget()
        self._use(config)
        if moved or before.projection != config.projection:
            self.cache.clear(loads=moved)

    def _use(self, config: RuntimeConfig) -> None:
        self.config = config
        self.cache.ages, self.cache.max_bytes = config.ages, config.max_bytes
        self.loader.apply(config)
        self._routes = Routes(config.pages, chat=config.chat.enabled)
        self.admission = admission = Admission(
            config,
            revocations=self.revocations,
            telemetry=self.telemetry,
            on_token=self.note_token,
        )
        self.answers = Answers(config.responses, admission=admission, telemetry=self.telemetry)
        self._introspector.apply(config, admission)
        self._lookup = Lookup(
            config,
            admission=admission,
            cache=self.cache,
            loader=self.loader,
            telemetry=self.telemetry,
        )
        answering = self.answering if config.live.answering else NoAnswering()
        self.chats = Chats(
            config,
            admission=admission,
            revocations=self.revocations,
            lookup=self._lookup,
            pairs=self.loader.pairs,
            counts=self.telemetry.counts,
            streams=self.streams,
            appends=self._appends,
            part_ids=self._part_ids,
            pauses=self._pauses,
            turns=answering,
        )
        members = Members(admission=admission, introspector=self._introspector, lookup=self._lookup)
        self._aliases = Aliases(config, pairs=self.loader.pairs, members=members)
        self._live = Live(
            config,
            admission=admission,
            answers=self.answers,
            cache=self.cache,
            introspector=self._introspector,
            lookup=self._lookup,
            revocations=self.revocations,
            pairs=self.loader.pairs,
            listeners=self.listeners,
            answering=answering,
            peeks=self._peeks,
        )
        self._lists = Lists(
            config,
            admission=admission,
            answers=self.answers,
            members=members,
            live=self._live,
            telemetry=self.telemetry,
        )

    # -- the story

    def decide(self, head: RequestHead, now: float, wall: float) -> Response | Pending:
        """Decide a request from memory. No I/O: a request that has to wait gets a `Pending`."""
        request_id = self._request_ids()
        if head.method == "OPTIONS":
            return self.answers.preflight(head, request_id)
        request = RequestContext(head, request_id, now, wall)
        try:
            return self._decide(request)
        except Refused as refused:
            return self.answers.refusal(request, refused.refusal)
        except LeasePending as pending:
            return self._wait_for_lease(request, pending)

    def _decide(self, request: RequestContext) -> Response | Pending:
        """Make the checks in their order. A comment lists the statuses that a check can end in."""
        head, admission = request.head, self.admission
        # A health check of a proxy must not use up the limit of the browsers behind that proxy.
        page = not head.id and self._routes.is_page(head)
        admission.charge_address(request, page=page)  # 429
        # Nearly every request has a plain id, so its route needs no call.
        request.route = route = SESSION if head.id else self._routes.match(head)  # 404 410
        if head.method not in route.methods:
            raise Refused("method_not_allowed", route.instead)  # 405
        if route.page is not None:
            return self.answers.public_page(request, route.page)  # 200
        holder = admission.authenticate(request)  # 400 401 429
        if isinstance(holder, Claimant):
            return self._admit(request, holder)
        return self.serve(request, holder)

    def serve(self, request: RequestContext, caller: Caller[Grant]) -> Response | Pending:
        """Decide a request whose token a key, or upstream, has verified."""
        request.environment = caller.environment
        if request.route is LIST:
            return self._lists.decide(request, caller)  # 200 304 400 403 429 5xx
        if request.route in (CHAT_IN, CHAT_OUT):
            return self._serve_chat(request, caller)  # 200 400 403 404 409 410 413 429 5xx
        head, granted = request.head, caller.granted
        session_id = head.id or ids.parse_id(head.path[len(ids.ROUTE) :])  # 400
        if session_id not in granted.ids and not ids.covers(granted, session_id):
            named = self._aliases.find(request, caller, session_id)  # 403 429 5xx
            if not isinstance(named, str):
                return named
            session_id = named  # the same session, by the id that the token names
        if head.id is None and not ids.is_reachable(session_id):
            self.admission.charge_caller(request, caller)  # 429
            raise Refused("not_found")  # 404
        if caller.digest is not None and not self._introspector.is_accepted(
            caller, session_id, request.now
        ):
            return self._introspector.start(request, caller, session_id)  # 401 403 429 5xx
        self.admission.charge_caller(request, caller)  # 429
        return self.answer(request, caller, session_id)

    def _serve_chat(self, request: RequestContext, caller: Caller[Grant]) -> Response | Pending:
        """Decide a request for a chat, once its token is verified for that session."""
        session_id = self.chats.named_id(request, caller)  # 400 403
        if caller.digest is not None and not self._introspector.is_accepted(
            caller, session_id, request.now
        ):
            # Upstream's answer is about the session; the chat is decided after it.
            return self._introspector.verify(request, caller, (session_id,))
        decide = decide_stream if request.route is CHAT_OUT else decide_message
        return decide(self.chats, request, caller, session_id)

    def answer(
        self, request: RequestContext, caller: Caller[Grant], session_id: str
    ) -> Response | Pending:
        """Answer from the shared copy, or wait for its load."""
        served = self._lookup.find(request, caller, session_id)  # 403 404 503
        if isinstance(served, PendingLoad):
            return served
        return self.answer_with(request, caller, session_id, served)  # 200 304 403

    def answer_with(
        self, request: RequestContext, caller: Caller[Grant], session_id: str, served: Served
    ) -> Response | Pending:
        """Answer from a copy, or with the events of its session."""
        copy, outcome = served
        if request.head.fields.events and self._live.is_for(request):
            return self._live.start(request, caller, session_id, copy)
        return self.answers.session(request, caller, copy, outcome)

    async def finish(self, answer: Response | Pending) -> Response:
        """Wait until there is a response; a load goes on if this is cancelled."""
        if isinstance(answer, Response):
            return answer
        began, _ = self.clock()
        while not isinstance(answer, Response):
            pending, following = answer, None
            try:
                await pending.wait(self)
                following = self._decide_again(pending)
            finally:
                if pending is not following and isinstance(pending, HOLDERS):
                    pending.abandon()
            answer = following
        self.telemetry.observe(metrics.ANSWER_SECONDS, self.clock()[0] - began)
        return answer

    def _decide_again(self, pending: Pending) -> Response | Pending:
        """Decide after a wait, or refuse."""
        try:
            return self._admit_again(pending)
        except Refused as refused:
            return self.answers.refusal(pending.request, refused.refusal)
        except LeasePending as lease:
            return self._wait_for_lease(pending.request, lease)

    async def watch_streams(self, beat: Callable[[], None]) -> None:
        """Check all streams again and again."""
        while True:
            for _ in self.check_streams():
                await asyncio.sleep(0)
            beat()
            await asyncio.sleep(CHECK_SECONDS)

    def check_streams(self) -> Iterator[None]:
        """End each stream that is not allowed any more; yields between parts of the work."""
        yield from self.streams.check(lambda of: self.chats.why_ended(of, self.clock()[1]))
        yield from self.listeners.check(lambda of: self._live.why_ended(of, *self.clock()))
        yield from self.listeners.heartbeats(self.clock()[0])

    async def watch_listeners(self, beat: Callable[[], None]) -> None:
        """Ask for the loads that listeners need, again and again."""
        while True:
            for _ in self.look_for_listeners():
                await asyncio.sleep(0)
            beat()
            await asyncio.sleep(TICK_SECONDS)

    def look_for_listeners(self) -> Iterator[None]:
        """Ask for the loads that listeners need now; yields between parts of the work."""
        return self._live.look(*self.clock())

    def show_change(self, listener: Listener, name: str, copy: Copy | None) -> None:
        """Show one change to one listener, if it may see it."""
        self._live.show(listener, name, copy, *self.clock())

    def newest(self, environment: str, name: str) -> tuple[Copy | None, bool]:
        """Find the newest copy of a session; the flag says whether anything is known of it."""
        return self._live.newest(environment, name, self.clock()[0])

    def note_token(self, caller: Caller[Grant]) -> None:
        """End the lists of all replicas that a new token makes outdated."""
        names, is_recent = caller.granted.ids, self.clock()[1] - caller.issued < RECENT_SECONDS
        if caller.has_actor and names and self.config.live.enabled:
            key = caller.environment, caller.key
            self.listeners.outdate(key, names, caller.issued)
            if is_recent:
                news = caller.key.hex(), list(names), caller.issued
                self.sharing.announce(caller.environment, "token", *news)

    def receive_news(self, environment: str, kind: str, *news: Any) -> None:
        """Use an announcement of a replica."""
        if kind == "token":
            key, names, issued = news
            self.listeners.outdate((environment, bytes.fromhex(key)), names, issued)
        elif kind == "turn":
            ids, number, ended = news
            self.answering.learn(environment, tuple(ids), number, ended=ended)

    def version(self, copy: Copy) -> int:
        """Make the stamp of the document that listeners see of a copy."""
        return self._live.version(copy)

    def _admit_again(self, pending: Pending) -> Response | Pending:
        """Decide after a wait; every result of a wait passes this method, a refusal included.

        During the wait the token may have expired or been revoked, or its key removed.
        """
        request = pending.request
        request.now, request.wall = self.clock()
        if pending.config is None:
            return pending.conclude(self)
        if pending.config is not self.config:
            # The cache keeps a loaded copy unless the new configuration forbids it, so upstream is
            # not called twice.
            return self.decide(request.head, request.now, request.wall)
        self.admission.authenticate(request)  # 401 429
        return pending.conclude(self)  # as in `_decide`

    # -- beside the story

    def _admit(self, request: RequestContext, claimant: Claimant[Grant]) -> Response | Pending:
        """Let upstream verify a token for one session that it names, before anything is shown."""
        introspector = self._introspector
        caller = introspector.caller(claimant, request.now)
        if caller is not None:
            return self.serve(request, caller)
        try:
            named, requested = self._named_by(request, claimant)
        except Refused:
            introspector.count_refused(request, claimant)  # 429
            raise
        if requested:
            return introspector.start(request, claimant, named[0])  # 401 429 5xx
        return introspector.verify(request, claimant, named)  # 401 429 5xx

    def _named_by(
        self, request: RequestContext, claimant: Claimant[Grant]
    ) -> tuple[tuple[str, ...], bool]:
        """Return ids that the token names, and whether it is the requested session's.

        Raises:
            Refused: ``unauthorized`` or ``invalid_session_id``.
        """
        granted, head = claimant.granted, request.head
        if request.route in (CHAT_IN, CHAT_OUT):
            return (self.chats.named_id(request, claimant),), False
        if request.route is LIST:
            named = ids.named(granted)
            if not named:
                raise Refused("unauthorized")
            return named, False
        session_id = head.id or ids.parse_id(head.path[len(ids.ROUTE) :])
        if not ids.covers(granted, session_id):
            # A forged token must not learn which sessions the gateway knows.
            named = ids.named_in_other_form(granted, session_id)
            if not named:
                raise Refused("unauthorized")
            return named, False
        if not ids.is_reachable(session_id):
            raise Refused("unauthorized")
        return (session_id,), True

    def _wait_for_lease(self, request: RequestContext, pending: LeasePending) -> PendingLease:
        """Refund the address, because the decision starts again after the wait."""
        limits = self.config.limits
        if pending.limiter not in (limits.address, limits.page):
            self.admission.refund_address(request)
        deadline = self.clock()[0] + self.sharing.timeout
        return PendingLease(request, pending.window, pending.lease, deadline)

    def is_usable(self, copy: Copy, now: float) -> bool:
        """Whether a copy that was found before a wait may still be served after it."""
        state = self.cache.ages.state(copy, now, copy.share.stretch)
        return state is not State.EXPIRED and not self.cache.is_purged(copy)

    def failed(self, head: RequestHead, exc: Exception) -> Response:
        """Answer a request that failed unexpectedly, and log where."""
        request = RequestContext(head, self._request_ids(), *self.clock())
        self.telemetry.exception("request_failed", exc, request_id=request.request_id.decode())
        return self.answers.refusal(request, Refusal("internal"))

    def malformed(self, refusal: Refusal, peer: str, origin: bytes | None) -> Response:
        """Answer bytes that are not a request, or a request beyond the bounds."""
        head = RequestHead("", b"", HeaderFields(origin=origin), peer, served_by="none")
        request = RequestContext(head, self._request_ids(), *self.clock())
        return self.answers.refusal(request, refusal)

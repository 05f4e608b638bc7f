"""The path of one request, from its head to the answer: START WITH THIS FILE.

`Gateway.decide` answers from memory and does no I/O. If the request has to wait, it returns a
`Pending`, and `Gateway.finish` waits until there is a response. After every wait the gateway admits
the request again, and decides on the copy that the load brought. `answers` makes every response.
It first checks whether this caller may read the session.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from bff import metrics
from bff.config.runtime import RuntimeConfig
from bff.errors import Refusal, Refused
from bff.gateway.chat_messages import PendingMessage, decide_message
from bff.gateway.chat_streams import PendingStream, decide_stream
from bff.gateway.claimants import admit
from bff.gateway.context import RequestContext
from bff.gateway.features import Features, LastingParts
from bff.gateway.live import PendingListener
from bff.gateway.pending import Pending, PendingLease, PendingLoad, Served
from bff.gateway.routes import CHAT_IN, CHAT_OUT, LIST, SESSION
from bff.limits.rate import LeasePending
from bff.request import HeaderFields, RequestHead
from bff.response import Response
from bff.sessions import ids
from bff.tokens.caller import Caller, Claimant

HOLDERS: Final = (PendingStream, PendingMessage)
"""Pending answers that hold what they must release, whatever the decision is."""


class Gateway:
    """Answers browsers. It knows neither Starlette nor sockets.

    Args:
        config: what the settings decide; `apply` changes it.
        lasting: the parts that outlive a change of the settings.
    """

    def __init__(self, config: RuntimeConfig, lasting: LastingParts) -> None:
        self._lasting = lasting
        self.cache, self.clock, self.sharing = lasting.cache, lasting.clock, lasting.sharing
        self.telemetry, self.revocations = lasting.telemetry, lasting.revocations
        self.loader, self.readiness = lasting.loader, lasting.readiness
        self.introspections, self._introspector = lasting.introspections, lasting.introspector
        self.streams, self.listeners = lasting.streams, lasting.listeners
        self.stream_checks, self._request_ids = lasting.stream_checks, lasting.request_ids
        self.news = lasting.news
        self._use(config)

    # -- the story

    def decide(self, head: RequestHead, now: float, wall: float) -> Response | Pending:
        """Decide a request from memory. No I/O: a request that has to wait gets a `Pending`."""
        request_id = self._request_ids()
        if head.method == "OPTIONS":
            return self.answers.preflight(head, request_id)
        request = RequestContext(head, request_id, now, wall, self.config)
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
            admitted = admit(self._introspector, self.chats, request, holder)  # 401 403 429 5xx
            if not isinstance(admitted, Caller):
                return admitted
            holder = admitted
        return self.serve(request, holder)

    def serve(self, request: RequestContext, caller: Caller) -> Response | Pending:
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

    def _serve_chat(self, request: RequestContext, caller: Caller) -> Response | Pending:
        """Decide a request for a chat, once its token is verified for that session."""
        session_id = self.chats.named_id(request, caller)  # 400 403
        if not self._introspector.admits_chat(caller, session_id, request.now):
            # Upstream's answer is about the session; the chat is decided after it.
            return self._introspector.verify(request, caller, (session_id,))
        decide = decide_stream if request.route is CHAT_OUT else decide_message
        return decide(self.chats, request, caller, session_id)

    def answer(
        self, request: RequestContext, caller: Caller, session_id: str
    ) -> Response | Pending:
        """Answer from the shared copy, or wait for its load."""
        served = self._lookup.find(request, caller, session_id)  # 403 404 503
        if isinstance(served, PendingLoad):
            return served
        return self.answer_with(request, caller, session_id, served)  # 200 304 403

    def answer_with(
        self, request: RequestContext, caller: Caller, session_id: str, served: Served
    ) -> Response | Pending:
        """Answer from a copy, or with the events of its session."""
        copy, outcome = served
        if request.head.fields.events and self._live.is_for(request):
            return PendingListener(request, caller, self._live, (session_id,), {session_id: copy})
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

    def _admit_again(self, pending: Pending) -> Response | Pending:
        """Decide after a wait; every result of a wait passes this method, a refusal included.

        During the wait the token may have expired or been revoked, or its key removed.
        """
        request = pending.request
        request.now, request.wall = self.clock()
        if request.config is None:
            return pending.conclude(self)
        if request.config is not self.config:
            # The cache keeps a loaded copy unless the new configuration forbids it, so upstream is
            # not called twice.
            return self.decide(request.head, request.now, request.wall)
        self.admission.authenticate(request)  # 401 429
        return pending.conclude(self)  # as in `_decide`

    # -- beside the story

    def call_back(
        self,
        pending: Pending,
        then: Callable[[Response], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> Callable[[], None]:
        """Call *then* with the response. A wait for more than a load gets a task from *spawn*.

        A task for each miss would cost 9 % of it. Returns what to call if the browser leaves
        before, so that nothing is loaded for nobody.
        """
        if not isinstance(pending, PendingLoad):
            spawn(self._finish_and_call(pending, then))
            return _do_nothing
        request, began = pending.request, pending.request.now

        def decide_again() -> None:
            try:
                answer = self._decide_again(pending)
            except Exception as exc:  # noqa: BLE001  as `asgi.ErrorBoundary`
                answer = self.failed(request.head, exc)
            if isinstance(answer, Response):
                self.telemetry.observe(metrics.ANSWER_SECONDS, request.now - began)
                then(answer)
            else:
                spawn(self._finish_and_call(answer, then))

        return pending.call_back(self, decide_again)

    async def _finish_and_call(self, pending: Pending, then: Callable[[Response], None]) -> None:
        try:
            response = await self.finish(pending)
        except Exception as exc:  # noqa: BLE001  as `asgi.ErrorBoundary`
            response = self.failed(pending.request.head, exc)
        then(response)

    def _wait_for_lease(self, request: RequestContext, pending: LeasePending) -> PendingLease:
        """Refund the address, because the decision starts again after the wait."""
        limits = self.config.limits
        if pending.window.limiter not in (limits.address, limits.page):
            self.admission.refund_address(request)
        request.config = None
        deadline = self.clock()[0] + self.sharing.timeout
        return PendingLease(request, pending.window, pending.lease, deadline)

    def failed(self, head: RequestHead, exc: Exception) -> Response:
        """Answer a request that failed unexpectedly, and log where."""
        request = RequestContext(head, self._request_ids(), *self.clock(), None)
        self.telemetry.exception("request_failed", exc, request_id=request.request_id.decode())
        return self.answers.refusal(request, Refusal("internal"))

    def malformed(self, refusal: Refusal, peer: str, origin: bytes | None) -> Response:
        """Answer bytes that are not a request, or a request beyond the bounds."""
        head = RequestHead("", b"", HeaderFields(origin=origin), peer, served_by="none")
        request = RequestContext(head, self._request_ids(), *self.clock(), None)
        return self.answers.refusal(request, refusal)

    # -- the settings

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
            self._lasting.answering.forget()
        self._use(config)
        if moved or before.projection != config.projection:
            self.cache.clear(loads=moved)

    def _use(self, config: RuntimeConfig) -> None:
        self.config = config
        self.cache.ages, self.cache.max_bytes = config.ages, config.max_bytes
        self.loader.apply(config)
        made = Features(config, self._lasting)
        self.admission, self.answers, self._routes = made.admission, made.answers, made.routes
        self._aliases, self._lookup = made.aliases, made.lookup
        self.chats, self._lists, self._live = made.chats, made.lists, made.live


def _do_nothing() -> None:
    """Let the task go on: it ends soon, and holds what it must release."""

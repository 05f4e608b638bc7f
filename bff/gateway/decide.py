"""The path of one request, start to end: read this file first.

`Gateway.decide` goes from a request's head to an answer without any I/O; where the answer is not in
memory it returns a `PendingLoad` (for a list, `PendingList`), and `Gateway.finish` waits for that
and decides again, on what was loaded. Both end in `_session`, `_page` or `_refusal`: there is no
other way out for a session, and none that does not ask first whether this caller may read it.

    OPTIONS            → answered at once
    address            → counted before any cryptography               429
    route, method      → this gateway serves one                       404 405 410
    token              → caller; bad ones are counted more tightly     400 401 429
    path               → session id                                    400
    id and scopes      → named, or maybe an alias of what is named     403
    token, once more   → where upstream has the last word on it        401 403 429 5xx
    caller             → counted                                       429
    shared copy        → fresh, stale, joined or loaded                404 5xx
    copy and scopes    → decided again on the copy's own ids           403
    If-None-Match      → looked at last                                304

A list of sessions takes the same path: its query in place of the id, the sessions that the token
names in place of the scopes' check, and then for each of them the same copy, load and decision.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from bff.config.runtime import RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.loader import Loader
from bff.errors import Refusal, Refused
from bff.limits.client_address import address_key, browser_address
from bff.limits.rate import UNLIMITED_WINDOW, LeasePending, Window
from bff.replicas.sharing import Sharing
from bff.request import HeaderFields, RequestHead
from bff.response import Representation, Response, server_timing
from bff.sessions import ids, list_query, page
from bff.sessions.copy import Copy, NegativeEntry, State
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.introspected import UNDECIDED, Introspections
from bff.tokens.revocations import Revocations
from bff.tokens.scopes import Grant

PATIENCE_SECONDS = 1.0
"""Whoever could be answered with a usable copy waits no longer than this for a newer one."""


SLOW_SECONDS = 1.0
"""A browser that waited longer is worth a line of the log."""


SAMPLE = 1000
"""Of this many answers with a session, one is logged."""


_MAX_TAGS = 32
"""Of an `If-None-Match`, so many are looked at: a head full of commas costs 500 hits."""


_MAX_COOKIES = 256
"""More than any browser keeps for one host (180)."""


_OF_THE_CALLER = frozenset(("token_invalid", "token_revoked", "rate_limited"))
"""Codes of refusals that no other session of a list would change."""


@dataclass(slots=True)
class RequestContext:
    """One request on its way: what has been found out so far."""

    head: RequestHead
    request_id: bytes
    now: float
    """Seconds on the clock that never jumps."""
    wall: float
    """Unix seconds."""
    route: str = "other"
    window: Window = UNLIMITED_WINDOW
    """Of the limit that counted it last."""
    probes: Window | None = None
    """The address's bad tokens, while the id is not known to be one that the caller may read."""
    waited: float | None = None
    """Seconds, for a load."""
    reserved: bool = False
    """One of `probes` was taken in advance, for the load this visit started."""
    token: bytes = b""
    address: str = ""
    counted: bool = False
    """By caller: a request is counted once, and that of an untested token not before its test."""


@dataclass(slots=True)
class PendingLoad:
    """An answer that has to be waited for."""

    context: RequestContext
    caller: Caller[Grant]
    id: str
    flight: "asyncio.Task[Copy | Refusal] | asyncio.Task[Copy | Refusal | None]"
    fallback: Copy | None
    collapsed: bool
    config: "RuntimeConfig"
    """By which it was decided to wait."""
    test: bool = False
    """Upstream is asked with the caller's own token, and its answer is about that too."""
    marked: bool = False
    """The token was counted as a bad one in advance, by who started this test."""


Found = tuple[Copy, bytes, str]
"""A copy to answer with, what the cache did in the words of Cache-Status, and in our own."""


@dataclass(slots=True)
class PendingList:
    """A list that has to be waited for."""

    context: RequestContext
    caller: Caller[Grant]
    listing: page.Listing
    loads: list[PendingLoad]


@dataclass(slots=True)
class PendingLease:
    """An answer that depends on a lease (`limits.LeasePending`): nothing was counted yet."""

    head: RequestHead
    lease: "asyncio.Task[None]"


class Gateway:
    """Answers browsers. Knows neither Starlette nor sockets.

    Args:
        config: to begin with; see `apply`.
        clock: returns the two times, as in `RequestContext`; for what finishes after its decision.
        request_ids: makes an id for each answer.
        sharing: the other replicas; None without a store.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        cache: "Cache[Copy | Refusal]",
        introspections: "Introspections[Copy | Refusal | None]",
        revocations: Revocations,
        telemetry: Telemetry,
        clock: Callable[[], tuple[float, float]],
        request_ids: Callable[[], bytes],
        sharing: Sharing | None = None,
    ) -> None:
        self.cache = cache
        self.telemetry = telemetry
        self.introspections = introspections
        self.revocations = revocations
        self._clock = clock
        self._request_ids = request_ids
        self.sharing = sharing
        self._served = 0
        self.loader = Loader(
            config,
            cache=cache,
            introspections=introspections,
            telemetry=telemetry,
            clock=clock,
            sharing=sharing,
        )
        self.config = config
        self.apply(config)

    def apply(self, config: RuntimeConfig) -> None:
        """Go on by *config*; nothing awaits in here, so no request sees a part of them.

        Copies stay, unless they would look different now or come from elsewhere. What is being
        loaded will be projected by the new policy, so that stays even then.
        """
        before, self.config = self.config, config
        moved = before.origins != config.origins
        policies = (config.default_policy, config.policies)
        self.environments = config.environments
        self.verifier = config.verifier
        self._limits = config.limits
        self._trusted_proxies = config.trusted_proxies
        self._responses = config.responses
        self._pages = config.pages
        self._token_cookie = config.token_cookie
        if moved or config.verifier is not before.verifier:
            self.introspections.forget()
        self.loader.apply(config)
        self.cache.ages, self.cache.max_bytes = config.ages, config.max_bytes
        if moved or (before.default_policy, before.policies) != policies:
            self.cache.clear(loads=moved)

    # -- the decision

    def decide(
        self, head: RequestHead, now: float, wall: float
    ) -> Response | PendingLoad | PendingList | PendingLease:
        """Answer from memory, or say what has to be waited for. Starts loads, awaits nothing."""
        request_id = self._request_ids()
        if head.method == "OPTIONS":
            self.telemetry.count("bff_requests", "preflight", 204, "", head.served_by)
            return self._responses.preflight(head.fields.origin, request_id)
        context = RequestContext(head, request_id, now, wall)
        try:
            return self._decide(context)
        except Refused as refused:
            return self._refusal(context, refused.refusal)
        except LeasePending as lack:
            return self._uncounted(context, lack)

    def _decide(self, context: RequestContext) -> Response | PendingLoad | PendingList:
        # Every hit comes this way, so what is short is written out rather than called.
        head, now = context.head, context.now
        address = head.peer
        if head.fields.forwarded:
            address = browser_address(address, head.fields.forwarded, self._trusted_proxies)
        context.address = address = address_key(address)
        window = self._limits.address.charge(address, now)
        if window.exceeded:
            context.window = window
            raise Refused("rate_limited")
        if head.id is not None and head.method == "GET":  # as nearly always
            context.route = "session"
        elif (page := self._route(context)) is not None:
            return page
        caller = self._authenticate(context, address)
        if context.route == "list":
            return self._decide_list(context, caller)
        id_ = head.id or ids.parse_id(head.path[len(ids.ROUTE) :])
        if not caller.granted.covers(id_):
            if not ids.may_be_alias(id_, caller.granted):
                raise Refused("unauthorized")
            context.probes = self._limits.bad_token.window(address, now)
        digest = caller.digest
        if digest is not None and not self.introspections.accepted(digest, id_, now):
            return self._test(context, caller, digest, id_)
        self._count_caller(context, caller, address)
        return self._look_up(context, caller, id_)

    def _uncounted(self, context: RequestContext, lack: LeasePending) -> PendingLease:
        """The decision is made again from its start: what it counted would be counted twice."""
        head, limiter = context.head, self._limits.address
        if lack.limiter is not limiter:
            address = browser_address(head.peer, head.fields.forwarded, self._trusted_proxies)
            limiter.refund(address_key(address))
        self._unreserve(context)
        return PendingLease(head, lack.lease)

    def _route(self, context: RequestContext) -> Response | None:
        """Answer with a page, or leave what is on a session's route to the rest of the way.

        The raw path decides, so that no encoding of a route is another way to it.
        """
        head, path = context.head, context.head.path
        if head.id or (path.startswith(ids.ROUTE) and path.rfind(b"/") < len(ids.ROUTE)):
            context.route = "session"
            if head.method not in ("GET", "HEAD"):
                raise Refused("method_not_allowed")
            return None
        if path == ids.LIST_ROUTE:
            context.route = "list"
            if head.method not in ("GET", "HEAD"):
                raise Refused(
                    "method_not_allowed", "Sessions are started at the Trigger.dev API, not here"
                )
            return None
        page = self._pages.get(path)
        if page is not None:
            context.route = "page"
            if head.method not in ("GET", "HEAD"):
                raise Refused("method_not_allowed")
            response = self._responses.page(
                page, origin=head.fields.origin, request_id=context.request_id
            )
            return self._count(context, response, "")
        if path.startswith((b"/api/", b"/realtime/")):
            raise Refused("not_served")
        raise Refused("not_found", "There is nothing here")

    def _authenticate(self, context: RequestContext, address: str) -> Caller[Grant]:
        fields = context.head.fields
        if fields.ambiguous:
            raise Refused("bad_request", "Send one Authorization and one Origin header")
        cookie = self._from_cookie(fields) if fields.authorization is None else None
        if not (fields.authorization or cookie):
            self.telemetry.count("bff_bad_tokens", "token_missing")
            raise Refused("token_missing")
        try:
            context.token = fields.token or cookie or _bearer(fields.authorization or b"")
            caller = self.verifier.verify(context.token, context.wall)
            if self.revocations.any:
                self._still_good(context, caller)
        except Refused as refused:
            if refused.refusal.status == HTTPStatus.UNAUTHORIZED:
                self._count_bad_token(context, address, refused.refusal)
            raise
        return caller

    def _still_good(self, context: RequestContext, caller: Caller[Grant]) -> None:
        if self.revocations.token(caller.jti, caller.subjects, caller.issued, context.wall):
            raise Refused("token_revoked")

    def _from_cookie(self, fields: HeaderFields) -> bytes | None:
        """Take the token from its cookie, if a page of this very origin asks to read.

        The browser says so itself, in a header that no script can set. An `Origin` comes with what
        another origin may have caused, so with one there is no cookie for us.
        """
        if (
            self._token_cookie is not None
            and fields.cookies
            and fields.fetch_site == b"same-origin"
            and fields.origin is None
        ):
            cookies = b";".join(fields.cookies)
            if cookies.count(b";") > _MAX_COOKIES:
                raise Refused("bad_request", "Send fewer cookies")
            pairs = (pair.strip().partition(b"=") for pair in cookies.split(b";"))
            found = [value for name, _, value in pairs if name == self._token_cookie and value]
            if len(found) > 1:
                raise Refused("bad_request", "Send the token's cookie once")
            if found:
                return found[0]
        return None

    def _count_bad_token(self, context: RequestContext, address: str, refusal: Refusal) -> None:
        window = self._limits.bad_token.window(address, context.now)
        self.telemetry.count("bff_bad_tokens", refusal.code)
        if refusal.code == "secret_key_sent":
            self.telemetry.log.error("secret_key_sent_by_browser", remedy="rotate the key")
        window.charge()
        if window.exceeded:
            context.window = window
            raise Refused("rate_limited") from None

    def _decide_list(
        self, context: RequestContext, caller: Caller[Grant]
    ) -> Response | PendingList:
        query = list_query.parse(context.head.query, visible=self.config.visible, wall=context.wall)
        if caller.granted.every:
            raise Refused(
                "unauthorized",
                "A list holds the sessions that the token names: mint it with one scope "
                "read:sessions:<id> for each of them",
            )
        named = ids.named(caller.granted)
        if not named:
            raise Refused("unauthorized")
        if caller.digest is None:
            self._count_caller(context, caller, context.address)
        return self._list(context, caller, page.Listing(query, named, caller.key, context.wall))

    def _count_caller(self, context: RequestContext, caller: Caller[Grant], address: str) -> None:
        if not context.counted:
            # Never by the token's bytes; without an actor they say no more than an environment.
            key = caller.key if caller.has_actor else (caller.key, address)
            context.window = window = self._limits.caller.charge(key, context.now)
            context.counted = True
            if window.exceeded:
                raise Refused("rate_limited")

    def failed(self, head: RequestHead, exc: Exception) -> Response:
        """Answer for a request that failed in a way nobody foresaw, and log where."""
        request_id = self._request_ids()
        self.telemetry.exception("request_failed", exc, request_id=request_id.decode())
        context = RequestContext(head, request_id, *self._clock())
        return self._refusal(context, Refusal("internal"))

    def malformed(self, refusal: Refusal, peer: str, origin: bytes | None) -> Response:
        """Answer for what came from *peer* and is no request, or one beyond the bounds."""
        head = RequestHead("", b"", HeaderFields(origin=origin), peer, served_by="none")
        context = RequestContext(head, self._request_ids(), *self._clock())
        return self._refusal(context, refusal)

    # -- upstream's word on a token

    def _test(
        self, context: RequestContext, caller: Caller[Grant], digest: bytes, id_: str
    ) -> PendingLoad:
        """Put a token to upstream's test: load the session with it, once however many ask.

        Until upstream has spoken, the token counts as bad, so that who invents tokens meets that
        limit before upstream meets the tokens; and what it claims has only been good for refusing.
        """
        now = context.now
        refused = self.introspections.refused(digest, id_, now)
        if refused is not None:
            code, rest = refused
            retry_after = rest if code == "over_budget" else None
            refusal = self._refused(context, caller, Refusal(code, retry_after=retry_after))
            raise Refused(refusal.code, refusal.detail, refusal.retry_after)
        flight, mark = self.introspections.flight(digest, id_), None
        collapsed = flight is not None
        if flight is None:
            if self.introspections.full:
                raise Refused("over_budget", retry_after=1)
            if context.probes is not None:
                self._reserve_probe(context)
            elif not self.introspections.authentic(digest, now):
                mark = self._limits.bad_token.window(context.address, now)
            if mark is not None:
                if mark.exhausted:
                    context.window = mark
                    raise Refused("rate_limited")
                mark.charge()
            environment = self.environments[caller.environment]
            test = self.loader.test(environment, id_, caller, context.token, mark)
            flight = self.introspections.fly(digest, id_, test)
        marked = mark is not None
        return PendingLoad(
            context, caller, id_, flight, None, collapsed, self.config, test=True, marked=marked
        )

    def _refused(
        self,
        context: RequestContext,
        caller: Caller[Grant],
        refusal: Refusal,
        *,
        marked: bool = False,
    ) -> Refusal:
        """Count, by what upstream's refusal says of the token; returns what is to be told."""
        try:
            if refusal.code == "token_invalid":
                # Upstream looks at the token first, so this says nothing of the session.
                context.probes = None
                if marked or context.reserved:
                    self.telemetry.count("bff_bad_tokens", refusal.code)
                else:
                    self._count_bad_token(context, context.address, refusal)
            elif refusal.code not in UNDECIDED:
                self._count_caller(context, caller, context.address)
        except Refused as limited:
            return limited.refusal
        return refusal

    def _tested(self, load: PendingLoad, found: Found | Refusal | None) -> Found | Refusal | None:
        """Draw the conclusions from a test for the one who waited for it."""
        context, caller = load.context, load.caller
        if isinstance(found, Refusal):
            return self._refused(context, caller, found, marked=load.marked)
        try:
            self._count_caller(context, caller, context.address)
        except Refused as limited:
            return limited.refusal
        if found is None:
            self._unreserve(context)  # upstream was not asked for it, and the next load may be
        return found

    # -- the shared copy

    def _look_up(
        self, context: RequestContext, caller: Caller[Grant], id_: str
    ) -> Response | PendingLoad:
        found = self._find(context, caller, id_)
        return found if isinstance(found, PendingLoad) else self._session(context, caller, *found)

    def _find(
        self, context: RequestContext, caller: Caller[Grant], id_: str
    ) -> Found | PendingLoad:
        now, environment = context.now, self.environments[caller.environment]
        budget = environment.budget
        known = self.cache.find(environment.name, id_, now)
        if isinstance(known, NegativeEntry):
            self.telemetry.count("bff_cache", "negative")
            raise Refused("not_found")
        fallback = None
        if known is not None:
            # Ids never change, so what this copy says of them stands, however old it is.
            self._authorize(context, caller, known)
            context.probes = None
            known.epoch = budget.count_hot(known.epoch, now)
            if self.cache.ages.fresh(known, now, budget.stretched):
                return known, b"hit", "hit"
            state = self.cache.ages.state(known, now, budget.stretched)
            flight = self.cache.flight(environment.name, id_)
            wait = max(self.loader.wait(budget, now), known.retry - now)
            if state is State.STALE:
                if flight is None and wait <= 0:
                    self.loader.start(environment, id_, known, now)
                return known, b"hit; detail=stale", "stale"
            if state is State.STALE_IF_ERROR:
                if flight is None and wait > 0:
                    return _fallback(known)
                fallback = known
        flight = self.cache.flight(environment.name, id_)
        collapsed = flight is not None
        if flight is None:
            wait = self.loader.wait(budget, now)
            if wait > 0:
                raise Refused("over_budget", retry_after=wait)
            self._reserve_probe(context)
            flight = self.loader.start(environment, id_, fallback, now)
        return PendingLoad(context, caller, id_, flight, fallback, collapsed, self.config)

    def _reserve_probe(self, context: RequestContext) -> None:
        """Only the load that a visit starts costs upstream a call: joining one is free."""
        if context.probes is not None:
            if context.probes.exhausted:
                raise Refused("unauthorized")
            context.probes.charge()
            context.reserved = True

    def _unreserve(self, context: RequestContext) -> None:
        if context.reserved and context.probes is not None:
            context.probes.refund()
            context.reserved = False

    def _list(
        self,
        context: RequestContext,
        caller: Caller[Grant],
        wanted: page.Listing,
        how: bytes = b"hit",
    ) -> Response | PendingList:
        """Answer a list from memory, or say for which sessions has to be waited."""
        loads: list[PendingLoad] = []
        digest = caller.digest

        def find(id_: str) -> Copy | Refusal | None:
            if id_ not in wanted.known:
                if (
                    digest is not None
                    and loads
                    and not self.introspections.authentic(digest, context.now)
                ):
                    return None  # first of all whether the token is one
                try:
                    found: Found | PendingLoad
                    if digest is not None and not self.introspections.accepted(
                        digest, id_, context.now
                    ):
                        found = self._test(context, caller, digest, id_)
                    else:
                        self._count_caller(context, caller, context.address)
                        found = self._find(context, caller, id_)
                except Refused as refused:
                    if refused.refusal.code in _OF_THE_CALLER:
                        raise
                    wanted.known[id_] = refused.refusal
                else:
                    if isinstance(found, PendingLoad):
                        loads.append(found)
                        return None
                    wanted.known[id_] = self._counted(found)
            return wanted.known[id_]

        page = wanted.page(find)
        if page is None:
            return PendingList(context, caller, wanted, loads)
        return self._page(context, caller, page, how)

    def _counted(self, found: Found | Refusal) -> Copy | Refusal:
        if isinstance(found, Refusal):
            return found
        copy, _, result = found
        self.telemetry.count("bff_cache", result)
        return copy

    async def finish(self, load: PendingLoad | PendingList | PendingLease) -> Response:
        """Wait for a load, which goes on if this is cancelled, and decide on what it brought."""
        if isinstance(load, PendingLease):
            answer = await self._finish_wait(load)
            return answer if isinstance(answer, Response) else await self.finish(answer)
        try:
            if isinstance(load, PendingList):
                return await self._finish_list(load)
            return await self._finish_load(load)
        except LeasePending as lack:  # by a tested caller: what upstream said of the token is kept
            return await self.finish(self._uncounted(load.context, lack))

    async def _finish_load(self, load: PendingLoad) -> Response:
        context = load.context
        await self._wait(context, [load])
        found = self._landed(load)
        if load.config is not self.config:
            return await self._finish_anew(context, found)
        try:
            self._still_good(context, load.caller)
            if found is None:
                answer = self._look_up(context, load.caller, load.id)
                return answer if isinstance(answer, Response) else await self._finish_load(answer)
            if not isinstance(found, Refusal):
                return self._session(context, load.caller, *found)
        except Refused as refused:
            return self._refusal(context, refused.refusal)
        return self._refusal(context, found)

    def _landed(self, load: PendingLoad) -> Found | Refusal | None:
        """What a load brought, as far as it is this caller's.

        None if it was a test of which another replica knew that it passes: the session is to be
        looked up as for any caller.
        """
        found = _landed(load)
        if load.test:
            found = self._tested(load, found)
        if found is None or isinstance(found, Refusal):
            return found
        if self._revoked(load.context, load.caller, found[0]):
            return Refusal("unauthorized")
        return found

    async def _finish_list(self, waited: PendingList) -> Response:
        """Wait for what a page needs, and for more if some of it is missing or filtered out."""
        context, caller, wanted = waited.context, waited.caller, waited.listing
        while True:
            await self._wait(context, waited.loads)
            for load in waited.loads:
                found = self._landed(load)
                if load.config is not self.config:
                    return await self._finish_anew(context, found)
                if isinstance(found, Refusal) and self._of_the_caller(caller, found, context.now):
                    return self._refusal(context, found)
                if found is not None:
                    wanted.known[load.id] = self._counted(found)
            try:
                self._still_good(context, caller)
                answer = self._list(context, caller, wanted, b"fwd=miss")
            except Refused as refused:
                return self._refusal(context, refused.refusal)
            if isinstance(answer, Response):
                return answer
            waited = answer

    def _of_the_caller(self, caller: Caller[Grant], refusal: Refusal, now: float) -> bool:
        """Whether a refusal that one session met is all that there is to tell of the list."""
        untested = caller.digest is not None and not self.introspections.authentic(
            caller.digest, now
        )
        return refusal.code in _OF_THE_CALLER or untested

    async def _wait(self, context: RequestContext, loads: Sequence[PendingLoad]) -> None:
        """Wait until all have landed, or for a second if every one of them has a last resort."""
        began, _ = self._clock()
        patience = PATIENCE_SECONDS if all(load.fallback for load in loads) else None
        await asyncio.wait([load.flight for load in loads], timeout=patience)
        context.now, context.wall = self._clock()
        context.waited = (context.waited or 0.0) + context.now - began

    async def _finish_anew(
        self, context: RequestContext, found: Found | Refusal | None
    ) -> Response:
        """The rules changed meanwhile: the key may be gone, the policy stricter. Decide again.

        What was loaded is kept already, unless it may not be, so upstream is not asked twice.
        """
        if isinstance(found, Refusal):
            return self._refusal(context, found)
        answer = self.decide(context.head, *self._clock())
        return answer if isinstance(answer, Response) else await self.finish(answer)

    async def _finish_wait(self, wait: PendingLease) -> Response | PendingLoad | PendingList:
        """Wait for leases, for as long as a request may wait for the store, and decide again."""
        assert self.sharing is not None  # noqa: S101  nothing else leases
        ends = self._clock()[0] + self.sharing.timeout
        while True:
            left = ends - self._clock()[0]
            await asyncio.wait([wait.lease], timeout=max(0.0, left))
            if left <= 0 or not wait.lease.done():
                self.sharing.store.mark_down()
            answer = self.decide(wait.head, *self._clock())
            if not isinstance(answer, PendingLease):
                return answer
            wait = answer

    # -- the ways out

    def _session(
        self, context: RequestContext, caller: Caller[Grant], copy: Copy, how: bytes, result: str
    ) -> Response:
        """Answer with a copy, if this caller may read this session: the one door out."""
        self._authorize(context, caller, copy)
        if context.reserved:
            self._unreserve(context)  # it was no probe
        self.telemetry.counts["bff_cache", result] += 1
        self.telemetry.observe("bff_age_served_seconds", max(0.0, context.now - copy.loaded))
        self._served += 1
        if self._served % SAMPLE == 0 or (context.waited or 0.0) >= SLOW_SECONDS:
            self._log_served(context, result)
        return self._shown(context, copy, how)

    def _authorize(self, context: RequestContext, caller: Caller[Grant], copy: Copy) -> None:
        """Decide on the copy's own ids: either of them may be the one that the token names."""
        if (
            copy.environment != caller.environment
            or not caller.granted.covers(copy.id, copy.external_id)
            or (self.revocations.any and self._revoked(context, caller, copy))
        ):
            raise Refused("unauthorized")

    def _revoked(self, context: RequestContext, caller: Caller[Grant], copy: Copy) -> bool:
        return self.revocations.session(copy.id, copy.external_id, caller.issued, context.wall)

    def _page(
        self, context: RequestContext, caller: Caller[Grant], page: page.Page, how: bytes
    ) -> Response:
        """Answer with a page of a list, if this caller may read every session on it."""
        for copy in page.copies:
            self._authorize(context, caller, copy)
        if page.unavailable and not page.copies:
            # An empty list would say that there are no sessions.
            return self._refusal(context, next(iter(page.unavailable.values())))
        if (context.waited or 0.0) >= SLOW_SECONDS:
            self._log_served(context, "list")
        lost = len(page.unavailable)
        return self._shown(
            context, page, how, b"x-unavailable-sessions: %d\r\n" % lost if lost else b""
        )

    def _shown(
        self, context: RequestContext, what: Representation, how: bytes, lines: bytes = b""
    ) -> Response:
        fields = context.head.fields
        response = self._responses.session(
            what,
            not_modified=fields.if_none_match is not None
            and _matches(fields.if_none_match, what.etag),
            cache_status=how,
            window=context.window,
            now=context.now,
            wall=context.wall,
            origin=fields.origin,
            request_id=context.request_id,
            lines=lines,
        )
        if context.waited is not None:  # of a refusal, it would tell whether the session exists
            response.head += server_timing(context.waited)
        return self._count(context, response, "")

    def _log_served(self, context: RequestContext, result: str) -> None:
        waited = context.waited or 0.0
        self.telemetry.often(  # thousands may have waited for one load
            "slow_answer" if waited >= SLOW_SECONDS else "answer_sampled",
            context.now,
            request_id=context.request_id.decode(),
            result=result,
            waited=round(waited, 4),
            of=self._served,
        )

    def _refusal(self, context: RequestContext, refusal: Refusal) -> Response:
        """Tell why not. Of an id that is not named, nothing but that is told."""
        if context.probes is not None and refusal.code != "rate_limited":
            if not context.reserved:
                context.probes.charge()
            refusal, context.window = Refusal("unauthorized"), UNLIMITED_WINDOW
        if refusal.code == "rate_limited" and context.window.headers:
            self.telemetry.count("bff_limited", context.window.limiter.name)
        response = self._responses.refusal(
            refusal,
            window=context.window,
            now=context.now,
            wall=context.wall,
            origin=context.head.fields.origin,
            request_id=context.request_id,
        )
        # Of those over a limit, the first of a window: who floods is not to fill the log as well.
        if refusal.code != "rate_limited" or context.window.first:
            self.telemetry.often(
                "request_refused",
                context.now,
                logging.INFO if response.status < 500 else logging.WARNING,  # noqa: PLR2004
                request_id=context.request_id.decode(),
                route=context.route,
                status=response.status,
                code=refusal.code,
            )
        return self._count(context, response, refusal.code)

    def _count(self, context: RequestContext, response: Response, code: str) -> Response:
        head = context.head
        key = ("bff_requests", context.route, response.status, code, head.served_by)
        self.telemetry.counts[key] += 1
        return replace(response, body=b"") if head.method == "HEAD" else response


def _landed(load: PendingLoad) -> Found | Refusal | None:
    """What a load brought: a new copy, or failing that a last resort, or why there is neither."""
    outcome = load.flight.result() if load.flight.done() else Refusal("upstream_timeout")
    if isinstance(outcome, Copy):
        forward = b"stale" if load.fallback else b"miss"
        how = b"fwd=%b; %b" % (forward, b"collapsed" if load.collapsed else b"stored")
        return outcome, how, "joined" if load.collapsed else "miss"
    if outcome is None:
        return None
    if load.fallback and outcome.code != "not_found":
        return _fallback(load.fallback)
    return outcome


def _fallback(copy: Copy) -> Found:
    return copy, b"hit; detail=stale-if-error", "last_resort"


def _bearer(authorization: bytes) -> bytes:
    scheme, _, token = authorization.strip().partition(b" ")
    if scheme.startswith(b"tr_"):  # upstream takes a bare key too
        raise Refused("secret_key_sent")
    if scheme.lower() != b"bearer":
        raise Refused("token_invalid", "Send the token as 'Authorization: Bearer <token>'")
    if not token.strip():
        raise Refused("token_missing")
    return token.strip()


def _matches(if_none_match: bytes, etag: bytes) -> bool:
    """RFC 9110 §13.1.2: weak comparison, a list, or ``*``."""
    if if_none_match == etag:
        return True
    parts = if_none_match.split(b",", _MAX_TAGS)
    candidates = (part.strip().removeprefix(b"W/") for part in parts)
    return any(candidate in (etag, b"*") for candidate in candidates)

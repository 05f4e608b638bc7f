"""The path of one request, start to end: read this file first.

`Gateway.decide` goes from a request's head to an answer without any I/O; where the answer is not in
memory it returns a `Load`, and `Gateway.finish` waits for that and decides again, on what was
loaded. Both end in `_session` or `_refusal`: there is no other way out for a session, and none that
does not ask first whether this caller may read it.

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
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bff import sessions
from bff.auth import Caller, Verifier
from bff.cache import Cache, Copy, Missing, State
from bff.errors import Refusal
from bff.limits import Budget, Limiter, Network, Window, address_key, browser_address
from bff.policy import Policy
from bff.replies import Replies, Reply, copy_head
from bff.revocations import Revocations
from bff.scopes import Grant
from bff.telemetry import Telemetry
from bff.upstream import Upstream
from bff.verdicts import UNDECIDED, Verdicts

PATIENCE_SECONDS = 1.0
"""Whoever could be answered with a usable copy waits no longer than this for a newer one."""
RETRY_SECONDS = 1.0
"""After a failed load, a usable copy is answered this long before the next attempt."""

PROBE_ID = "session_readiness_probe"
"""Asked for to learn whether the key works; upstream answers that there is no such session."""
PROBE_SECONDS = 2.0
"""Between two such questions."""


@dataclass(slots=True)
class Head:
    """What of a request is looked at, and nothing else ever is."""

    method: str
    path: bytes
    """Raw: percent-encoded, without query and fragment."""
    peer: str
    origin: bytes | None = None
    authorization: bytes | None = None
    if_none_match: bytes | None = None
    forwarded: Sequence[bytes] = ()
    cookies: Sequence[bytes] = ()
    fetch_site: bytes | None = None
    ambiguous: bool = False
    """A header that may stand once only was repeated."""

    @classmethod
    def read(
        cls, method: str, path: bytes, headers: Iterable[tuple[bytes, bytes]], peer: str
    ) -> "Head":
        """Pick from *headers* (names in lower case) what a decision needs."""
        head = cls(method, path, peer)
        for name, value in headers:
            if name == b"authorization":
                head.ambiguous |= head.authorization is not None
                head.authorization = value
            elif name == b"origin":
                head.ambiguous |= head.origin is not None
                head.origin = value
            elif name == b"if-none-match":
                head.if_none_match = value
            elif name == b"x-forwarded-for":
                head.forwarded = (*head.forwarded, value)
            elif name == b"cookie":
                head.cookies = (*head.cookies, value)
            elif name == b"sec-fetch-site":
                head.fetch_site = value if head.fetch_site is None else b""  # twice is no word
        return head


@dataclass(slots=True)
class Visit:
    """One request on its way: what has been found out so far."""

    head: Head
    request_id: bytes
    now: float
    """Seconds on the clock that never jumps."""
    wall: float
    """Unix seconds."""
    route: str = "other"
    window: Window | None = None
    """Of the limit that counted it last."""
    probes: Window | None = None
    """The address's bad tokens, while the id is not known to be one that the caller may read."""
    reserved: bool = False
    """One of `probes` was taken in advance, for the load this visit started."""
    token: bytes = b""
    address: str = ""
    counted: bool = False
    """By caller: a request is counted once, and that of an untested token not before its test."""


@dataclass(slots=True)
class Load:
    """An answer that has to be waited for."""

    visit: Visit
    caller: Caller[Grant]
    id: str
    flight: "asyncio.Task[Copy | Refusal]"
    last_resort: Copy | None
    joined: bool
    test: bool = False
    """Upstream is asked with the caller's own token, and its answer is about that too."""
    mark: Window | None = None
    """The address's bad tokens, of which one was taken in advance for this test."""


@dataclass(slots=True)
class Environment:
    """One Trigger.dev environment at run time."""

    name: str
    upstream: Upstream
    budget: Budget
    health: str | None = None
    """None before the first load, then "ok" or the error code that the last one ended in."""
    checked: float = float("-inf")
    """When `health` was learned."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limiters; None is `off`."""

    address: Limiter | None
    bad_token: Limiter | None
    caller: Limiter | None


class Gateway:
    """Answers browsers. Knows neither Starlette nor sockets.

    Args:
        environments: by name; `Verifier` speaks of them by the same names.
        policies: by session type; `default_policy` for every other.
        pages: public JSON by path.
        clock: returns the two times, as in `Visit`; for what finishes after its decision.
        request_ids: makes an id for each answer.
    """

    def __init__(
        self,
        *,
        environments: Mapping[str, Environment],
        verifier: Verifier[Grant],
        cache: "Cache[Copy | Refusal]",
        verdicts: "Verdicts[Copy | Refusal]",
        revocations: Revocations,
        limits: Limits,
        token_cookie: bytes | None,
        trusted_proxies: Sequence[Network],
        default_policy: Policy,
        policies: Mapping[str, Policy],
        replies: Replies,
        pages: Mapping[bytes, bytes],
        telemetry: Telemetry,
        clock: Callable[[], tuple[float, float]],
        request_ids: Callable[[], bytes],
    ) -> None:
        self.environments = environments
        self.cache = cache
        self.telemetry = telemetry
        self.verifier = verifier
        self.verdicts = verdicts
        self.revocations = revocations
        self._token_cookie = token_cookie
        self._limits = limits
        self._trusted_proxies = trusted_proxies
        self._default_policy = default_policy
        self._policies = policies
        self._replies = replies
        self._pages = pages
        self._clock = clock
        self._request_ids = request_ids

    # -- the decision

    def decide(self, head: Head, now: float, wall: float) -> Reply | Load:
        """Answer from memory, or say what has to be waited for. Starts loads, awaits nothing."""
        request_id = self._request_ids()
        if head.method == "OPTIONS":
            self.telemetry.count("bff_requests", "preflight", "204", "")
            return self._replies.preflight(head.origin, request_id)
        visit = Visit(head, request_id, now, wall)
        try:
            return self._decide(visit)
        except Refusal as refusal:
            return self._refusal(visit, refusal)

    def _decide(self, visit: Visit) -> Reply | Load:
        address = self._count_address(visit)
        page_or_segment = self._route(visit)
        if isinstance(page_or_segment, Reply):
            return page_or_segment
        caller = self._authenticate(visit, address)
        id_ = sessions.parse_id(page_or_segment)
        if not caller.granted.covers(id_):
            if not sessions.may_be_alias(id_, caller.granted):
                raise Refusal("unauthorized")
            visit.probes = self._bad_tokens(address, visit.now)
        if caller.digest is not None and not self.verdicts.good(caller.digest, id_, visit.now):
            return self._test(visit, caller, address, id_)
        self._count_caller(visit, caller, address)
        return self._look_up(visit, caller, id_)

    def _count_address(self, visit: Visit) -> str:
        head = visit.head
        address = address_key(browser_address(head.peer, head.forwarded, self._trusted_proxies))
        if self._limits.address is not None:
            visit.window = self._limits.address.take(address, visit.now)
            if visit.window.exceeded:
                raise Refusal("rate_limited")
            visit.window = None
        return address

    def _route(self, visit: Visit) -> Reply | bytes:
        """Find the page, or the path segment that is to be a session id.

        The raw path decides, so that no encoding of a route is another way to it.
        """
        head, path = visit.head, visit.head.path
        if path.startswith(sessions.ROUTE) and b"/" not in path[len(sessions.ROUTE) :]:
            visit.route = "session"
            if head.method not in ("GET", "HEAD"):
                raise Refusal("method_not_allowed")
            return path[len(sessions.ROUTE) :]
        page = self._pages.get(path)
        if page is not None:
            visit.route = "page"
            if head.method not in ("GET", "HEAD"):
                raise Refusal("method_not_allowed")
            reply = self._replies.page(page, origin=head.origin, request_id=visit.request_id)
            return self._count(visit, reply, "")
        if path.startswith((b"/api/", b"/realtime/")):
            raise Refusal("not_served")
        raise Refusal("not_found", "There is nothing here")

    def _authenticate(self, visit: Visit, address: str) -> Caller[Grant]:
        head = visit.head
        if head.ambiguous:
            raise Refusal("bad_request", "Send one Authorization and one Origin header")
        if head.authorization is not None and not head.authorization:
            raise Refusal("token_missing")
        cookie = self._from_cookie(head) if head.authorization is None else None
        try:
            visit.token = cookie or _bearer(head.authorization or b"")
            caller = self.verifier.verify(visit.token, visit.wall)
            self._still_good(visit, caller)
        except Refusal as refusal:
            if refusal.kind.status == 401:  # noqa: PLR2004
                self._count_bad_token(visit, address, refusal)
            raise
        return caller

    def _still_good(self, visit: Visit, caller: Caller[Grant]) -> None:
        if self.revocations.token(caller.jti, caller.subjects, caller.issued, visit.wall):
            raise Refusal("token_revoked")

    def _from_cookie(self, head: Head) -> bytes:
        """Take the token from its cookie, if a page of this very origin asks to read.

        The browser says so itself, in a header that no script can set. An `Origin` comes with what
        another origin may have caused, so with one there is no cookie for us.
        """
        if (
            self._token_cookie is not None
            and head.cookies
            and head.fetch_site == b"same-origin"
            and head.origin is None
        ):
            pairs = (pair.strip().partition(b"=") for pair in b";".join(head.cookies).split(b";"))
            found = [value for name, _, value in pairs if name == self._token_cookie and value]
            if len(found) > 1:
                raise Refusal("bad_request", "Send the token's cookie once")
            if found:
                return found[0]
        raise Refusal("token_missing")

    def _count_bad_token(self, visit: Visit, address: str, refusal: Refusal) -> None:
        if refusal.code == "secret_key_sent":
            self.telemetry.log.error("secret_key_sent_by_browser", remedy="rotate the key")
        window = self._bad_tokens(address, visit.now)
        if window is not None:
            window.used += 1
            if window.exceeded:
                visit.window = window
                raise Refusal("rate_limited") from None

    def _bad_tokens(self, address: str, now: float) -> Window | None:
        limiter = self._limits.bad_token
        return None if limiter is None else limiter.window(address, now)

    def _count_caller(self, visit: Visit, caller: Caller[Grant], address: str) -> None:
        if self._limits.caller is not None and not visit.counted:
            visit.counted = True
            key = (caller.key, None if caller.has_actor else address)
            visit.window = self._limits.caller.take(key, visit.now)
            if visit.window.exceeded:
                raise Refusal("rate_limited")

    def failed(self, head: Head, exc: Exception) -> Reply:
        """Answer for a request that failed in a way nobody foresaw, and log where."""
        request_id = self._request_ids()
        self.telemetry.exception("request_failed", exc, request_id=request_id.decode())
        visit = Visit(head, request_id, *self._clock())
        return self._refusal(visit, Refusal("internal"))

    # -- upstream's word on a token

    def _test(self, visit: Visit, caller: Caller[Grant], address: str, id_: str) -> Load:
        """Put a token to upstream's test: load the session with it, once however many ask.

        Until upstream has spoken, the token counts as bad, so that who invents tokens meets that
        limit before upstream meets the tokens; and what it claims has only been good for refusing.
        """
        digest, now = caller.digest or b"", visit.now
        visit.address = address
        refused = self.verdicts.refused(digest, id_, now)
        if refused is not None:
            code, rest = refused
            retry_after = rest if code == "over_budget" else None
            raise self._refused(visit, caller, Refusal(code, retry_after=retry_after))
        flight, mark = self.verdicts.flight(digest, id_), None
        joined = flight is not None
        if flight is None:
            if self.verdicts.full:
                raise Refusal("over_budget", retry_after=1)
            if visit.probes is not None:
                self._reserve_probe(visit)
            elif (mark := self._bad_tokens(address, now)) is not None:
                if mark.exhausted:
                    visit.window = mark
                    raise Refusal("rate_limited")
                mark.used += 1
            environment = self.environments[caller.environment]
            load = self._fetch_as(environment, id_, caller, visit.token)
            flight = self.verdicts.fly(digest, id_, load)
        return Load(visit, caller, id_, flight, None, joined, test=True, mark=mark)

    def _refused(
        self, visit: Visit, caller: Caller[Grant], refusal: Refusal, *, marked: bool = False
    ) -> Refusal:
        """Count, by what upstream's refusal says of the token; returns what is to be told."""
        try:
            if refusal.code == "token_invalid":
                # Upstream looks at the token first, so this says nothing of the session.
                visit.probes = None
                if not marked and not visit.reserved:
                    self._count_bad_token(visit, visit.address, refusal)
            elif refusal.code not in UNDECIDED:
                self._count_caller(visit, caller, visit.address)
        except Refusal as limited:
            return limited
        return refusal

    async def _fetch_as(
        self, environment: Environment, id_: str, caller: Caller[Grant], token: bytes
    ) -> Copy | Refusal:
        """One load that is a test of a token too. Never raises.

        The token's `sub` is this environment's id and upstream has verified it, so what comes is
        of this environment: it fills the shared copy as any load does. Health and budget are the
        secret key's and learn nothing here.
        """
        digest, outcome = (
            caller.digest or b"",
            await self._brought(
                environment, id_, lambda path: environment.upstream.get_as(token, path)
            ),
        )
        now, wall = self._clock()
        code = "ok" if isinstance(outcome, Copy) else outcome.code
        self.telemetry.count("bff_token_tests", code)
        if isinstance(outcome, Refusal):
            self.verdicts.refuse(digest, id_, now, code, outcome.retry_after)
        else:
            ids = {id_, outcome.id, outcome.external_id or outcome.id}
            self.verdicts.accept(digest, ids, now, caller.expires - wall)
            self.verifier.remember(token, caller)
        return outcome

    # -- the shared copy

    def _look_up(self, visit: Visit, caller: Caller[Grant], id_: str) -> Reply | Load:
        now, environment = visit.now, self.environments[caller.environment]
        budget = environment.budget
        known = self.cache.find(environment.name, id_, now)
        if isinstance(known, Missing):
            self.telemetry.count("bff_cache", "negative")
            raise Refusal("not_found")
        flight = self.cache.flight(environment.name, id_)
        joined = flight is not None
        last_resort = None
        if known is not None:
            # Ids never change, so what this copy says of them stands, however old it is.
            self._authorize(visit, caller, known)
            visit.probes = None
            known.epoch = budget.count_hot(known.epoch, now)
            state = self.cache.ages.state(known, now, budget.stretched)
            if state is State.FRESH:
                return self._session(visit, caller, known, b"hit", "hit")
            wait = max(budget.wait(now), known.retry - now)
            if state is State.STALE:
                if flight is None and wait <= 0:
                    self._load(environment, id_, known, now)
                return self._session(visit, caller, known, b"hit; detail=stale", "stale")
            if state is State.LAST_RESORT:
                if flight is None and wait > 0:
                    return self._last_resort(visit, caller, known)
                last_resort = known
        if flight is None:
            wait = budget.wait(now)
            if wait > 0:
                raise Refusal("over_budget", retry_after=wait)
            self._reserve_probe(visit)
            flight = self._load(environment, id_, last_resort, now)
        return Load(visit, caller, id_, flight, last_resort, joined)

    def _reserve_probe(self, visit: Visit) -> None:
        """Only the load that a visit starts costs upstream a call: joining one is free."""
        if visit.probes is not None:
            if visit.probes.exhausted:
                raise Refusal("unauthorized")
            visit.probes.used += 1
            visit.reserved = True

    async def finish(self, load: Load) -> Reply:
        """Wait for a load, which goes on if this is cancelled, and decide on what it brought."""
        visit, flight = load.visit, load.flight
        patience = PATIENCE_SECONDS if load.last_resort else None
        await asyncio.wait([flight], timeout=patience)
        outcome = flight.result() if flight.done() else Refusal("upstream_timeout")
        visit.now, visit.wall = self._clock()
        try:
            self._still_good(visit, load.caller)
            if load.test:
                outcome = self._tested(load, outcome)
            if isinstance(outcome, Copy):
                forward = b"stale" if load.last_resort else b"miss"
                how = b"fwd=%b; %b" % (forward, b"collapsed" if load.joined else b"stored")
                result = "joined" if load.joined else "miss"
                return self._session(visit, load.caller, outcome, how, result)
            if load.last_resort and outcome.code != "not_found":
                return self._last_resort(visit, load.caller, load.last_resort)
        except Refusal as refusal:
            return self._refusal(visit, refusal)
        # Not raised: it is shared by all who wait, and an exception grows with each raise.
        return self._refusal(visit, outcome)

    def _tested(self, load: Load, outcome: Copy | Refusal) -> Copy | Refusal:
        """Draw the conclusions from a test for the one who waited for it."""
        visit, caller, mark = load.visit, load.caller, load.mark
        passed = isinstance(outcome, Copy) or outcome.code in ("not_found", "unauthorized")
        if mark is not None and passed:
            mark.used -= 1  # it was no bad one
        if isinstance(outcome, Refusal):
            return self._refused(visit, caller, outcome, marked=mark is not None)
        self._count_caller(visit, caller, visit.address)
        return outcome

    def _load(
        self, environment: Environment, id_: str, known: Copy | None, now: float
    ) -> "asyncio.Task[Copy | Refusal]":
        environment.budget.spend(now)
        return self.cache.fly(environment.name, id_, self._fetch(environment, id_, known))

    async def _fetch(
        self, environment: Environment, id_: str, known: Copy | None
    ) -> Copy | Refusal:
        """One load: fetch, validate, project, encode and hash once, keep. Never raises."""
        started, _ = self._clock()
        outcome = await self._brought(environment, id_, environment.upstream.get)
        ended, _ = self._clock()
        self._learn(environment, id_, outcome, known, ended, ended - started)
        return outcome

    async def _brought(
        self, environment: Environment, id_: str, get: Callable[[str], Awaitable[bytes]]
    ) -> Copy | Refusal:
        started, _ = self._clock()
        try:
            body = await get(sessions.path(id_))
            copy = self._project(
                environment.name, sessions.parse_document(body, asked=id_), started
            )
            known = self.cache.find(environment.name, id_, started)
            if not (isinstance(known, Copy) and known.loaded > started):
                self.cache.put(copy)  # not over what was asked for later, and came sooner
        except Refusal as refusal:
            return refusal
        except Exception as exc:  # noqa: BLE001  many wait for this outcome: it has to have one
            self.telemetry.exception("load_failed", exc)
            return Refusal("internal")
        return copy

    def _project(self, environment: str, document: dict[str, object], loaded: float) -> Copy:
        """Make the copy; whatever a browser must not see ends here."""
        policy = self._policies.get(str(document["type"]), self._default_policy)
        self.telemetry.unknown_fields(document.keys() - sessions.FIELDS - set(policy.fields))
        shown = policy.project(document)
        try:
            body = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            encoded = body.encode()
        except ValueError:  # a lone surrogate, or a number beyond the floats
            raise Refusal("upstream_invalid") from None
        etag = b'"%b"' % base64.urlsafe_b64encode(hashlib.sha256(encoded).digest()[:18])
        return Copy(
            environment=environment,
            id=str(document["id"]),
            external_id=document["externalId"],  # type: ignore[arg-type]  # validated
            etag=etag,
            head=copy_head(etag),
            body=encoded,
            closed=document["closedAt"] is not None,
            loaded=loaded,
        )

    def _learn(
        self,
        environment: Environment,
        id_: str,
        outcome: Copy | Refusal,
        known: Copy | None,
        now: float,
        seconds: float,
    ) -> None:
        """Draw the conclusions from a load for the next ones."""
        code = "ok" if isinstance(outcome, Copy) else outcome.code
        self.telemetry.count("bff_loads", code)
        self.telemetry.count("bff_load_seconds", by=seconds)
        if isinstance(outcome, Refusal):
            if code == "not_found":
                self.cache.put_missing(environment.name, id_, now)
            elif known is not None:
                known.retry = now + RETRY_SECONDS
            if code == "over_budget":
                environment.budget.pause(now, outcome.retry_after or RETRY_SECONDS)
                outcome.retry_after = environment.budget.wait(now)
        healthy = code in ("ok", "not_found", "over_budget")
        health = "ok" if healthy else code
        fields = {"environment": environment.name, "outcome": code, "seconds": round(seconds, 4)}
        if health == environment.health or (healthy and environment.health is None):
            self.telemetry.log.info("load_finished", **fields)
        elif healthy:
            self.telemetry.log.warning("upstream_recovered", **fields)
        elif code == "upstream_rejected_credentials":
            self.telemetry.log.error("upstream_rejects_our_key", **fields)
        else:
            self.telemetry.log.warning("upstream_failing", **fields)
        environment.health, environment.checked = health, now

    async def readiness(self) -> dict[str, tuple[bool, str]]:
        """Whether each environment can serve, and why; asks upstream where that is not known."""
        now, _ = self._clock()
        loads = [
            self.cache.flight(environment.name, PROBE_ID)
            or self._load(environment, PROBE_ID, None, now)
            for environment in self.environments.values()
            if environment.health != "ok" and now - environment.checked >= PROBE_SECONDS
            if environment.budget.wait(now) <= 0
        ]
        if loads:
            await asyncio.wait(loads)
        return {name: self.ready(env) for name, env in self.environments.items()}

    def ready(self, environment: Environment) -> tuple[bool, str]:
        """Whether *environment* can serve, as far as is known, and why."""
        now, _ = self._clock()
        if environment.name in self.verifier.pending:
            return False, (
                "the environment's id is not known yet, so no token can be told to be its own: "
                "if the secret key cannot tell it, set BFF_ENVIRONMENT_ID"
            )
        if environment.health == "ok":
            return True, "the upstream answers and accepts the key"
        if environment.health == "upstream_rejected_credentials":
            return False, (
                "the upstream rejects the secret key, or it may not read sessions: "
                "check TRIGGER_SECRET_KEY, and BFF_BRANCH for a preview environment"
            )
        trouble = "the upstream fails" if environment.health else "the upstream was not asked yet"
        if self.cache.usable(environment.name, now):
            return True, f"{trouble} ({environment.health}); copies are served meanwhile"
        return False, f"{trouble} ({environment.health}) and there is no copy to serve"

    # -- the two ways out

    def _session(
        self, visit: Visit, caller: Caller[Grant], copy: Copy, how: bytes, result: str
    ) -> Reply:
        """Answer with a copy, if this caller may read this session: the one door out."""
        self._authorize(visit, caller, copy)
        if visit.reserved and visit.probes is not None:
            visit.probes.used -= 1  # it was no probe
        self.telemetry.count("bff_cache", result)
        head = visit.head
        reply = self._replies.session(
            copy,
            not_modified=_matches(head.if_none_match, copy.etag),
            age=max(0.0, visit.now - copy.loaded),
            cache_status=how,
            window=visit.window,
            now=visit.now,
            wall=visit.wall,
            origin=head.origin,
            request_id=visit.request_id,
        )
        return self._count(visit, reply, "")

    def _authorize(self, visit: Visit, caller: Caller[Grant], copy: Copy) -> None:
        """Decide on the copy's own ids: either of them may be the one that the token names."""
        if (
            copy.environment != caller.environment
            or not caller.granted.covers(copy.id, copy.external_id)
            or self.revocations.session(copy.id, copy.external_id, caller.issued, visit.wall)
        ):
            raise Refusal("unauthorized")

    def _last_resort(self, visit: Visit, caller: Caller[Grant], copy: Copy) -> Reply:
        return self._session(visit, caller, copy, b"hit; detail=stale-if-error", "last_resort")

    def _refusal(self, visit: Visit, refusal: Refusal) -> Reply:
        """Tell why not. Of an id that is not named, nothing but that is told."""
        if visit.probes is not None and refusal.code != "rate_limited":
            if not visit.reserved:
                visit.probes.used += 1
            refusal = Refusal("unauthorized")
        if refusal.code == "rate_limited" and visit.window is not None:
            self.telemetry.count("bff_limited", visit.window.limiter.name)
        reply = self._replies.refusal(
            refusal,
            window=visit.window,
            now=visit.now,
            wall=visit.wall,
            origin=visit.head.origin,
            request_id=visit.request_id,
        )
        self.telemetry.log.info(
            "request_refused",
            request_id=visit.request_id.decode(),
            route=visit.route,
            status=reply.status,
            code=refusal.code,
        )
        return self._count(visit, reply, refusal.code)

    def _count(self, visit: Visit, reply: Reply, code: str) -> Reply:
        self.telemetry.count("bff_requests", visit.route, str(reply.status), code)
        return replace(reply, body=b"") if visit.head.method == "HEAD" else reply


def _bearer(authorization: bytes) -> bytes:
    scheme, _, token = authorization.strip().partition(b" ")
    if scheme.startswith(b"tr_"):  # upstream takes a bare key too
        raise Refusal("secret_key_sent")
    if scheme.lower() != b"bearer":
        raise Refusal("token_invalid")
    if not token.strip():
        raise Refusal("token_missing")
    return token.strip()


def _matches(if_none_match: bytes | None, etag: bytes) -> bool:
    """RFC 9110 §13.1.2: weak comparison, a list, or ``*``."""
    if if_none_match is None:
        return False
    if if_none_match == etag:
        return True
    candidates = (part.strip().removeprefix(b"W/") for part in if_none_match.split(b","))
    return any(candidate in (etag, b"*") for candidate in candidates)

"""Tests a running gateway through the address that browsers use (`bff check --probe --url`).

It mints a token that names the session and a token that does not, and compares the answers to both.
A proxy or CDN in front that caches or changes answers makes them differ from a gateway's answers.
It also opens an event stream: a proxy that collects answers holds the first event back.
"""

import asyncio
import json
import math
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from bff import __version__
from bff.clock import Clock
from bff.config.settings import EnvironmentSettings, Settings
from bff.errors import REFUSALS, ErrorCode, UpstreamTimeout
from bff.live.listeners import HEARTBEAT_SECONDS
from bff.metrics import REQUESTS
from bff.ops.check import Checker, Finding, Page, expect, ok, problem, unsure, until_unreachable
from bff.sessions import ids
from bff.tokens.mint import mint
from bff.upstream.connection import Answer
from bff.upstream.other_hosts import Client, sockets
from bff.upstream.pool import trusted

_TOKEN_SECONDS: Final = 120
"""Lifetime of the minted tokens; a check takes a few seconds."""
FIRST_EVENT_SECONDS: Final = 5.0
"""Seconds for the first event of a stream; a gateway sends it at once."""
LATER_EVENT_SECONDS: Final = HEARTBEAT_SECONDS + 10.0
"""Seconds for what follows: a proxy that collects small parts often passes the first one on."""
_OPENING: Final = 2
"""Blocks with which a stream begins: the time of reconnects, and the first event."""
_BESIDE_SECONDS: Final = 1.0
"""Seconds in which an event counts as one that lies beside the first: nginx, for example, passes on
whatever it reads together with the head, and collects the rest."""
_NOTHING: Final = f"no event of a stream has come after {FIRST_EVENT_SECONDS:g} s"
_EVENTS: Final = "text/event-stream"
_FOREIGN_ORIGIN: Final = "https://bff-check.invalid"
_PAGES: Final[dict[ErrorCode, Page]] = {
    "not_ready": Page.NOT_READY,
    "over_budget": Page.BUDGET,
    "rate_limited": Page.LIMITS,
    "upstream_invalid": Page.UPSTREAM,
    "upstream_rejected_credentials": Page.UPSTREAM,
    "upstream_timeout": Page.UPSTREAM,
    "upstream_unavailable": Page.UPSTREAM,
}
"""The section for a refusal of the gateway; another refusal has a row in `Page.CODES`."""


class GatewayChecker(Checker):
    """Sends requests to a gateway as browsers do.

    Args:
        settings: those of the gateway.
        clock: the two times.
        client: replaces the network in tests.
    """

    def __init__(self, settings: Settings, clock: Clock, *, client: Client | None = None) -> None:
        super().__init__(settings, clock)
        self._client = client or Client(
            sockets(trusted(settings.upstream_ca_file)),
            connect_timeout=settings.upstream_connect_timeout,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def findings(
        self, environment: EnvironmentSettings, url: str, session: str | None
    ) -> AsyncIterator[Finding]:
        """Test the gateway at *url*; without a *session* isolation is tested on a missing one."""
        findings = self._findings(environment, url.rstrip("/"), session)
        return until_unreachable(findings, url, Page.SETTINGS)

    async def _findings(
        self, environment: EnvironmentSettings, url: str, session: str | None
    ) -> AsyncIterator[Finding]:
        if not environment.signing_keys or environment.learn:
            yield unsure(
                "isolation is not tested: minting the tokens needs a signing key and "
                "BFF_ENVIRONMENT_ID",
            )
            return
        id_ = session or "session_bff_check_no_such_session"
        other_id = ("session_" if ids.is_friendly(id_) else "") + secrets.token_hex(12)
        target = url + ids.path(id_)
        entitled, stranger = self._token(environment, id_), self._token(environment, other_id)

        first = await self._send(target, entitled)
        if "x-request-id" not in first.headers:
            yield problem(
                f"the answer ({first.status}) has no X-Request-Id: it is not the gateway's, or a "
                "proxy in front removes the header; is this the browser port's address, and are "
                "/api/v1/sessions and /api/v1/sessions/* routed to it?",
            )
            return
        if first.status == HTTPStatus.UNAUTHORIZED:
            yield problem(
                "the gateway rejects a token signed with the first of BFF_SIGNING_KEYS: it runs "
                "with other settings, or its clock is wrong",
                Page.TOKENS,
            )
            return
        expected = HTTPStatus.OK if session else HTTPStatus.NOT_FOUND
        text = f"a token that names the session gets {first.status}"
        yield ok(text) if first.status == expected else _refused(text, first, expected)
        refused = [
            await self._send(target, stranger | headers)
            for headers in (
                {},
                {"if-none-match": first.headers.get("etag", "*")},
                {"cache-control": "only-if-cached"},
            )
        ]
        if environment.id is not None:
            yield await self._environment_finding(environment, target, id_)
        again = await self._send(target, entitled)
        anonymous = await self._send(target, {})
        yield _isolation_finding(refused, anonymous, session)
        yield _cache_finding([first, *refused, again, anonymous])
        yield await self._origin_finding(target, entitled)
        page = await self._send(url + "/metrics", {})
        yield expect(
            REQUESTS.encode() not in page.body,  # an app may have another page of that name
            "the ops port's /metrics is not reachable at this address",
            "everybody can read the ops port's /metrics at this address: route the browser port "
            "only",
        )
        yield self._compare_clocks("the gateway", again)
        # The last one, because it waits for a heartbeat.
        yield await self._stream_finding(url + ids.LIST_ROUTE.decode(), entitled)

    async def _environment_finding(
        self, environment: EnvironmentSettings, target: str, id_: str
    ) -> Finding:
        """Test that a token of another environment, such as another branch, reads nothing."""
        other = replace(environment, id=f"{environment.id}_bff_check")
        answer = await self._send(target, self._token(other, id_))
        text = f"isolation: a token of another environment gets {answer.status}"
        return expect(
            answer.status == HTTPStatus.UNAUTHORIZED,
            text,
            f"{text}: the gateway runs without BFF_ENVIRONMENT_ID, so a token of another branch "
            "reads this one's sessions; set it there",
            Page.ENVIRONMENT_ID,
        )

    def _token(self, environment: EnvironmentSettings, id_: str) -> dict[str, str]:
        token = mint(
            environment.signing_keys[0].reveal(),
            environment_id=environment.id or "bff",
            scopes=[f"read:sessions:{id_}"],
            issued=int(self._clock()[1]),
            ttl=_TOKEN_SECONDS,
            actor="bff-check",
        )
        return {"authorization": f"Bearer {token}"}

    async def _origin_finding(self, target: str, entitled: Mapping[str, str]) -> Finding:
        origin = {"origin": _FOREIGN_ORIGIN}
        preflight = {**origin, "access-control-request-method": "GET"}
        readable = [
            name
            for name, answer in {
                "an answer": await self._send(target, {**entitled, **origin}),
                "a refusal": await self._send(target, origin),
                "a preflight": await self._send(target, preflight, method="OPTIONS"),
            }.items()
            if answer.headers.get("access-control-allow-origin") in ("*", _FOREIGN_ORIGIN)
        ]
        if readable and "*" in self._settings.allowed_origins:
            return unsure("a page of any origin can read answers: BFF_ALLOWED_ORIGINS is *")
        return expect(
            not readable,
            "a page of a foreign origin cannot read answers",
            f"a page of a foreign origin can read {', '.join(readable)}: a proxy in front adds "
            "CORS headers; remove them from its configuration",
        )

    async def _stream_finding(self, target: str, entitled: Mapping[str, str]) -> Finding:
        """Test that the events of a list come at once: the first one, and what follows."""
        if not self._settings.live.enabled:
            return unsure("event streams are not tested: BFF_LIVE is false")
        # Browsers accept compressed answers, so a proxy may compress what they get.
        headers = self._headers(entitled, accept=_EVENTS, **{"accept-encoding": "gzip, br"})
        try:
            timeout = FIRST_EVENT_SECONDS
            async with self._client.follow(target, headers, timeout=timeout) as (head, parts):
                return _head_problem(head) or await self._events_finding(parts)
        except UpstreamTimeout:
            return _collected(_NOTHING)

    async def _events_finding(self, parts: AsyncIterator[bytes]) -> Finding:
        """Read until an event comes that does not lie beside the first one."""
        events, last, opened = 0, b"", math.inf
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(FIRST_EVENT_SECONDS) as limit:
                async for part in parts:
                    came, last = (last + part).count(b"\n\n"), part[-1:]
                    events, now = events + came, self._clock()[0]
                    if came and now > opened + _BESIDE_SECONDS:
                        return ok("the events of a stream come at once")
                    if events >= _OPENING and opened == math.inf:
                        opened = now
                        limit.reschedule(loop.time() + LATER_EVENT_SECONDS)
        except TimeoutError:
            pass  # `opened` says which of the two waits was in vain
        if opened == math.inf:
            return _collected(_NOTHING)
        return _collected(
            f"after its first event, a stream is silent for {LATER_EVENT_SECONDS:g} s"
        )

    async def _send(self, url: str, headers: Mapping[str, str], *, method: str = "GET") -> Answer:
        timeout = self._settings.upstream_timeout
        return await self._client.ask(method, url, self._headers(headers), timeout=timeout)

    def _headers(self, headers: Mapping[str, str], **more: str) -> dict[str, str]:
        return {"user-agent": f"bff/{__version__}", **headers, **more}


def _code(answer: Answer) -> ErrorCode | None:
    """Return the error code of a gateway's refusal; None for another answer."""
    with suppress(ValueError, LookupError, TypeError):
        code: ErrorCode = json.loads(answer.body)["code"]
        if code in REFUSALS:
            return code
    return None


def _refused(text: str, answer: Answer, expected: int) -> Finding:
    """Make the problem of an answer with another status than *expected*."""
    code = _code(answer)
    if code is None:
        return problem(f"{text}, not {expected}: read the gateway's log")
    page = _PAGES.get(code, Page.CODES)
    return problem(f"{text} {code}, not {expected}: read the gateway's log", page)


def _head_problem(answer: Answer) -> Finding | None:
    if answer.status != HTTPStatus.OK:
        text = f"a request for an event stream gets {answer.status}"
        return _refused(text, answer, HTTPStatus.OK)
    if not answer.headers.get("content-type", "").startswith(_EVENTS):
        return problem(
            "a request for an event stream gets no stream: a proxy in front changes Accept, or the "
            "gateway runs with BFF_LIVE=false",
        )
    if answer.headers.get("content-encoding", "identity") != "identity":
        return problem(
            "a proxy in front compresses event streams, and may collect them: turn its compression "
            "off for text/event-stream",
            Page.BUFFERING,
        )
    return None


def _collected(observed: str) -> Finding:
    remedy = "a proxy in front collects answers; turn its buffering off for streams"
    return problem(f"{observed}: {remedy}", Page.BUFFERING)


def _isolation_finding(refused: list[Answer], anonymous: Answer, session: str | None) -> Finding:
    statuses = {answer.status for answer in refused}
    text = (
        f"isolation: a token for another session gets {' '.join(str(a.status) for a in refused)}, "
        f"a request without a token gets {anonymous.status}"
    )
    if statuses != {HTTPStatus.FORBIDDEN} or anonymous.status != HTTPStatus.UNAUTHORIZED:
        return problem(f"{text}: a proxy in front caches answers; turn its cache off")
    if session is None:
        return unsure(f"{text} (on a missing session: pass --session ID)")
    return ok(text)


def _cache_finding(answers: list[Answer]) -> Finding:
    request_ids = {answer.headers.get("x-request-id") for answer in answers}
    directives = {answer.headers.get("cache-control", "") for answer in answers}
    varies = [answer.headers.get("vary", "").lower() for answer in answers]
    if len(request_ids) < len(answers):  # the gateway gives each answer another id
        return problem(
            "two requests got the same answer: a proxy in front caches answers; turn its cache off",
        )
    if not directives <= {"no-store", "private, no-cache"}:
        return problem("a proxy in front changes Cache-Control: pass it on unchanged")
    return expect(
        all("authorization" in vary and "origin" in vary for vary in varies),
        "no proxy in front caches answers or changes Cache-Control and Vary",
        "a proxy in front removes Vary: pass it on unchanged",
    )

"""Makes every answer to a browser. Only an authorized caller gets a session."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

from bff import metrics
from bff.digests import fingerprint
from bff.errors import Refusal
from bff.gateway.admission import Admission
from bff.gateway.context import RequestContext
from bff.gateway.routes import SESSION
from bff.limits.headers import rate_lines
from bff.live.events import with_answering
from bff.request import RequestHead
from bff.response import (
    CHAT_STREAM,
    IDLE,
    NO_RETRY,
    EventStream,
    Representation,
    Response,
    ResponseBuilder,
    server_timing,
)
from bff.sessions.copy import Copy
from bff.sessions.list_answer import Page
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller

_INTERNAL_SERVER_ERROR: Final = HTTPStatus.INTERNAL_SERVER_ERROR
_NO_CONTENT: Final = HTTPStatus.NO_CONTENT
_OK: Final = HTTPStatus.OK
"""Statuses by plain names: to look one up in the enumeration costs half a microsecond."""

SLOW_SECONDS: Final = 1.0
"""Seconds; an answer that waited for loads at least this long is logged."""
SAMPLE: Final = 1000
"""One of this many answers with a session is logged, so that the log shows usual answers too."""
MAX_EXPLAINED: Final = 10
"""Bad tokens that are examined in a second, so that the log says why they are refused."""
MAX_EXPLAINED_BYTES: Final = 4096
"""Bytes of a token that is examined; usual ones have a few hundred."""
_MAX_TAGS: Final = 32
"""Entity tags of one If-None-Match that are compared. Without the bound one request could cost as
much as 500 hits."""


@dataclass(frozen=True, slots=True)
class CacheOutcome:
    """Where the copy of an answer comes from.

    Attributes:
        cache_status: the text for the header Cache-Status (RFC 9211).
        label: the text for metrics and the log.
    """

    cache_status: bytes
    label: str


HIT: Final = CacheOutcome(b"hit", "hit")
STALE: Final = CacheOutcome(b"hit; detail=stale", "stale")
STALE_IF_ERROR: Final = CacheOutcome(b"hit; detail=stale-if-error", "last_resort")
LOADED: Final = {
    (False, False): CacheOutcome(b"fwd=miss; stored", "miss"),
    (False, True): CacheOutcome(b"fwd=miss; collapsed", "joined"),
    (True, False): CacheOutcome(b"fwd=stale; stored", "miss"),
    (True, True): CacheOutcome(b"fwd=stale; collapsed", "joined"),
}
"""The outcome of a load, by whether it replaces an older copy, and whether another request started
it."""


class Answers:
    """Makes the answers of one configuration."""

    def __init__(
        self, responses: ResponseBuilder, *, admission: Admission, telemetry: Telemetry
    ) -> None:
        self._responses = responses
        self._admission = admission
        self._telemetry = telemetry
        self._counts = telemetry.counts
        self._served = 0
        self._explained = (0, 0)
        """The current second, and the bad tokens that were examined in it."""

    def preflight(self, head: RequestHead, request_id: bytes) -> Response:
        """Answer OPTIONS."""
        status = _NO_CONTENT
        self._telemetry.count(metrics.REQUESTS, "preflight", status, "", head.served_by, "")
        return self._responses.preflight(head.fields.origin, request_id)

    def public_page(self, request: RequestContext, page: bytes) -> Response:
        """Answer with public JSON."""
        origin = request.head.fields.origin
        response = self._responses.json(_OK, page, origin=origin, request_id=request.request_id)
        return self._finish(request, response, "")

    def session(
        self, request: RequestContext, caller: Caller, copy: Copy, outcome: CacheOutcome
    ) -> Response:
        """Answer with a session, if the caller may read it.

        Raises:
            Refused: ``unauthorized``.
        """
        self._admission.authorize(request, caller, copy)
        self._counts[metrics.CACHE, caller.environment, outcome.label] += 1
        age = request.now - copy.loaded
        self._telemetry.observe(metrics.AGE_SERVED_SECONDS, age if age > 0 else 0.0)
        self._served += 1
        if self._served % SAMPLE == 0 or (request.waited or 0.0) >= SLOW_SECONDS:
            self._log_answer(request, outcome.label)
        return self._representation(request, copy, outcome.cache_status)

    def list_page(
        self, request: RequestContext, caller: Caller, page: Page, cache_status: bytes
    ) -> Response:
        """Answer with a page of a list, if the caller may read every session on it.

        Raises:
            Refused: ``unauthorized``.
        """
        for copy in page.copies:
            self._admission.authorize(request, caller, copy)
        if page.refusal is not None:
            return self.refusal(request, page.refusal)
        for copy in page.copies:
            self._telemetry.observe(metrics.AGE_SERVED_SECONDS, max(0.0, request.now - copy.loaded))
        if (request.waited or 0.0) >= SLOW_SECONDS:
            self._log_answer(request, "list")
        unavailable = len(page.unavailable)
        lines = b"x-unavailable-sessions: %d\r\n" % unavailable if unavailable else b""
        return self._representation(request, page, cache_status, lines)

    def event(
        self,
        request: RequestContext,
        caller: Caller,
        copy: Copy,
        answering: bool | None,  # noqa: FBT001
    ) -> bytes:
        """Return a session for an event, if the caller may read it: the bytes that a poll gets.

        *answering* is added to them if it is known.

        Raises:
            Refused: ``unauthorized``.
        """
        self._admission.authorize(request, caller, copy)
        return with_answering(copy.body, answering)

    def events(self, request: RequestContext, stream: EventStream, lines: bytes = b"") -> Response:
        """Answer with the events of a listener, each of which `event` has authorized."""
        lines += rate_lines(request.window, request.now, request.wall)
        response = self._responses.events(
            stream, lines, origin=request.head.fields.origin, request_id=request.request_id
        )
        return self._finish(request, response, "")

    def stream(self, request: RequestContext, stream: EventStream, *, idle: bool) -> Response:
        """Answer with the stream of a chat, whose caller was admitted just now."""
        return self.events(request, stream, CHAT_STREAM + (IDLE if idle else b""))

    def message(
        self, request: RequestContext, status: int, body: Mapping[str, Any], code: str
    ) -> Response:
        """Answer a message with what upstream made of it."""
        lines = rate_lines(request.window, request.now, request.wall)
        response = self._responses.json(
            status,
            json.dumps(body).encode(),
            lines + NO_RETRY if code else lines,
            origin=request.head.fields.origin,
            request_id=request.request_id,
        )
        return self._finish(request, response, code)

    def log_message(
        self,
        request: RequestContext,
        caller: Caller,
        session_id: str,
        kind: str,
        seq: int | None,
    ) -> None:
        """Log that a message was accepted, for an audit; the limits of messages bound the lines."""
        self._telemetry.log.info(
            "message_accepted",
            request_id=request.request_id.decode(),
            environment=caller.environment,
            subject=caller.subjects[0],
            session=fingerprint(caller.environment, session_id),
            kind=kind,
            seq=seq,
        )

    def refusal(self, request: RequestContext, refusal: Refusal) -> Response:
        """Answer with a refusal."""
        limited = refusal.code == "rate_limited"
        if limited:
            self._telemetry.count(metrics.LIMITED, request.window.limiter.name)
        if refusal.code == "over_budget" and request.route is SESSION:
            self._telemetry.count(metrics.CACHE, request.environment, "late")
        response = self._responses.refusal(
            refusal,
            window=request.window,
            now=request.now,
            wall=request.wall,
            origin=request.head.fields.origin,
            request_id=request.request_id,
            methods=request.route.methods,
        )
        # Over a limit only the first request of a window is logged: a flood must not fill the log.
        if (not limited or request.window.first) and self._telemetry.may_log(
            "request_refused", request.now
        ):
            trouble = response.status >= _INTERNAL_SERVER_ERROR
            level = logging.WARNING if trouble else logging.INFO
            self._telemetry.log.log(
                level,
                "request_refused",
                request_id=request.request_id.decode(),
                route=request.route.label,
                status=response.status,
                code=refusal.code,
                **self._reason(request, refusal),
            )
        return self._finish(request, response, refusal.code)

    def _reason(self, request: RequestContext, refusal: Refusal) -> dict[str, str]:
        """Say for the log why a token is invalid; bounded, because a flood must not cost more."""
        if refusal.code != "token_invalid":
            return {}
        second = int(request.now)
        self._explained = (second, self._explained[1] + 1 if self._explained[0] == second else 1)
        if self._explained[1] > MAX_EXPLAINED or len(request.token) > MAX_EXPLAINED_BYTES:
            return {"reason": "not examined"}
        return {"reason": self._admission.why_invalid(request)}

    def _representation(
        self,
        request: RequestContext,
        representation: Representation,
        cache_status: bytes,
        lines: bytes = b"",
    ) -> Response:
        fields = request.head.fields
        response = self._responses.session(
            representation,
            not_modified=fields.if_none_match is not None
            and matches(fields.if_none_match, representation.etag),
            cache_status=cache_status,
            window=request.window,
            now=request.now,
            wall=request.wall,
            origin=fields.origin,
            request_id=request.request_id,
            lines=lines,
        )
        if request.waited is not None:  # a refusal's wait would tell whether the session exists
            response.head += server_timing(request.waited)
        return self._finish(request, response, "")

    def _log_answer(self, request: RequestContext, result: str) -> None:
        waited = request.waited or 0.0
        self._telemetry.often(  # thousands of answers may have waited for one load
            "slow_answer" if waited >= SLOW_SECONDS else "answer_sampled",
            request.now,
            request_id=request.request_id.decode(),
            result=result,
            waited=round(waited, 4),
            answers=self._served,
        )

    def _finish(self, request: RequestContext, response: Response, code: str) -> Response:
        head = request.head
        route, environment = request.route.label, request.environment
        key = (metrics.REQUESTS, route, response.status, code, head.served_by, environment)
        self._counts[key] += 1
        return replace(response, body=b"") if head.method == "HEAD" else response


def matches(if_none_match: bytes, etag: bytes) -> bool:
    """Whether an If-None-Match names *etag*: weak, in a list, or by ``*`` (RFC 9110 §13.1.2)."""
    if if_none_match == etag:
        return True
    parts = if_none_match.split(b",", _MAX_TAGS)
    candidates = (part.strip().removeprefix(b"W/") for part in parts)
    return any(candidate in (etag, b"*") for candidate in candidates)

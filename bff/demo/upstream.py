"""A pretend upstream: an ASGI application that imitates Trigger.dev's API as it was measured.

It serves the demo and the tests. It imitates credentials, scopes, limits, error bodies, the order
of checks (credential, look-up, scope) and the `triggerConfig` that leaks. It shares no code with
the gateway, so it cannot repeat a mistake of the gateway.
"""

import copy
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import floor, inf
from typing import Any
from urllib.parse import parse_qsl, unquote

import jwt

from bff.demo.chat_upstream import ROUTE as CHAT_ROUTE
from bff.demo.chat_upstream import UNAUTHORIZED, PretendChats, Receive, Send, allows, read_body

Document = dict[str, Any]

_CORS_METHODS = "GET,HEAD,PUT,PATCH,POST,DELETE"
_ISSUER, _AUDIENCE = "https://id.trigger.dev", "https://api.trigger.dev"
_CLAIMS, _PUBLIC_TOKENS = "/api/v1/auth/jwt/claims", "/api/v1/auth/public-tokens"
_MDN = "https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived. Tests inspect it."""

    method: str
    raw_path: str
    query: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """Value of the header *name* (lower case), if the request has exactly one."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True)
class Answer:
    """One answer. A body that is not bytes is sent as JSON."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """Return the body's bytes."""
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode()


class _Refused(Exception):
    """The answer to a request without a valid credential; takes what `Answer` takes."""

    def __init__(self, *answer: Any) -> None:
        super().__init__()
        self.answer = Answer(*answer)


@dataclass
class Bucket:
    """The token bucket of a secret key: at most *limit*, and *refill* each *interval* seconds."""

    limit: int = 750
    refill: int = 250
    interval: float = 10.0
    remaining: int = 750
    since: float = 0.0

    def take(self, now: float) -> int:
        """Take one; return the rest, or a negative number if the bucket was empty."""
        intervals = floor((now - self.since) / self.interval)
        if intervals > 0:
            self.remaining = min(self.limit, max(0, self.remaining) + intervals * self.refill)
            self.since = now if self.since == 0 else self.since + intervals * self.interval
        self.remaining = max(-1, self.remaining - 1)
        return self.remaining

    def headers(self) -> dict[str, str]:
        """The headers in which upstream reports the limit."""
        return _limit_headers(self.limit, self.remaining, self.since + self.interval)


def _limit_headers(limit: int, remaining: int, reset: float) -> dict[str, str]:
    return {
        "x-ratelimit-limit": str(limit),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(round(reset * 1000)),
    }


@dataclass
class Environment:
    """One environment: its keys, and its sessions by friendly id."""

    id: str
    root_key: str
    additional_keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Key → scopes; an unrestricted key has none."""
    branch: str | None = None
    sessions: dict[str, Document] = field(default_factory=dict)
    bucket: Bucket = field(default_factory=Bucket)

    def add(self, document: Document) -> Document:
        """Add a session."""
        self.sessions[document["id"]] = document
        return document

    def find(self, id_: str) -> Document | None:
        """Find a session by friendly id or externalId; the prefix decides which of them it is."""
        if id_.startswith("session_"):
            return self.sessions.get(id_)
        return next((d for d in self.sessions.values() if d["externalId"] == id_), None)


def session(number: int, external_id: str | None = None, **fields: Any) -> Document:
    """Make a document as upstream sends it, with values that a browser must not see."""
    document = {
        "id": f"session_demo{number:022d}",
        "externalId": external_id,
        "type": "chat.agent",
        "taskIdentifier": "my-chat",
        "triggerConfig": {
            "basePayload": {
                "messages": [{"role": "user", "content": "the first message, word for word"}],
                "metadata": {"authToken": "a token of the app's own backend", "plan": "enterprise"},
                "clientData": {"userId": "user_123", "botScore": 0.03},
            },
            "machine": "small-1x",
            "queue": "chats",
            "concurrencyKey": "tenant_acme",
        },
        "currentRunId": f"run_demo{number:022d}",
        "tags": ["user:123", "org:acme", "public:beta"],
        "metadata": {"plan": "enterprise", "progress": 0, "internal": {"costCents": 17}},
        "closedAt": None,
        "closedReason": None,
        "expiresAt": None,
        "createdAt": "2026-01-02T03:04:05.678Z",
        "updatedAt": "2026-01-02T03:04:06.789Z",
    }
    return document | fields


_Credential = tuple[Environment, tuple[str, ...] | None, dict[str, str]]
"""An environment, its scopes (None for all), and the headers of its rate limit."""


class PretendUpstream:
    """The application.

    Args:
        environments: their keys and sessions.
        clock: Unix seconds.
        live: changes a copy of a document as time passes. The demo uses it.
    """

    PUBLIC_LIMIT = 60

    def __init__(
        self,
        *environments: Environment,
        clock: Callable[[], float],
        live: Callable[[Document, float], None] = lambda _document, _now: None,
    ) -> None:
        self.environments = environments
        self.seen: list[Seen] = []
        self.override: Callable[[Seen], Awaitable[Answer | None]] | None = None
        """Answers a request first; if it returns None, the usual answer follows. Tests set it."""
        self._clock = clock
        self._live = live
        self._public: dict[str, tuple[float, int]] = {}
        self.chats = PretendChats(clock)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        seen = Seen(
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]),
        )
        self.seen.append(seen)
        answer = await self.override(seen) if self.override else None
        try:
            if answer is None and seen.method != "OPTIONS" and CHAT_ROUTE.fullmatch(seen.raw_path):
                credential = self._authenticate(seen, charged=False)
                answered = await self.chats.serve(seen, receive, send, credential=credential[:2])
                if answered is None:
                    return
                status, body, lines = answered
                answer = Answer(status, body, {"access-control-allow-origin": "*", **lines})
            if answer is None and seen.raw_path in (_CLAIMS, _PUBLIC_TOKENS):
                answer = self._describe_environment(seen, await read_body(receive))
            answer = answer or self._answer(seen)
        except _Refused as refused:
            answer = refused.answer
        encoded = answer.encoded()
        headers = {"content-type": "application/json; charset=utf-8", **answer.headers}
        if origin := seen.header("origin"):
            headers.setdefault("access-control-allow-origin", origin)
        headers.setdefault("content-length", str(len(encoded)))
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": encoded})

    def document(self, stored: Document) -> Document:
        """Return a document as it is at this moment."""
        current = copy.deepcopy(stored)
        self._live(current, self._clock())
        return current

    def _answer(self, seen: Seen) -> Answer:  # noqa: PLR0911  a list of cases, in upstream's order
        if seen.method == "OPTIONS":
            return Answer(
                200,
                {},
                {
                    "access-control-allow-methods": _CORS_METHODS,
                    "access-control-allow-headers": seen.header("access-control-request-headers")
                    or "",
                    "access-control-max-age": "300",
                },
            )
        if seen.raw_path == "/api/v1/sessions" and seen.method == "GET":
            return self._list(seen)
        match = re.fullmatch(r"/api/v1/sessions/([^/]+)(/?)", seen.raw_path, re.IGNORECASE)
        if not match:
            return Answer(404, {"error": "Not found"})
        if match[2]:
            return Answer(301, b"Moved Permanently", {"location": seen.raw_path.rstrip("/")})
        environment, scopes, headers = self._authenticate(seen)
        if seen.method not in ("GET", "HEAD"):
            return Answer(405, {"error": "Method not allowed"}, headers | {"allow": "PATCH"})
        # As measured, upstream decodes an encoded slash twice.
        id_ = re.sub("%2F", "/", unquote(match[1], errors="strict"), flags=re.IGNORECASE)
        document = environment.find(id_)
        if document is None:
            return Answer(404, {"error": "Not found"}, headers | {"x-should-retry": "false"})
        if scopes is not None and not can_read(scopes, document):
            return Answer(403, UNAUTHORIZED, headers)
        return Answer(200, self.document(document), headers)

    def _describe_environment(self, seen: Seen, body: bytes) -> Answer:
        """Answer with the environment of a key: as claims, or in a token for scopes that it has."""
        environment, held, headers = self._authenticate(seen)
        if seen.method != "POST":
            return Answer(405, {"error": "Method not allowed"}, headers)
        claims = {"sub": environment.id, "pub": True}
        if seen.raw_path == _CLAIMS:
            if held is not None:
                return Answer(401, {"error": "Invalid API key"}, headers)
            return Answer(200, claims, headers)
        try:
            scopes = json.loads(body)["scopes"]
        except (ValueError, LookupError, TypeError):
            return Answer(400, {"error": "Invalid request body"}, headers)
        if held is not None and not all(scope.startswith(held) for scope in scopes):
            refused = {
                "error": "Requested scopes exceed the key's access",
                "code": "scopes_exceed_key_access",
                "deniedScopes": [scope for scope in scopes if not scope.startswith(held)],
            }
            return Answer(403, refused, headers)
        claims |= {"iss": _ISSUER, "aud": _AUDIENCE, "scopes": scopes, "exp": self._clock() + 60}
        token = jwt.encode(claims, environment.root_key, algorithm="HS256")
        return Answer(200, {"token": token}, headers)

    def _list(self, seen: Seen) -> Answer:
        """List all sessions, newest first, if the credential may read all of them."""
        environment, scopes, headers = self._authenticate(seen)
        if scopes is not None and not can_read(scopes, {"id": None, "externalId": None}):
            return Answer(403, UNAUTHORIZED, headers)
        size = int(dict(parse_qsl(seen.query)).get("page[size]", "20"))
        newest = sorted(environment.sessions.values(), key=lambda d: d["createdAt"], reverse=True)
        page = [self.document(document) for document in newest[:size]]
        return Answer(200, {"data": page, "pagination": {}}, headers)

    def _authenticate(self, seen: Seen, *, charged: bool = True) -> _Credential:
        authorization = seen.header("authorization")
        if not authorization:
            text = "No authorization header provided"
            body = {"title": "Unauthorized", "status": 401, "type": _MDN + "401"}
            raise _Refused(401, body | {"detail": text, "error": text}, _PROBLEM)
        token = authorization.removeprefix("Bearer ")
        if token.startswith("tr_"):
            return self._by_key(token, seen.header("x-trigger-branch"), charged=charged)
        return self._by_token(token, charged=charged)

    def _by_key(self, key: str, branch: str | None, *, charged: bool) -> _Credential:
        text = "Invalid API key"
        for environment in self.environments:
            if key != environment.root_key and key not in environment.additional_keys:
                continue
            if environment.branch is not None and branch is None:
                raise _Refused(401, {"error": "x-trigger-branch header required for preview env"})
            if branch != environment.branch:
                text = "No matching branch env"
                continue
            scopes = environment.additional_keys.get(key) or None
            if not charged:  # the chat routes have no limit, and so no headers
                return environment, scopes, {}
            remaining = environment.bucket.take(self._clock())
            headers = environment.bucket.headers()
            if remaining < 0:
                raise self._limited(headers)
            return environment, scopes, headers
        raise _Refused(401, {"error": text})

    def _by_token(self, token: str, *, charged: bool) -> _Credential:
        for environment in self.environments:
            try:
                claims = jwt.decode(
                    token,
                    environment.root_key,
                    algorithms=["HS256"],
                    issuer=_ISSUER,
                    audience=_AUDIENCE,
                    options={"verify_exp": False, "verify_iat": False},  # `exp` is checked below
                )
            except jwt.PyJWTError:
                continue
            if claims.get("exp", inf) <= self._clock():
                raise _Refused(401, {"error": "Public Access Token has expired"})
            if claims.get("sub") != environment.id or claims.get("pub") is not True:
                continue
            headers = self._public_limit(token) if charged else {}
            scopes = claims.get("scopes")
            return environment, tuple(scopes) if isinstance(scopes, list) else (), headers
        raise _Refused(401, {"error": "Public Access Token is invalid"})

    def _public_limit(self, token: str) -> dict[str, str]:
        minute = self._clock() // 60
        window, used = self._public.get(token, (minute, 0))
        used = used + 1 if window == minute else 1
        self._public[token] = (minute, used)
        remaining = max(0, self.PUBLIC_LIMIT - used)
        headers = _limit_headers(self.PUBLIC_LIMIT, remaining, (minute + 1) * 60)
        if used > self.PUBLIC_LIMIT:
            raise self._limited(headers)
        return headers

    def _limited(self, headers: Mapping[str, str]) -> _Refused:
        reset = int(headers["x-ratelimit-reset"])
        limit, remaining = headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]
        seconds = round(reset / 1000 - self._clock(), 3)
        text = f"Rate limit exceeded 0/{limit} requests remaining. Retry in {seconds} seconds."
        body = {
            "title": "Rate Limit Exceeded",
            "status": 429,
            "type": _MDN + "429",
            "detail": text,
            "reset": reset,
            "limit": int(limit),
            "remaining": int(remaining),
            "secondsUntilReset": seconds,
            "error": text,
        }
        return _Refused(429, body, {**headers, **_PROBLEM})


_PROBLEM = {"content-type": "application/problem+json; charset=utf-8"}


def can_read(scopes: tuple[str, ...], document: Document) -> bool:
    """Whether upstream lets *scopes* read *document*."""
    return allows(scopes, "read", document)


def iso(unix: float) -> str:
    """Format a time as upstream does."""
    text = datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")

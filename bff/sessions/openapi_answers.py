"""The answers of the OpenAPI document: headers, refusals, and a schema for each status. Pure."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final

from bff.errors import REFUSALS, ErrorCode
from bff.sessions.fields import Schema

TEXT: Final[Schema] = {"type": "string"}
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
COMMON: Final = ("X-Request-Id", "Vary", "Cache-Control", "X-Content-Type-Options")
"""Headers of every answer."""
LIMITED: Final = (
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "RateLimit",
    "RateLimit-Policy",
)
"""Headers of an answer to a request that a rate limit counted."""
REPRESENTATION: Final = ("ETag", "Age", "Cache-Status", "Server-Timing")
"""Headers of an answer with a session or a list."""
STREAMED: Final = ("X-Accel-Buffering",)
"""Headers of every event stream."""
OF_STREAMS: Final = ("X-Stream-Version", "X-Session-Settled")
"""Headers of the stream of a chat."""
HEADERS: Final[dict[str, tuple[Schema, str]]] = {
    "X-Request-Id": (TEXT, "Identifies this answer in the gateway's log"),
    "Vary": (TEXT, "The request headers on which the answer depends"),
    "Cache-Control": (
        {"enum": ["private, no-cache", "no-store", "no-store, no-transform"]},
        "The first on 200 and 304, the last on streams",
    ),
    "X-Content-Type-Options": (
        {"const": "nosniff"},
        "Browsers must not guess the content type",
    ),
    "ETag": (TEXT, "Entity tag of the body: send it as If-None-Match"),
    "Age": ({"type": "integer", "minimum": 0}, "Seconds since the oldest copy was loaded"),
    "Cache-Status": (TEXT, "How the gateway used its shared copy (RFC 9211)"),
    "Server-Timing": (TEXT, "Milliseconds that the answer waited for a load, if it did"),
    "x-ratelimit-limit": ({"type": "integer"}, "Requests in a window"),
    "x-ratelimit-remaining": ({"type": "integer"}, "Requests left in the window"),
    "x-ratelimit-reset": ({"type": "integer"}, "End of the window in Unix milliseconds"),
    "RateLimit": (TEXT, "Requests left, as an IETF header"),
    "RateLimit-Policy": (TEXT, "The limit, as an IETF header"),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds until a retry may succeed"),
    "x-should-retry": (
        {"const": "false"},
        "Keeps the SDK from a retry; not on `rate_limited`",
    ),
    "WWW-Authenticate": (TEXT, "RFC 6750"),
    "X-Accel-Buffering": ({"const": "no"}, "On streams: a proxy must pass each event on at once"),
    "X-Stream-Version": ({"const": "v2"}, "The version of the stream of a chat"),
    "X-Session-Settled": ({"const": "true"}, "No turn is under way"),
    "X-Unavailable-Sessions": ({"type": "integer", "minimum": 1}, "Sessions that the page lacks"),
}
_ERRORS: Final = {
    400: ("BadRequest", "The request is malformed"),
    401: ("TokenError", "The token is missing, invalid or expired: mint another one"),
    403: ("ScopeError", "The token does not name this session; the session may or may not exist"),
    404: ("NotFound", "The session does not exist"),
    409: ("SessionClosed", "The session is closed"),
    410: ("StreamUnreadable", "The rest of the stream cannot be read"),
    413: ("MessageTooLarge", "The message is too large"),
    429: ("RateLimited", "The request exceeds a limit: retry after the reset"),
    431: ("HeadTooLarge", "The request's head is too large; the connection ends"),
    500: ("InternalError", "The gateway has a bug"),
    502: ("UpstreamError", "Upstream fails"),
    503: (
        "Unavailable",
        "The upstream budget is spent, or the gateway cannot verify tokens yet: retry shortly",
    ),
    504: ("UpstreamTimeout", "Upstream did not answer in time"),
}
"""Name of the schema and meaning of each status of an error."""
_TOO_MANY: Final = "TooMany"
"""Name of the schema of a 429 that no window decides, so it tells of none."""
_MESSAGE: Final = "MessageRefused"
"""Name of the schema of a 400 for a message, which upstream may also have refused."""
_OF_CHATS: Final = (409, 410, 413)
"""Statuses that only the routes of chats have."""
OF_CHATS: Final[tuple[ErrorCode, ...]] = (
    *("invalid_message", "foreign_chat", "message_too_large", "session_closed"),
    *("message_unconfirmed", "stream_unreadable", "stream_version", "too_many_messages"),
)
"""Codes that only the routes of chats have."""


def codes_of(*statuses: int) -> list[ErrorCode]:
    """List the error codes of *statuses*."""
    return [code for code, row in REFUSALS.items() if row.status in statuses]


def response(text: str, headers: Iterable[str], content: Schema | None = None) -> Schema:
    """Describe an answer with *headers* and, if it has a body, its *content*."""
    described: Schema = {
        "description": text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    return described if content is None else {**described, "content": content}


def refusals(codes: list[ErrorCode], *, message: bool = False) -> Schema:
    """Describe the answers with *codes*, by status; *message* says that they refuse a message."""
    by_status: dict[int, list[ErrorCode]] = {}
    for code in codes:
        by_status.setdefault(REFUSALS[code].status.value, []).append(code)
    if message:  # servers before 4.8 say that a session is closed with a 400
        by_status[400].append("session_closed")
    return {
        str(status): _refusal(status, codes, message=message)
        for status, codes in sorted(by_status.items())
    }


def _refusal(status: int, codes: list[ErrorCode], *, message: bool) -> Schema:
    headers = [*COMMON, *LIMITED, "Retry-After", "x-should-retry"]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append("WWW-Authenticate")
    name, meaning = _ERRORS[status]
    if message and status == HTTPStatus.BAD_REQUEST:
        name = _MESSAGE
    named = {code: (PROBLEM, name) if code == "rate_limited" else (JSON, name) for code in codes}
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        named |= {code: (JSON, _TOO_MANY) for code in codes if code != "rate_limited"}
    content = {
        media: {
            "schema": reference(name),
            "examples": {c: {"value": _example(c)} for c in codes if named[c] == (media, name)},
        }
        for media, name in named.values()
    }
    text = f"{meaning} ({', '.join(f'`{code}`' for code in codes)})"
    return response(text, headers, content)


_PROBLEM: Final[Schema] = {
    "title": "Rate Limit Exceeded",
    "status": 429,
    "type": "https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/429",
    "detail": "Rate limit exceeded: 0/60 requests remaining. Retry in 12.500 seconds.",
    "reset": 1767323057000,
    "limit": 60,
    "remaining": 0,
    "secondsUntilReset": 12.5,
}
"""The members of a 429 beside those of every error."""


def _example(code: ErrorCode) -> Schema:
    row = REFUSALS[code]
    error: Schema = {"error": row.text, "code": code}
    if code == "rate_limited":
        return error | _PROBLEM
    if row.status == HTTPStatus.FORBIDDEN:
        return error | {"param": "access_token", "type": "authorization"}
    return error


def error_schemas(*, chat: bool, live: bool) -> Schema:
    """Name a schema for each status, with the codes that a browser may get."""

    def listed(status: int) -> list[ErrorCode]:
        return [code for code in codes_of(status) if chat or code not in OF_CHATS]

    schemas = {
        name: _error(status, text, listed(status))
        for status, (name, text) in _ERRORS.items()
        if chat or status not in _OF_CHATS
    }
    if chat or live:
        many = [code for code in listed(HTTPStatus.TOO_MANY_REQUESTS) if code != "rate_limited"]
        schemas[_TOO_MANY] = _error(0, "Too much is under way: retry when some of it ends", many)
    if chat:
        codes = [*listed(HTTPStatus.BAD_REQUEST), *codes_of(HTTPStatus.CONFLICT)]
        schemas[_MESSAGE] = _error(HTTPStatus.CONFLICT, "The message is not sent", codes)
    return schemas


def _error(status: int, text: str, codes: Sequence[ErrorCode]) -> Schema:
    properties: Schema = {"error": TEXT, "code": {"type": "string", "enum": [*codes]}}
    optional: Schema = {}
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        properties["code"] = {"const": "rate_limited"}
        number = {int: {"type": "integer"}, float: {"type": "number"}, str: TEXT}
        properties |= {name: number[type(value)] for name, value in _PROBLEM.items()}
    elif status == HTTPStatus.FORBIDDEN:
        properties |= {"param": {"const": "access_token"}, "type": {"const": "authorization"}}
    elif status in (HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        optional = {"ok": {"const": False}}  # if upstream has refused
        if status == HTTPStatus.CONFLICT:
            optional |= {"closedReason": TEXT}
    return object_of(properties | optional, optional=optional) | {"description": text}


def object_of(properties: Schema, *, optional: Iterable[str] = (), closed: bool = True) -> Schema:
    """Describe an object with these members and, if it is *closed*, no other."""
    required = [name for name in properties if name not in set(optional)]
    described = {"type": "object", "properties": properties, "required": required}
    return described | ({"additionalProperties": False} if closed else {})


def list_of(items: Schema) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": items}


def reference(name: str) -> Schema:
    """Refer to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}

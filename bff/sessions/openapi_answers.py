"""The answers of the OpenAPI document: headers, refusals, and a schema for each status. Pure."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from bff.errors import REFUSALS, ErrorCode
from bff.sessions.fields import Schema

TEXT: Final[Schema] = {"type": "string"}
JSON: Final = "application/json"
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
HEADERS: Final[dict[str, tuple[Schema, str]]] = {
    "X-Request-Id": (TEXT, "Identifies this answer in the gateway's log"),
    "Vary": (TEXT, "The request headers on which the answer depends"),
    "Cache-Control": ({"enum": ["private, no-cache", "no-store"]}, "The first on 200 and 304"),
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
    "x-should-retry": ({"const": "false"}, "Keeps the official SDK from a retry"),
    "WWW-Authenticate": (TEXT, "RFC 6750"),
    "X-Unavailable-Sessions": ({"type": "integer", "minimum": 1}, "Sessions that the page lacks"),
}
_ERRORS: Final = {
    400: ("BadRequest", "The request is malformed"),
    401: ("TokenError", "The token is missing, invalid or expired: mint another one"),
    403: ("ScopeError", "The token does not name this session; the session may or may not exist"),
    404: ("NotFound", "The session does not exist"),
    409: ("SessionClosed", "The session is closed"),
    410: ("StreamUnreadable", "The rest of the stream cannot be read"),
    413: ("MessageTooLarge", "The message is too large; the connection ends"),
    429: ("RateLimited", "The request exceeds a limit: retry after the reset"),
    500: ("InternalError", "The gateway has a bug"),
    502: ("UpstreamError", "Upstream fails"),
    503: (
        "Unavailable",
        "The upstream budget is spent, or the gateway cannot verify tokens yet: retry shortly",
    ),
    504: ("UpstreamTimeout", "Upstream did not answer in time"),
}
"""Name of the schema and meaning of each status of an error."""
_OF_CHATS: Final = (409, 410, 413)
"""Statuses that only the routes of chats have."""


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


def refusals(codes: list[ErrorCode]) -> Schema:
    """Describe the answers with *codes*, by status."""
    by_status: dict[HTTPStatus, list[ErrorCode]] = {}
    for code in codes:
        by_status.setdefault(REFUSALS[code].status, []).append(code)
    return {
        str(status.value): _refusal(status, codes) for status, codes in sorted(by_status.items())
    }


def _refusal(status: HTTPStatus, codes: list[ErrorCode]) -> Schema:
    headers = [*COMMON, *LIMITED, "Retry-After"]
    media = JSON
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        media = "application/problem+json"
    else:
        headers.append("x-should-retry")
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append("WWW-Authenticate")
    name, meaning = _ERRORS[status]
    schema = {"$ref": f"#/components/schemas/{name}"}
    examples = {code: {"value": _example(code)} for code in codes}
    text = f"{meaning} ({', '.join(f'`{code}`' for code in codes)})"
    return response(text, headers, {media: {"schema": schema, "examples": examples}})


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
    if row.status == HTTPStatus.TOO_MANY_REQUESTS:
        return error | _PROBLEM
    if row.status == HTTPStatus.FORBIDDEN:
        return error | {"param": "access_token", "type": "authorization"}
    return error


def error_schemas(*, chat: bool) -> Schema:
    """Name a schema for each status, with the codes that a browser may get."""
    return {
        name: _error(status, text)
        for status, (name, text) in _ERRORS.items()
        if chat or status not in _OF_CHATS
    }


def _error(status: int, text: str) -> Schema:
    properties: Schema = {"error": TEXT, "code": {"type": "string", "enum": codes_of(status)}}
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        number = {int: {"type": "integer"}, float: {"type": "number"}, str: TEXT}
        properties |= {name: number[type(value)] for name, value in _PROBLEM.items()}
    elif status == HTTPStatus.FORBIDDEN:
        properties |= {"param": {"const": "access_token"}, "type": {"const": "authorization"}}
    return object_of(properties) | {"description": text}


def object_of(properties: Schema, *, optional: Iterable[str] = ()) -> Schema:
    """Describe an object with these members and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in set(optional)],
        "additionalProperties": False,
    }

"""The routes of the browser port as OpenAPI 3.1. It follows the policies in force. Pure."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from bff.errors import REFUSALS, ErrorCode
from bff.response import vary
from bff.sessions import ids, list_query
from bff.sessions.fields import FIELDS, Schema
from bff.sessions.policy import Policy

_TEXT: Final[Schema] = {"type": "string"}
_HIDDEN: Final[Schema] = {"type": "null", "description": "The policy hides this field"}
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_COMMON: Final = ("X-Request-Id", "Vary", "Cache-Control", "X-Content-Type-Options")
"""Headers of every answer."""
_LIMITED: Final = (
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "RateLimit",
    "RateLimit-Policy",
)
"""Headers of an answer to a request that a rate limit counted."""
_REPRESENTATION: Final = ("ETag", "Age", "Cache-Status", "Server-Timing")
"""Headers of an answer with a session or a list."""
_HEADERS: Final[dict[str, tuple[Schema, str]]] = {
    "X-Request-Id": (_TEXT, "Identifies this answer in the gateway's log"),
    "Vary": (_TEXT, "The request headers on which the answer depends"),
    "Cache-Control": ({"enum": ["private, no-cache", "no-store"]}, "The first on 200 and 304"),
    "X-Content-Type-Options": (
        {"const": "nosniff"},
        "Browsers must not guess the content type",
    ),
    "ETag": (_TEXT, "Entity tag of the body: send it as If-None-Match"),
    "Age": ({"type": "integer", "minimum": 0}, "Seconds since the oldest copy was loaded"),
    "Cache-Status": (_TEXT, "How the gateway used its shared copy (RFC 9211)"),
    "Server-Timing": (_TEXT, "Milliseconds that the answer waited for a load, if it did"),
    "x-ratelimit-limit": ({"type": "integer"}, "Requests in a window"),
    "x-ratelimit-remaining": ({"type": "integer"}, "Requests left in the window"),
    "x-ratelimit-reset": ({"type": "integer"}, "End of the window in Unix milliseconds"),
    "RateLimit": (_TEXT, "Requests left, as an IETF header"),
    "RateLimit-Policy": (_TEXT, "The limit, as an IETF header"),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds until a retry may succeed"),
    "x-should-retry": ({"const": "false"}, "Keeps the official SDK from a retry"),
    "WWW-Authenticate": (_TEXT, "RFC 6750"),
    "X-Unavailable-Sessions": ({"type": "integer", "minimum": 1}, "Sessions that the page lacks"),
}
_STATUSES: Final = {
    200: "The session",
    304: "The browser has the current copy (If-None-Match)",
    400: "The request is malformed",
    401: "The token is missing, invalid or expired: mint another one",
    403: "The token does not name this session; the session may or may not exist",
    404: "The session does not exist",
    409: "The session is closed",
    410: "The rest of the stream cannot be read",
    413: "The message is too large; the connection ends",
    429: "The request exceeds a limit: retry after the reset",
    500: "The gateway has a bug",
    502: "Upstream fails",
    503: "The upstream budget is spent, or the gateway cannot verify tokens yet: retry shortly",
    504: "Upstream did not answer in time",
}
_DESCRIPTION: Final = """\
The browser-facing gateway of Trigger.dev sessions. `OPTIONS` is 204 for any path, with CORS headers
for an allowed origin. Other methods on these paths are 405 `method_not_allowed`; other paths below
`/api/` and `/realtime/` are 410 `not_served`, all others 404 `not_found`. Every request, also one
for a list, counts once against the caller's rate limit. A request that prefers text/event-stream
gets the session, or the list, as it changes."""
_TOKEN: Final = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "A token whose scopes name sessions (read:sessions:<id>)",
}
_COOKIE: Final = {
    "type": "apiKey",
    "in": "cookie",
    "description": "The same token, for pages of this origin (Sec-Fetch-Site: same-origin)",
}
_PAGES: Final = {
    "/": "A short description of the gateway",
    "/healthz": "Whether the process answers",
    "/openapi.json": "This description",
}
_SESSION_PARAMETER: Final[Schema] = {
    "name": "session",
    "in": "path",
    "required": True,
    "description": "An id or an externalId, percent-encoded as one segment",
    # An id has no control characters, and a path segment cannot be `.` or `..`.
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": ids.MAX_ID_CHARACTERS,
        "pattern": r"^(?!\.{1,2}$)[^\u0000-\u001f\u007f-\u009f]+$",
    },
    "example": "chat-1",
}
CHAT_IN: Final = "/realtime/v1/sessions/{session}/in/append"
CHAT_OUT: Final = "/realtime/v1/sessions/{session}/out"
_IF_NONE_MATCH: Final[Schema] = {"name": "If-None-Match", "in": "header", "schema": _TEXT}


def document(
    policy: Policy,
    by_type: Mapping[str, Policy],
    version: str,
    *,
    cookie: str | None = None,
    chat: bool = False,
    live: bool = False,
) -> Schema:
    """Describe a gateway.

    Args:
        policy: the default one.
        by_type: the policies of certain session types.
        version: the gateway's.
        cookie: name of the cookie that may hold the token; None if the gateway reads no cookie.
        chat: whether the routes of chats are served.
        live: whether sessions and lists can be event streams.
    """
    visible = {name for p in (policy, *by_type.values()) for name in p.visible}
    headers: dict[str, Schema] = {
        name: {"description": text, "schema": schema} for name, (schema, text) in _HEADERS.items()
    }
    headers["Vary"]["schema"] = {"const": vary(cookie=cookie is not None, live=live)}
    schemes = {"token": _TOKEN} | ({"cookie": _COOKIE | {"name": cookie}} if cookie else {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "bff", "version": version, "description": _DESCRIPTION},
        "security": [{scheme: []} for scheme in schemes],
        "paths": {
            ids.ROUTE.decode() + "{session}": _path(
                "One session, as the policy lets browsers see it",
                [_SESSION_PARAMETER],
                "Session",
                ["bad_request", "invalid_session_id", "unauthorized", "not_found"],
                live=live,
            ),
            ids.LIST_ROUTE.decode(): _path(
                "The sessions that the token names, in its order",
                _list_parameters(visible),
                "Sessions",
                ["bad_request", "unauthorized"],
                "X-Unavailable-Sessions",
                live=live,
            ),
            **(_chat_paths() if chat else {}),
            **{path: _page(summary) for path, summary in _PAGES.items()},
        },
        "components": {
            "securitySchemes": schemes,
            "headers": headers,
            "schemas": _schemas(policy, by_type),
        },
    }


def _list_parameters(visible: Iterable[str]) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "query",
            "description": parameter.expected[:1].upper() + parameter.expected[1:],
            "schema": parameter.schema,
        }
        for name, parameter in list_query.PARAMETERS.items()
        if parameter.fields.issubset(visible)
    ]


def _codes(*statuses: int) -> list[ErrorCode]:
    return [code for code, row in REFUSALS.items() if row.status in statuses]


_UPSTREAM: Final = _codes(
    HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT
)


def _path(
    summary: str,
    parameters: list[Schema],
    schema: str,
    codes: list[ErrorCode],
    *more: str,
    live: bool,
) -> Schema:
    """Describe a path that answers with *schema*, or refuses with *codes* or a usual code.

    A 200 and a 304 may have *more* headers than the usual ones. With *live* it can be an event
    stream.
    """
    usual: list[ErrorCode] = [*_UPSTREAM, "rate_limited", "internal"]
    headers = (*_COMMON, *_REPRESENTATION, *_LIMITED, *more)
    content: Schema = {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    if live:
        content[_EVENTS] = {"schema": _TEXT}
        parameters = [*parameters, _header("Last-Event-ID", "The state that the browser has")]
        codes = [*codes, "too_many_streams"]
    operation = {
        "summary": summary,
        "parameters": [*parameters, _IF_NONE_MATCH],
        "responses": {
            "200": _response(_STATUSES[200], headers, content),
            "304": _response(_STATUSES[304], headers),
            **_refusals([*codes, *_codes(HTTPStatus.UNAUTHORIZED), *usual]),
        },
    }
    return _get_and_head(operation)


def _chat_paths() -> dict[str, Schema]:
    """Describe the routes of chats."""
    usual: list[ErrorCode] = [
        *("bad_request", "invalid_session_id", "unauthorized", "not_found", "rate_limited"),
        *_codes(HTTPStatus.UNAUTHORIZED),
        *_UPSTREAM,
        "internal",
    ]
    accepted = _object(
        {"ok": {"const": True}, "seq": {"type": "integer"}, "pendingVersion": {"type": "boolean"}},
        optional=("seq", "pendingVersion"),
    )
    refused: list[ErrorCode] = ["invalid_message", "foreign_chat", "message_too_large"]
    post = {
        "summary": "Sends one message of the official chat transport",
        "parameters": [_SESSION_PARAMETER, _header("X-Part-Id", "Stores the message once")],
        "requestBody": {"required": True, "content": {_JSON: {"schema": {"type": "object"}}}},
        "responses": {
            "200": _response("Upstream has the message", _COMMON, {_JSON: {"schema": accepted}}),
            **_refusals([*usual, *refused, "session_closed"]),
        },
    }
    events = {_EVENTS: {"schema": _TEXT}}
    names = {
        "Last-Event-ID": "The number of the last record that the browser has",
        "Timeout-Seconds": "Seconds after which the stream ends, 1 to 600",
        "X-Peek-Settled": "1 ends the stream if no turn is under way",
        "X-Trigger-Stream-Start": "latest begins with the next record",
    }
    get = {
        "summary": "The chat's stream, without what is not for browsers",
        "parameters": [_SESSION_PARAMETER, *(_header(*pair) for pair in names.items())],
        "responses": {
            "200": _response("The events as they come", _COMMON, events),
            **_refusals([*usual, "stream_unreadable", "too_many_streams"]),
        },
    }
    return {CHAT_IN: {"post": post}, CHAT_OUT: {"get": get}}


def _header(name: str, text: str) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": _TEXT}


def _page(summary: str) -> Schema:
    ok = _response(summary, _COMMON, {_JSON: {"schema": {"type": "object"}}})
    responses = {"200": ok, **_refusals(["rate_limited", "internal"])}
    return _get_and_head({"summary": summary, "security": [], "responses": responses})


def _get_and_head(operation: Schema) -> Schema:
    responses = {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in operation["responses"].items()
    }
    head = operation | {"summary": "The same without a body", "responses": responses}
    return {"get": operation, "head": head}


def _response(text: str, headers: Iterable[str], content: Schema | None = None) -> Schema:
    response: Schema = {
        "description": text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    return response if content is None else {**response, "content": content}


def _refusals(codes: list[ErrorCode]) -> Schema:
    by_status: dict[HTTPStatus, list[ErrorCode]] = {}
    for code in codes:
        by_status.setdefault(REFUSALS[code].status, []).append(code)
    return {
        str(status.value): _refusal(status, codes) for status, codes in sorted(by_status.items())
    }


def _refusal(status: HTTPStatus, codes: list[ErrorCode]) -> Schema:
    headers = [*_COMMON, *_LIMITED, "Retry-After"]
    properties: Schema = {"error": _TEXT, "code": {"enum": codes}}
    media = _JSON
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        media = "application/problem+json"
        properties |= dict.fromkeys(("title", "type", "detail"), _TEXT)
        properties |= {name: {"type": "integer"} for name in ("status", "limit", "remaining")}
        properties |= {"reset": {"type": "integer"}, "secondsUntilReset": {"type": "number"}}
    else:
        headers.append("x-should-retry")
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append("WWW-Authenticate")
    if status == HTTPStatus.FORBIDDEN:
        properties |= {"param": {"const": "access_token"}, "type": {"const": "authorization"}}
    return _response(_STATUSES[status], headers, {media: {"schema": _object(properties)}})


def _schemas(policy: Policy, by_type: Mapping[str, Policy]) -> Schema:
    other: Schema = {"type": "string", "not": {"enum": [*by_type]}} if by_type else _TEXT
    kinds = [_session(policy, other)]
    kinds += [_session(policy, {"const": type_}) for type_, policy in by_type.items()]
    codes = {"enum": [*_UPSTREAM, "internal"]}
    unavailable = _object({"id": _TEXT, "error": _TEXT, "code": codes})
    page = _object({"next": _TEXT, "previous": _TEXT}, optional=("next", "previous"))
    return {
        "Session": kinds[0] if len(kinds) == 1 else {"oneOf": kinds},
        "Sessions": _object(
            {
                "data": {"type": "array", "items": {"$ref": "#/components/schemas/Session"}},
                "pagination": page,
                "unavailable": {
                    "type": "array",
                    "items": unavailable,
                    "description": "Sessions of this page that cannot be loaded now",
                },
            },
            optional=("unavailable",),
        ),
    }


def _session(policy: Policy, type_: Schema) -> Schema:
    visible = policy.visible
    properties: dict[str, Schema] = {
        name: row.schema if name in visible else _HIDDEN
        for name, row in FIELDS.items()
        if name in visible or row.null_when_hidden
    }
    properties["type"] = type_
    properties["tags"] = FIELDS["tags"].schema | ({} if policy.tags else {"maxItems": 0})
    unknown = [name for name in policy.fields if name not in FIELDS]
    properties |= {name: {} for name in unknown}
    # A stub stands for its field even where upstream sends no value.
    absent = [name for name, row in FIELDS.items() if row.absent and row.stub is None]
    return _object(properties, optional=(*absent, *unknown))


def _object(properties: Schema, *, optional: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in set(optional)],
        "additionalProperties": False,
    }

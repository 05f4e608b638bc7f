"""The routes of the browser port as OpenAPI 3.1. It follows the policies in force. Pure."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from bff.errors import ErrorCode
from bff.response import vary
from bff.sessions import ids, list_query
from bff.sessions.fields import FIELDS, Schema
from bff.sessions.openapi_answers import (
    COMMON,
    HEADERS,
    JSON,
    LIMITED,
    OF_CHATS,
    OF_STREAMS,
    REPRESENTATION,
    STREAMED,
    TEXT,
    codes_of,
    error_schemas,
    list_of,
    object_of,
    reference,
    refusals,
    response,
)
from bff.sessions.openapi_streams import (
    chat_content,
    chat_schemas,
    live_content,
    live_schemas,
    message_schemas,
)
from bff.sessions.policy import Policy

_DESCRIPTION: Final = """\
The browser-facing gateway of Trigger.dev sessions. `HEAD` answers as `GET` does, without a body;
chats have no `HEAD`. `OPTIONS` is 204 for any path, with CORS headers for an allowed origin. Other
methods on these paths are 405 `method_not_allowed`; other paths below `/api/` and `/realtime/` are
410 `not_served`, all others 404 `not_found`. Every request, also one for a list, counts once
against the caller's rate limit."""
_LIVE_DESCRIPTION: Final = """
A request that prefers text/event-stream gets the session, or the list, as it changes. Such a list
has no pages."""
_HIDDEN: Final[Schema] = {"type": "null", "description": "The policy hides this field"}
_INFO: Final = {
    "title": "bff",
    "contact": {"name": "The operator of this gateway"},
    "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
}
_SERVERS: Final = [{"url": ".", "description": "The address that serves this description"}]
"""Relative: a proxy may serve the gateway below a path."""
_SESSIONS, _CHATS, _SERVICE = "sessions", "chats", "service"
_TAGS: Final = {
    _SESSIONS: "The state of sessions, as the policy lets browsers see it",
    _CHATS: "The messages and the stream of a chat",
    _SERVICE: "Public pages about the gateway, which need no token",
}
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
    "/": ("describeGateway", "A short description of the gateway"),
    "/healthz": ("checkHealth", "Whether the process answers"),
    "/openapi.json": ("describeApi", "This description"),
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
_IF_NONE_MATCH: Final[Schema] = {"name": "If-None-Match", "in": "header", "schema": TEXT}


def document(
    policy: Policy,
    by_type: Mapping[str, Policy],
    version: str,
    *,
    cookie: str | None = None,
    chat: bool = False,
    any_message: bool = False,
    live: bool = False,
    answering: bool = False,
) -> Schema:
    """Describe a gateway.

    Args:
        policy: the default one.
        by_type: the policies of certain session types.
        version: the gateway's.
        cookie: name of the cookie that may hold the token; None if the gateway reads no cookie.
        chat: whether the routes of chats are served.
        any_message: whether they take every message, of any form.
        live: whether sessions and lists can be event streams.
        answering: whether these tell that the agent is answering.
    """
    description = _DESCRIPTION + (_LIVE_DESCRIPTION if live else "")
    visible = {name for p in (policy, *by_type.values()) for name in p.visible}
    headers: dict[str, Schema] = {
        name: {"description": text, "schema": schema}
        for name, (schema, text) in HEADERS.items()
        if (chat or name not in OF_STREAMS) and (chat or live or name not in STREAMED)
    }
    headers["Vary"]["schema"] = {"const": vary(cookie=cookie is not None, live=live)}
    schemas = _schemas(policy, by_type)
    schemes = {"token": _TOKEN} | ({"cookie": _COOKIE | {"name": cookie}} if cookie else {})
    return {
        "openapi": "3.1.0",
        "info": _INFO | {"description": description, "version": version},
        "servers": _SERVERS,
        "tags": [
            {"name": name, "description": text}
            for name, text in _TAGS.items()
            if chat or name != _CHATS
        ],
        "security": [{scheme: []} for scheme in schemes],
        "paths": {
            ids.ROUTE.decode() + "{session}": _path(
                "retrieveSession",
                ("One session", "The state of a session, as the policy lets browsers see it"),
                [_SESSION_PARAMETER],
                "Session",
                ["invalid_session_id", "not_found"],
                live=live,
            ),
            ids.LIST_ROUTE.decode(): _path(
                "listSessions",
                ("A chat list", "The sessions that the token names, in its order, page by page"),
                _list_parameters(visible),
                "Sessions",
                [],
                "X-Unavailable-Sessions",
                live=live,
            ),
            **(_chat_paths(any_message=any_message) if chat else {}),
            **{path: _page(*page) for path, page in _PAGES.items()},
        },
        "components": {
            "securitySchemes": schemes,
            "headers": headers,
            "schemas": schemas
            | (live_schemas(schemas, answering=answering) if live else {})
            | error_schemas(chat=chat, live=live)
            | (message_schemas(any_message=any_message) | chat_schemas() if chat else {}),
        },
    }


def _operation(id_: str, tag: str, summary: str, description: str, **more: Any) -> Schema:
    named = {"operationId": id_, "tags": [tag], "summary": summary, "description": description}
    return named | more


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


_EVERY: Final[tuple[ErrorCode, ...]] = (
    *("bad_request", "head_too_large", "rate_limited", "overloaded", "internal"),
)
"""Codes that every route has, those of the connection among them."""
_UPSTREAM: Final[tuple[ErrorCode, ...]] = tuple(
    code
    for code in codes_of(
        HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT
    )
    if code not in OF_CHATS
)
_USUAL: Final[tuple[ErrorCode, ...]] = tuple(
    dict.fromkeys((*_EVERY, *codes_of(HTTPStatus.UNAUTHORIZED), "unauthorized", *_UPSTREAM))
)
"""Codes of every route that needs a token."""


def _path(
    id_: str,
    texts: tuple[str, str],
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
    headers = (*COMMON, *REPRESENTATION, *LIMITED, *more)
    content: Schema = {JSON: {"schema": reference(schema)}}
    ok = headers
    if live:
        content |= live_content()
        ok = (*headers, *STREAMED)
        parameters = [*parameters, _header("Last-Event-ID", "The state that the browser has")]
        codes = [*codes, "too_many_streams"]
    responses = {
        "200": response(texts[0], ok, content),
        "304": response("The browser has the current copy (If-None-Match)", headers),
        **refusals([*_USUAL, *codes]),
    }
    parameters = [*parameters, _IF_NONE_MATCH]
    return {"get": _operation(id_, _SESSIONS, *texts, parameters=parameters, responses=responses)}


def _chat_paths(*, any_message: bool) -> dict[str, Schema]:
    """Describe the routes of chats."""
    usual: list[ErrorCode] = [*_USUAL, "invalid_session_id", "not_found"]
    accepted, message = ({"schema": reference(name)} for name in ("MessageAccepted", "Message"))
    refused: list[ErrorCode] = [
        *("invalid_message", "foreign_chat", "message_too_large", "session_closed"),
        *("too_many_messages", "message_unconfirmed"),
    ]
    post = _operation(
        "sendMessage",
        _CHATS,
        "Send a message",
        "Sends one message, as it comes."
        if any_message
        else "Sends one message of the official chat transport. Keys that the policy does not name "
        "are dropped.",
        security=[{"token": []}],  # the gateway takes no message with the cookie
        parameters=[_SESSION_PARAMETER, _header("X-Part-Id", "Stores the message once")],
        requestBody={"required": True, "content": {JSON: message}},
        responses={
            "200": response("Upstream has the message", (*COMMON, *LIMITED), {JSON: accepted}),
            **refusals([*usual, *refused], message=True),
        },
    )
    names = {
        "Last-Event-ID": "The number of the last record that the browser has",
        "Timeout-Seconds": "Seconds after which the stream ends, 1 to 600",
        "X-Peek-Settled": "1 ends the stream if no turn is under way",
        "X-Trigger-Stream-Start": "latest begins with the next record",
    }
    get = _operation(
        "streamChat",
        _CHATS,
        "Follow a chat",
        "The chat's stream, live, without the parts that are not for browsers.",
        parameters=[_SESSION_PARAMETER, *(_header(*pair) for pair in names.items())],
        responses={
            "200": response(
                "The events as they come",
                (*COMMON, *LIMITED, *STREAMED, *OF_STREAMS),
                chat_content(),
            ),
            **refusals([*usual, "stream_unreadable", "stream_version", "too_many_streams"]),
        },
    )
    return {CHAT_IN: {"post": post}, CHAT_OUT: {"get": get}}


def _header(name: str, text: str) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": TEXT}


def _page(id_: str, summary: str) -> Schema:
    ok = response(summary, COMMON, {JSON: {"schema": {"type": "object"}}})
    responses = {"200": ok, **refusals([*_EVERY])}
    return {"get": _operation(id_, _SERVICE, summary, summary, security=[], responses=responses)}


def _schemas(policy: Policy, by_type: Mapping[str, Policy]) -> Schema:
    other: Schema = FIELDS["type"].schema
    if by_type:
        # An example of a type without a policy: it is longer than each type that has one.
        another = f"not.{max(by_type, key=len)}"
        other = other | {"not": {"enum": [*by_type]}, "examples": [another]}
    kinds = [_session(policy, other)]
    kinds += [_session(policy, {"const": type_}) for type_, policy in by_type.items()]
    codes = {"type": "string", "enum": [*_UPSTREAM, "internal"]}
    unavailable = object_of({"id": TEXT, "error": TEXT, "code": codes})
    page = object_of({"next": TEXT, "previous": TEXT}, optional=("next", "previous"))
    return {
        "Session": kinds[0] if len(kinds) == 1 else {"anyOf": kinds},
        "Sessions": object_of(
            {
                "data": list_of(reference("Session")),
                "pagination": page,
                "unavailable": list_of(unavailable)
                | {"description": "Sessions of this page that cannot be loaded now"},
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
    described = object_of(properties, optional=(*absent, *unknown))
    return described | {"examples": [{name: _example(row) for name, row in properties.items()}]}


def _example(schema: Schema) -> Any:
    """Make a value that *schema* allows: its example, its constant, null or an empty container."""
    if "examples" in schema:
        return schema["examples"][0]
    if "const" in schema:
        return schema["const"]
    return {"array": [], "object": {}}.get(str(schema.get("type")))

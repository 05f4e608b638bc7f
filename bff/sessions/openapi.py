"""The browser port as OpenAPI 3.1, true to the policies that are in force. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from bff.errors import REFUSALS, ErrorCode
from bff.sessions import ids, list_query
from bff.sessions.policy import REQUIRED_FIELDS, Policy

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_DATE: Schema = {"type": "string", "format": "date-time"}
_DATE_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
_NULL: Schema = {"type": "null", "description": "The policy shows nothing of it"}
_KNOWN: dict[str, Schema] = {
    "id": {"type": "string", "pattern": "^session_"},
    "externalId": _TEXT_OR_NULL,
    "type": _TEXT,
    "taskIdentifier": _TEXT,
    "triggerConfig": {"const": {"basePayload": {}}},
    "currentRunId": {
        **_TEXT_OR_NULL,
        "description": "The last run; it is not cleared when that ends",
    },
    "closedAt": _DATE_OR_NULL,
    "closedReason": _TEXT_OR_NULL,
    "expiresAt": _DATE_OR_NULL,
    "createdAt": _DATE,
    "updatedAt": _DATE,
}
_TROUBLE = [code for code, kind in REFUSALS.items() if kind.status in (502, 503, 504)]
_NULL_WHEN_HIDDEN = ("externalId", "closedAt", "closedReason", "expiresAt")
_COMMON = ("X-Request-Id", "Vary", "Cache-Control")
_LIMITED = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
_SHOWN = ("ETag", "Age", "Cache-Status")
_HEADERS: dict[str, tuple[Schema, str]] = {
    "X-Request-Id": (_TEXT, "Names this answer in the gateway's log"),
    "Vary": ({"const": "Authorization, Origin"}, "What an answer depends on"),
    "Cache-Control": ({"enum": ["private, no-cache", "no-store"]}, "The first on 200 and 304"),
    "ETag": (_TEXT, "Of the body: send it as If-None-Match"),
    "Age": ({"type": "integer", "minimum": 0}, "Seconds since the oldest copy was loaded"),
    "Cache-Status": (_TEXT, "What the shared copy did (RFC 9211)"),
    "x-ratelimit-limit": ({"type": "integer"}, "Requests in a window"),
    "x-ratelimit-remaining": ({"type": "integer"}, "Requests left in it"),
    "x-ratelimit-reset": ({"type": "integer"}, "Unix milliseconds of its end"),
    "RateLimit": (_TEXT, "The same, as the IETF writes it"),
    "RateLimit-Policy": (_TEXT, "The same, as the IETF writes it"),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds until a retry makes sense"),
    "x-should-retry": ({"const": "false"}, "Read by the official SDK"),
    "WWW-Authenticate": (_TEXT, "RFC 6750"),
    "Allow": (_TEXT, "Methods that are served"),
    "X-Unavailable-Sessions": ({"type": "integer", "minimum": 1}, "How many the page lacks"),
}
_SAID = {
    200: "The session",
    304: "The browser holds the current copy (If-None-Match)",
    400: "Malformed",
    401: "The token is missing, invalid or expired: mint another one",
    403: "The token does not name this session, whether it exists or not",
    404: "There is no such session",
    405: "Not served with this method",
    429: "Over a limit: return at the reset",
    500: "Nobody foresaw this",
    502: "Upstream's trouble",
    503: "The upstream budget is spent, or the gateway cannot verify tokens yet: return shortly",
    504: "Upstream did not answer in time",
}
_DESCRIPTION = """\
The browser-facing gateway of Trigger.dev sessions. `OPTIONS` is 204 for any path, with CORS headers
for an allowed origin. Other methods on these paths are 405 `method_not_allowed`; other paths below
`/api/` and `/realtime/` are 410 `not_served`, elsewhere 404 `not_found`. Each request is one of the
caller's rate limit, a list too."""


def document(
    policy: Policy, by_type: Mapping[str, Policy], version: str, *, cookie: str | None = None
) -> Schema:
    """Describe a gateway with this default *policy* and those of certain session types.

    *cookie* is the name of the one that may hold the token, if any.
    """
    visible = {name for p in (policy, *by_type.values()) for name in p.visible}
    list_: list[ErrorCode] = ["bad_request", "unauthorized"]
    one: list[ErrorCode] = ["bad_request", "invalid_session_id", "unauthorized", "not_found"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bff",
            "version": version,
            "description": _DESCRIPTION,
        },
        "security": [{"token": []}, *([{"cookie": []}] if cookie else [])],
        "paths": {
            ids.ROUTE.decode() + "{session}": _path(
                {
                    "summary": "One session, as the policy lets browsers see it",
                    "parameters": [_SESSION_PARAMETER],
                },
                {"$ref": "#/components/schemas/Session"},
                one,
            ),
            ids.LIST_ROUTE.decode(): _path(
                {
                    "summary": "The sessions that the token names, in its order",
                    "parameters": _list_parameters(visible),
                },
                {"$ref": "#/components/schemas/Sessions"},
                list_,
                "X-Unavailable-Sessions",
            ),
            **{path: _page(summary) for path, summary in _PAGES.items()},
        },
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token whose scopes name sessions (read:sessions:<id>)",
                },
                **({"cookie": _COOKIE | {"name": cookie}} if cookie else {}),
            },
            "headers": {
                name: {"description": text, "schema": schema}
                for name, (schema, text) in _HEADERS.items()
            },
            "schemas": _schemas(policy, by_type),
        },
    }


_COOKIE = {
    "type": "apiKey",
    "in": "cookie",
    "description": "The same token, for pages of this very origin (Sec-Fetch-Site: same-origin)",
}
_PAGES = {
    "/": "What this is",
    "/healthz": "Whether the process answers",
    "/openapi.json": "This description",
}
_SESSION_PARAMETER: Schema = {
    "name": "session",
    "in": "path",
    "required": True,
    "description": "An id or an externalId, percent-encoded as one segment",
    # Control characters are none of an id's, and `.` and `..` are none of a path's.
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": ids.MAX_ID_CHARACTERS,
        "pattern": r"^(?!\.{1,2}$)[^\u0000-\u001f\u007f-\u009f]+$",
    },
    "example": "chat-1",
}
_IF_NONE_MATCH: Schema = {"name": "If-None-Match", "in": "header", "schema": _TEXT}


def _list_parameters(visible: Iterable[str]) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "query",
            "description": parameter.says[:1].upper() + parameter.says[1:],
            "schema": parameter.schema,
        }
        for name, parameter in list_query.PARAMETERS.items()
        if parameter.looks_at.issubset(visible)
    ]


def _path(common: Schema, body: Schema, codes: list[ErrorCode], *more: str) -> Schema:
    """Describe a path that shows *body*, or refuses with one of *codes* or of the usual ones."""
    usual = [code for code, kind in REFUSALS.items() if kind.status == 401]  # noqa: PLR2004
    refusals = _refusals([*codes, *usual, *_TROUBLE, "rate_limited", "internal"])
    shown = (*_COMMON, *_SHOWN, *_LIMITED, "RateLimit", "RateLimit-Policy")
    responses = {
        "200": _response(_SAID[200], (*shown, *more), {"application/json": {"schema": body}}),
        "304": _response(_SAID[304], shown),
        **refusals,
    }
    parameters: list[Schema] = common["parameters"]
    get = {**common, "parameters": [*parameters, _IF_NONE_MATCH], "responses": responses}
    bare = {status: {**response, "content": {}} for status, response in responses.items()}
    for response in bare.values():
        del response["content"]
    head = {**get, "summary": "The same without a body", "responses": bare}
    return {"get": get, "head": head}


def _page(summary: str) -> Schema:
    refusals = _refusals(["rate_limited", "internal"])
    json = {"application/json": {"schema": {"type": "object"}}}
    ok = _response(summary, _COMMON, json)
    get = {"summary": summary, "security": [], "responses": {"200": ok, **refusals}}
    head = {"summary": summary, "security": [], "responses": {"200": {"description": summary}}}
    return {"get": get, "head": head}


def _response(text: str, headers: Iterable[str], content: Schema | None = None) -> Schema:
    response: Schema = {
        "description": text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    return response if content is None else {**response, "content": content}


def _refusals(codes: list[ErrorCode]) -> Schema:
    by_status: dict[int, list[ErrorCode]] = {}
    for code in codes:
        by_status.setdefault(REFUSALS[code].status, []).append(code)
    return {str(status): _refusal(status, some) for status, some in sorted(by_status.items())}


def _refusal(status: int, codes: list[ErrorCode]) -> Schema:
    headers = [*_COMMON]
    properties: Schema = {"error": _TEXT, "code": {"enum": codes}}
    media = "application/json"
    if status == 429:  # noqa: PLR2004
        media = "application/problem+json"
        headers += [*_LIMITED, "RateLimit", "RateLimit-Policy", "Retry-After"]
        properties |= dict.fromkeys(("title", "type", "detail"), _TEXT)
        properties |= {name: {"type": "integer"} for name in ("status", "limit", "remaining")}
        properties |= {"reset": {"type": "integer"}, "secondsUntilReset": {"type": "number"}}
    else:
        headers += ["x-should-retry", "Retry-After"]
    if status == 401:  # noqa: PLR2004
        headers.append("WWW-Authenticate")
    if status == 403:  # noqa: PLR2004
        properties |= {"param": {"const": "access_token"}, "type": {"const": "authorization"}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return _response(_SAID[status], headers, {media: {"schema": schema}})


def _schemas(policy: Policy, by_type: Mapping[str, Policy]) -> Schema:
    other: Schema = {"type": "string", "not": {"enum": [*by_type]}} if by_type else _TEXT
    kinds = [_session(policy, other)]
    kinds += [_session(own, {"const": type_}) for type_, own in by_type.items()]
    codes = {"enum": [*_TROUBLE, "internal"]}
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
    fields: dict[str, Schema] = {name: _KNOWN.get(name, {}) for name in policy.fields}
    fields |= {name: _NULL for name in _NULL_WHEN_HIDDEN if name not in fields}
    fields["type"] = type_
    fields["metadata"] = {"type": ["object", "null"]} if policy.metadata else _NULL
    fields["tags"] = {"type": "array", "items": _TEXT}
    if not policy.tags:
        fields["tags"] |= {"maxItems": 0}
    promised = {*REQUIRED_FIELDS, *_NULL_WHEN_HIDDEN, "metadata", "tags", "triggerConfig"}
    return _object(fields, optional=fields.keys() - promised)


def _object(properties: Schema, *, optional: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in set(optional)],
        "additionalProperties": False,
    }

"""Tells the API's errors from those of another server that answers at its address.

A browser acts on 401, 403 and 404: it mints a token, or starts a paid run. So the gateway believes
them only of an answer that looks like the API's. A CDN, a login page, a proxy, another service or
a web framework answers with the same statuses, mostly in HTML, and often in JSON.

The API's errors, as measured: an object whose `error` is a text, for 403 with its `code`; or a
problem document (RFC 9457) that has `error` as well. Other servers send `{"error": …}` too. So the
text, the code, or a header that only the API has, must show whose it is.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from bff import strict_json
from bff.upstream.connection import Answer

MAX_MEMBERS: Final = 256
"""Brackets, braces and commas of an answer that is not a document; usual ones have ten."""
_JSON: Final = ("application/json", "application/problem+json")
_PLAIN: Final = frozenset(("error", "code", "param", "type"))
_PROBLEM: Final = frozenset(("title", "status", "type", "detail", "error"))
_LIMITED: Final = frozenset(("reset", "limit", "remaining", "secondsUntilReset"))
_MISSING: Final = ("Not found", "Resource not found")
"""The API's texts for what does not exist."""
_FORBIDDEN: Final = "unauthorized"
"""The code of a route's 403."""
_NOT_MINTED: Final = "scopes_exceed_key_access"
"""The code of the 403 for a token that a restricted key may not mint; it lists the scopes."""
_KEY_NAMES: Final = ("api key", "public access token", "preview env", "branch env")
"""Each text of the API's 401 contains one of these: it names what the API did not accept."""
_NAMES: Final = frozenset(("", *(status.phrase.casefold() for status in HTTPStatus)))
"""Texts that frameworks send by default; the API's texts say more."""
_EXPOSED: Final = "access-control-expose-headers"
_OWN_HEADER: Final = "x-trigger-jwt"
"""A header that the API lets browsers read; it says so in each error of a route."""


def is_json(headers: Mapping[str, str]) -> bool:
    """Tell whether the headers announce JSON, or nothing."""
    kind = headers.get("content-type")
    return kind is None or kind.partition(";")[0].strip().lower() in _JSON


def api_error(answer: Answer) -> dict[str, Any] | None:
    """Return the body of an error that the API sent; None if something else sent it."""
    status, headers = answer.status, answer.headers
    if not is_json(headers) or "www-authenticate" in headers:
        return None
    try:
        error = strict_json.loads(answer.body, most=MAX_MEMBERS)
    except ValueError:
        return None
    if not isinstance(error, dict) or not isinstance(error.get("error"), str):
        return None
    own = (
        _is_plain(error, status, headers)
        or _is_problem(error, status)
        or (status == HTTPStatus.FORBIDDEN and error.get("code") == _NOT_MINTED)
    )
    return error if own else None


def _is_plain(error: dict[str, Any], status: int, headers: Mapping[str, str]) -> bool:
    if not error.keys() <= _PLAIN or not all(isinstance(value, str) for value in error.values()):
        return False
    if status == HTTPStatus.FORBIDDEN:
        return bool(error.get("code") == _FORBIDDEN)
    if _OWN_HEADER in headers.get(_EXPOSED, ""):
        return True
    text = error["error"].casefold()
    if status == HTTPStatus.NOT_FOUND:
        is_missing = error["error"] in _MISSING and len(error) == 1
        return is_missing or headers.get("x-should-retry") == "false"
    if status == HTTPStatus.UNAUTHORIZED:
        return len(error) == 1 and any(name in text for name in _KEY_NAMES)
    return len(error) > 1 or text not in _NAMES


def _is_problem(error: dict[str, Any], status: int) -> bool:
    keys = error.keys()
    return _PROBLEM <= keys <= _PROBLEM | _LIMITED and error["status"] == status

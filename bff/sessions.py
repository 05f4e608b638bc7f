"""What a session is: its two ids, the scope it needs, its path upstream, and a valid document."""

import json
import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from bff import scopes
from bff.errors import Refusal

LIST_ROUTE = b"/api/v1/sessions"
ROUTE = b"/api/v1/sessions/"
MAX_ID_CHARACTERS = 256
_MAX_RAW = 12 * MAX_ID_CHARACTERS
"""Bytes of a raw segment: a character has up to four, each of them three when it is encoded."""
MAX_DEPTH = 64
"""Levels of nesting in a document; the measured ones have five."""

PLAIN_PATH = rb"%b([A-Za-z0-9_~:-]{1,%d})" % (ROUTE, MAX_ID_CHARACTERS)
"""Pattern of a raw path with an id that needs no decoding, as nearly every one does."""

_FRIENDLY = "session_"
_PLAIN_PATH = re.compile(PLAIN_PATH)
_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def grant(token_scopes: Iterable[object]) -> scopes.Grant:
    """What the *token_scopes* of one token let it read."""
    return scopes.grant(token_scopes, action="read", type_="sessions")


def parse_id(segment: bytes) -> str:
    """Read one raw path *segment*, percent-decoded once.

    Raises:
        Refusal: ``invalid_session_id``. ``.`` and ``..`` are among them: percent-encoding leaves
            dots alone, an HTTP client resolves them, and ``/api/v1/sessions/.`` would then ask
            for the list of all sessions, with the secret key.
    """
    if len(segment) > _MAX_RAW or b"/" in segment or _ESCAPE.search(segment):
        raise Refusal("invalid_session_id")
    try:
        id_ = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refusal("invalid_session_id") from None
    if not is_id(id_):
        raise Refusal("invalid_session_id")
    return id_


def plain_id(path: bytes) -> str | None:
    """The id in a raw *path* that is a `PLAIN_PATH`; None for others.

    It says what `parse_id` says of the path's last segment, at a fifth of the cost.
    """
    plain = _PLAIN_PATH.fullmatch(path)
    return plain[1].decode() if plain else None


def is_id(text: str) -> bool:
    """Whether *text* can be a session's id; only such a text may become a path upstream."""
    if not 1 <= len(text) <= MAX_ID_CHARACTERS or text in (".", ".."):
        return False
    # Control characters, and lone surrogates (from a token), which no path can hold.
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def named(granted: scopes.Grant) -> tuple[str, ...]:
    """Ids that are named one by one and that a session can have, in the order of the token."""
    return tuple(id_ for id_ in granted.named if is_id(id_))


def path(id_: str) -> str:
    """The path upstream: one encoded segment below the route, whatever the id."""
    return ROUTE.decode() + quote(id_, safe="")


def is_friendly(id_: str) -> bool:
    """Whether *id_* is a friendly id; upstream too lets the prefix alone decide."""
    return id_.startswith(_FRIENDLY)


def may_be_alias(id_: str, granted: scopes.Grant) -> bool:
    """Whether *id_* may be the other form of an id that is *granted*: only the copy can tell."""
    friendly = is_friendly(id_)
    return any(is_friendly(named) is not friendly for named in granted.ids)


def parse_document(body: bytes, *, asked: str) -> dict[str, Any]:
    """Read upstream's answer to the question for *asked*.

    Valid is what the official SDK's parser accepts, so that whatever is let through of it parses
    there too: JSON without repeated keys, non-finite numbers or more than `MAX_DEPTH` levels, in
    the types of the table below, carrying the id that was asked for.

    Raises:
        Refusal: ``upstream_invalid``.
    """
    try:
        document = json.loads(body, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Refusal("upstream_invalid") from None
    if (
        not isinstance(document, dict)
        or (body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(document))
        or not all(valid(document.get(name, _ABSENT)) for name, valid in _FIELDS.items())
        or not is_friendly(document["id"])
        or is_friendly(document["externalId"] or "")
        or asked not in (document["id"], document["externalId"])
    ):
        raise Refusal("upstream_invalid")
    return document


_ABSENT = object()


def _text(value: object) -> bool:
    return isinstance(value, str)


def _text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _date(value: object) -> bool:
    # The SDK makes a Date of it, and a Date that is not one fails there: 30 February included.
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


# The fields of a document and what the SDK's parser accepts for each, `_ABSENT` for a missing one.
_FIELDS = {
    "id": _text,
    "externalId": _text_or_null,
    "type": _text,
    "taskIdentifier": _text,
    "triggerConfig": lambda value: value is _ABSENT or isinstance(value, dict),
    "currentRunId": lambda value: value is _ABSENT or _text_or_null(value),
    "tags": lambda value: isinstance(value, list) and all(map(_text, value)),
    "metadata": lambda value: value is None or isinstance(value, dict),
    "closedAt": lambda value: value is None or _date(value),
    "closedReason": _text_or_null,
    "expiresAt": lambda value: value is None or _date(value),
    "createdAt": _date,
    "updatedAt": _date,
}

FIELDS = tuple(_FIELDS)
"""The names of the fields that are known; any other is new upstream."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two parsers disagree on which of two equal keys counts, so neither is believed.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated key")
    return members


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _too_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True

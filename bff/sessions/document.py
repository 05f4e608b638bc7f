"""Parses upstream's answer into a valid session document."""

from types import NoneType
from typing import Any, Final

from bff import strict_json
from bff.errors import SessionNotFound, UpstreamInvalid
from bff.sessions.fields import FIELDS
from bff.sessions.ids import has_escape, is_friendly

MAX_DEPTH = 64
"""Levels of nesting in a document. Measured documents have five."""


def parse_document(body: bytes, *, requested_id: str) -> dict[str, Any]:
    """Parse the *body* of upstream's answer to a request for *requested_id*.

    A document is valid if the official SDK's parser accepts it, so the SDK also accepts its
    projection. It is strict JSON with at most `MAX_DEPTH` levels, has the fields of the table
    `FIELDS`, and carries the requested id.

    Raises:
        UpstreamInvalid: the body is not a valid document.
        SessionNotFound: upstream took the requested id for the id of another session.
    """
    try:
        document = strict_json.loads(body)
    except ValueError:
        raise UpstreamInvalid from None
    if (
        not isinstance(document, dict)
        or (_may_be_too_deep(body) and _too_deep(document))
        or not is_complete(document)
        or not is_friendly(document["id"])
        or is_friendly(document["externalId"] or "")
    ):
        raise UpstreamInvalid
    if requested_id not in (document["id"], document["externalId"]):
        raise SessionNotFound if has_escape(requested_id) else UpstreamInvalid
    return document


_ROWS: Final = [
    (name, (row.type.of, NoneType) if row.null else row.type.of, row.type.accepts, row.absent)
    for name, row in FIELDS.items()
]
"""The rows of `FIELDS` as tuples, because `is_complete` runs for each document."""
_ABSENT: Final = object()


def is_complete(document: dict[str, Any]) -> bool:
    """Whether the official SDK's parser accepts the fields of *document*."""
    for name, types, accepts, absent in _ROWS:
        value = document.get(name, _ABSENT)
        if value is _ABSENT:
            if not absent:
                return False
        elif not isinstance(value, types) or not (
            accepts is None or value is None or accepts(value)
        ):
            return False
    return True


def _may_be_too_deep(body: bytes) -> bool:
    """Whether it has more braces and brackets than levels; `bytes.count` is slower."""
    parts = len(body.split(b"{", MAX_DEPTH + 1)) + len(body.split(b"[", MAX_DEPTH + 1))
    return parts > MAX_DEPTH + 2


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

"""Parses upstream's answer into a valid session document."""

from typing import Any

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
        or (body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(document))
        or not _is_complete(document)
        or not is_friendly(document["id"])
        or is_friendly(document["externalId"] or "")
    ):
        raise UpstreamInvalid
    if requested_id not in (document["id"], document["externalId"]):
        raise SessionNotFound if has_escape(requested_id) else UpstreamInvalid
    return document


def _is_complete(document: dict[str, Any]) -> bool:
    for name, row in FIELDS.items():
        if not (row.accepts(document[name]) if name in document else row.absent):
            return False
    return True


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

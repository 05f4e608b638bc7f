"""Reads upstream's answer: a valid session document, or a refusal."""

from typing import Any

from bff import strict_json
from bff.errors import UpstreamInvalid
from bff.sessions.fields import _ABSENT, _FIELDS
from bff.sessions.ids import is_friendly

MAX_DEPTH = 64
"""Levels of nesting in a document; the measured ones have five."""


def parse_document(body: bytes, *, asked: str) -> dict[str, Any]:
    """Read upstream's answer to the question for *asked*.

    Valid is what the official SDK's parser accepts, so that whatever is let through of it parses
    there too: JSON without repeated keys, non-finite numbers or more than `MAX_DEPTH` levels, in
    the types of the table below, carrying the id that was asked for.

    Raises:
        Refusal: `UpstreamInvalid`.
    """
    try:
        document = strict_json.loads(body)
    except ValueError:
        raise UpstreamInvalid from None
    if (
        not isinstance(document, dict)
        or (body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(document))
        or not all(valid(document.get(name, _ABSENT)) for name, valid in _FIELDS.items())
        or not is_friendly(document["id"])
        or is_friendly(document["externalId"] or "")
        or asked not in (document["id"], document["externalId"])
    ):
        raise UpstreamInvalid
    return document


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

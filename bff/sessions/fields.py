"""The fields of a session, one row each."""

import re
from datetime import datetime

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
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

"""The rules of the official SDK's parser in Python, as measured on versions 4.4.6 to 4.8.3."""

import re
from datetime import datetime
from typing import Any

DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def parses(shown: dict[str, Any]) -> bool:
    """Whether the SDK accepts *shown* as a session."""
    return (
        all(_is_text(shown.get(name)) for name in ("id", "type", "taskIdentifier"))
        and all(_is_date(shown.get(name)) for name in ("createdAt", "updatedAt"))
        and all(
            name in shown and (shown[name] is None or _is_text(shown[name]))
            for name in ("externalId", "closedReason")
        )
        and all(
            name in shown and (shown[name] is None or _is_date(shown[name]))
            for name in ("closedAt", "expiresAt")
        )
        and (shown.get("currentRunId") is None or _is_text(shown["currentRunId"]))
        and "metadata" in shown
        and (shown["metadata"] is None or isinstance(shown["metadata"], dict))
        and isinstance(shown.get("tags"), list)
        and all(_is_text(tag) for tag in shown["tags"])
        and (
            "triggerConfig" not in shown
            or (
                isinstance(shown["triggerConfig"], dict)
                and isinstance(shown["triggerConfig"].get("basePayload"), dict)
            )
        )
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_date(value: object) -> bool:
    if not isinstance(value, str) or not DATE.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True

"""What the official SDK's parser accepts (executed on 4.4.6 to 4.8.3), as a check in Python."""

import re
from typing import Any

DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def parses(shown: dict[str, Any]) -> bool:
    """Whether the SDK accepts *shown* as a session."""
    null_or_text = (type(None), str)
    return (
        all(isinstance(shown.get(name), str) for name in ("id", "type", "taskIdentifier"))
        and all(
            isinstance(shown.get(n), str) and DATE.fullmatch(shown[n])
            for n in ("createdAt", "updatedAt")
        )
        and all(
            name in shown and isinstance(shown[name], null_or_text)
            for name in ("externalId", "closedAt", "closedReason", "expiresAt")
        )
        and isinstance(shown.get("currentRunId"), null_or_text)
        and "metadata" in shown
        and (shown["metadata"] is None or isinstance(shown["metadata"], dict))
        and isinstance(shown.get("tags"), list)
        and all(isinstance(tag, str) for tag in shown["tags"])
        and (
            "triggerConfig" not in shown
            or isinstance(shown["triggerConfig"].get("basePayload"), dict)
        )
    )

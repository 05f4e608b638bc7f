"""The table of a session's fields, one row each.

To hide a field by default, write "hidden" in its row; to show it, write "shown".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

Schema = dict[str, Any]
"""A JSON schema."""
Default = Literal["shown", "hidden", "own setting"]
"""The choice of the default policy for a field. Two fields have a setting of their own, which
selects the parts that browsers get: `BFF_EXPOSE_METADATA` and `BFF_EXPOSE_TAGS`."""


@dataclass(frozen=True, slots=True)
class _Type:
    of: type
    schema: Schema
    accepts: Callable[[Any], bool] | None = None
    """Tests a value that has the type."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table.

    Attributes:
        default: what the default policy does with the field.
        null: the official SDK's parser accepts null.
        absent: the official SDK's parser accepts a session without the field.
        stub: browsers get this constant in place of the value.
        details: members of the JSON schema beside those of the type.
    """

    type: _Type
    default: Default
    null: bool = False
    absent: bool = False
    stub: Schema | None = None
    details: Schema = field(default_factory=dict)

    @property
    def required(self) -> bool:
        """Whether the SDK's parser accepts neither null nor a session without the field."""
        return not (self.null or self.absent)

    @property
    def null_when_hidden(self) -> bool:
        """Whether a hidden field is sent as null: the SDK's parser needs it, but accepts null."""
        return self.null and not self.absent

    @property
    def schema(self) -> Schema:
        """JSON schema of what browsers get."""
        if self.stub is not None:
            return {"const": self.stub}
        schema = self.type.schema | self.details
        return schema | {"type": [schema["type"], "null"]} if self.null else schema


_DATE_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def unix_seconds(date: str) -> float:
    """Convert a date of a valid document to Unix seconds."""
    return datetime.fromisoformat(date).timestamp()


def _is_date(text: str) -> bool:
    # The SDK makes a Date of the text; an impossible date, such as 30 February, fails there.
    if not _DATE_PATTERN.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


_TEXT = _Type(str, {"type": "string"})
_DATE = _Type(str, {"type": "string", "format": "date-time"}, _is_date)
_OBJECT = _Type(dict, {"type": "object"})
_TEXTS = _Type(
    list,
    {"type": "array", "items": {"type": "string"}},
    lambda values: all(isinstance(value, str) for value in values),
)
FIELDS: Final[dict[str, Field]] = {
    "id": Field(
        _TEXT,
        "shown",
        details={"pattern": "^session_", "examples": ["session_demo0000000000000000000001"]},
    ),
    "externalId": Field(_TEXT, "shown", null=True, details={"examples": ["chat-1"]}),
    "type": Field(_TEXT, "shown", details={"examples": ["chat.agent"]}),
    "taskIdentifier": Field(_TEXT, "shown", details={"examples": ["my-chat"]}),
    # It holds the first message and secrets of the app's backend; the SDK needs only the stub.
    "triggerConfig": Field(_OBJECT, "hidden", absent=True, stub={"basePayload": {}}),
    "currentRunId": Field(
        _TEXT,
        "shown",
        null=True,
        absent=True,
        details={
            "description": "The last run; upstream keeps it after the run ends",
            "examples": ["run_demo0000000000000000000001"],
        },
    ),
    "tags": Field(_TEXTS, "own setting"),
    "metadata": Field(_OBJECT, "own setting", null=True),
    "closedAt": Field(_DATE, "shown", null=True),
    "closedReason": Field(_TEXT, "shown", null=True),
    "expiresAt": Field(_DATE, "shown", null=True),
    "createdAt": Field(_DATE, "shown", details={"examples": ["2026-01-02T03:04:05.678Z"]}),
    "updatedAt": Field(_DATE, "shown", details={"examples": ["2026-01-02T03:04:06.789Z"]}),
}
"""The fields by name. The gateway counts and drops a field that has no row."""

"""The query of a chat list: what the official SDK can send, and nothing else."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl

from bff.errors import Refused

DEFAULT_SIZE: Final = 20
MAX_SIZE: Final = 100
MAX_TEXT: Final = 1024
"""Characters of one value."""
MAX_QUERY_BYTES: Final = 65536
"""All parameters with all that they may hold, percent-encoded."""
STATUSES: Final = ("ACTIVE", "CLOSED", "EXPIRED")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for. Times are Unix seconds; empty tuples and None filter nothing."""

    size: int = DEFAULT_SIZE
    after: str | None = None
    before: str | None = None
    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    task_identifiers: tuple[str, ...] = ()
    external_id: str | None = None
    statuses: tuple[str, ...] = ()
    created_since: float | None = None
    created_from: float | None = None
    created_to: float | None = None

    @property
    def filters(self) -> bool:
        """Whether anything of a session is looked at."""
        return self != Query(self.size, self.after, self.before)

    def matches(self, shown: dict[str, Any], wall: float) -> bool:
        """Whether *shown*, a session as the browser sees it, passes every filter."""
        created = _unix(shown["createdAt"])
        return (
            (not self.types or shown["type"] in self.types)
            and (not self.task_identifiers or shown["taskIdentifier"] in self.task_identifiers)
            and (not self.tags or any(tag in self.tags for tag in shown["tags"]))
            and (self.external_id is None or shown["externalId"] == self.external_id)
            and (not self.statuses or _status(shown, wall) in self.statuses)
            and (self.created_since is None or created >= self.created_since)
            and (self.created_from is None or created >= self.created_from)
            and (self.created_to is None or created <= self.created_to)
        )


def _status(shown: dict[str, Any], wall: float) -> str:
    if shown["closedAt"] is not None:
        return "CLOSED"
    expires = shown["expiresAt"]
    return "EXPIRED" if expires is not None and _unix(expires) <= wall else "ACTIVE"


def _unix(date: str) -> float:
    return datetime.fromisoformat(date).timestamp()


def parse(query: bytes, *, visible: Collection[str], wall: float) -> Query:
    """Read a query string: what the official SDK can send, and nothing else.

    Args:
        query: raw, as it stands after the question mark.
        visible: the fields that any policy shows; a filter on another can only mislead.
        wall: Unix seconds, for ``filter[createdAt][period]``.

    Raises:
        Refused: ``bad_request``, with what to write instead.
    """
    if len(query) > MAX_QUERY_BYTES:
        raise Refused("bad_request", f"A query has at most {MAX_QUERY_BYTES} bytes")
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=2 * len(PARAMETERS),
        )
    except ValueError:
        raise Refused("bad_request", "The query is malformed") from None
    asked: dict[str, Any] = {}
    seen = set()
    for name, text in pairs:
        parameter = PARAMETERS.get(name)
        if parameter is None:
            raise Refused("bad_request", f"Only these parameters are known: {_KNOWN}")
        if name in seen:
            raise Refused("bad_request", f"{name} is there twice; separate values with a comma")
        seen.add(name)
        if not parameter.looks_at.issubset(visible):
            raise Refused("bad_request", f"{name} looks at what this gateway shows to no browser")
        value = parameter.read(text, wall) if len(text) <= MAX_TEXT else None
        if value is None:
            raise Refused("bad_request", f"{name} is {parameter.says}")
        asked[parameter.member] = value
    if "after" in asked and "before" in asked:
        raise Refused("bad_request", "page[after] and page[before] cannot stand together")
    return Query(**asked)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row: what a parameter sets, how its text is read (to None if it is wrong)."""

    member: str
    read: Callable[[str, float], Any]
    says: str
    """What a right value is."""
    schema: dict[str, Any]
    """The same as JSON schema."""
    looks_at: frozenset[str] = frozenset()


def _size(text: str, _: float) -> int | None:
    number = _whole(text)
    return number if number is not None and 1 <= number <= MAX_SIZE else None


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _text(text: str, _: float) -> str | None:
    return text or None


def _list(text: str, _: float) -> tuple[str, ...] | None:
    values = tuple(text.split(","))
    return values if all(values) else None


def _statuses(text: str, _: float) -> tuple[str, ...] | None:
    values = tuple(text.split(","))
    return values if set(values) <= set(STATUSES) else None


def _milliseconds(text: str, _: float) -> float | None:
    number = _whole(text)
    return None if number is None else number / 1000


def _period(text: str, wall: float) -> float | None:
    match = re.fullmatch(_PERIOD, text)
    return wall - int(match[1]) * _UNITS[match[2]] if match else None


_PERIOD = r"([1-9][0-9]{0,6})([smhdw])"
_STATUS = "|".join(STATUSES)
_CURSOR = "a cursor that an answer to this caller gave"
_CURSOR_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9_-]{24}$"}
_DATE = "a time in Unix milliseconds"
_DATE_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}


def _values(field_: str, member: str) -> Parameter:
    schema = {"type": "string", "pattern": "^[^,]+(,[^,]+)*$", "maxLength": MAX_TEXT}
    says = "one value or several, separated by commas"
    return Parameter(member, _list, says, schema, frozenset({field_}))


PARAMETERS: dict[str, Parameter] = {
    "page[size]": Parameter(
        "size",
        _size,
        f"a whole number from 1 to {MAX_SIZE}",
        {"type": "integer", "minimum": 1, "maximum": MAX_SIZE, "default": DEFAULT_SIZE},
    ),
    "page[after]": Parameter("after", _text, _CURSOR, _CURSOR_SCHEMA),
    "page[before]": Parameter("before", _text, _CURSOR, _CURSOR_SCHEMA),
    "filter[type]": _values("type", "types"),
    "filter[tags]": _values("tags", "tags"),
    "filter[taskIdentifier]": _values("taskIdentifier", "task_identifiers"),
    "filter[externalId]": Parameter(
        "external_id",
        _text,
        "one id",
        {"type": "string", "minLength": 1, "maxLength": MAX_TEXT},
        frozenset({"externalId"}),
    ),
    "filter[status]": Parameter(
        "statuses",
        _statuses,
        f"any of {', '.join(STATUSES)}, separated by commas",
        {"type": "string", "pattern": f"^({_STATUS})(,({_STATUS}))*$", "maxLength": MAX_TEXT},
        frozenset({"closedAt", "expiresAt"}),
    ),
    "filter[createdAt][period]": Parameter(
        "created_since",
        _period,
        "a time back from now such as 30m, 24h or 7d",
        {"type": "string", "pattern": f"^{_PERIOD}$"},
    ),
    "filter[createdAt][from]": Parameter("created_from", _milliseconds, _DATE, _DATE_SCHEMA),
    "filter[createdAt][to]": Parameter("created_to", _milliseconds, _DATE, _DATE_SCHEMA),
}
_KNOWN = ", ".join(PARAMETERS)

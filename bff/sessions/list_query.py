"""The query of a chat list. It accepts what the official SDK can send, and nothing else."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from bff.errors import Refused
from bff.sessions.fields import Schema, unix_seconds

DEFAULT_SIZE: Final = 20
"""Sessions on a page, unless the query says otherwise."""
MAX_SIZE: Final = 100
"""Sessions on a page, at most."""
MAX_TEXT: Final = 1024
"""Characters of one value."""
MAX_QUERY_BYTES: Final = 65536
"""Bytes of a query: enough for all parameters with the longest values, percent-encoded."""
_PAGES: Final = {"page[size]": "size", "page[after]": "after", "page[before]": "before"}
"""The parameters that select a page, each with the member of `Query` that it sets."""
STATUSES: Final = ("ACTIVE", "CLOSED", "EXPIRED")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
"""Seconds of each unit of a period."""
_SHORT_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,20}(\[[A-Za-z0-9_]{1,20}\]){0,2}")
"""Names that an error repeats. Tokens and keys are longer; HTML needs other characters."""
_SIMILARITY: Final = 0.8
"""An error suggests a parameter at least this similar to the unknown one, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query; *filters* has the value of each filter, by the name of its parameter."""

    size: int = DEFAULT_SIZE
    after: str | None = None
    before: str | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, shown: dict[str, Any], wall: float) -> bool:
        """Whether *shown*, a session as the browser sees it, passes every filter."""
        return all(
            PARAMETERS[name].passes(value, shown, wall) for name, value in self.filters.items()
        )


def _status(shown: dict[str, Any], wall: float) -> str:
    if shown["closedAt"] is not None:
        return "CLOSED"
    expires = shown["expiresAt"]
    return "EXPIRED" if expires is not None and unix_seconds(expires) <= wall else "ACTIVE"


def has_expired(document: bytes, wall: float) -> bool:
    """Whether the session of an encoded *document* is no longer ``ACTIVE``, as time alone tells."""
    # Few sessions expire, and a search costs less than a parse.
    return b'"expiresAt":"' in document and _status(json.loads(document), wall) == "EXPIRED"


def parse(query: bytes, *, visible: Collection[str], wall: float, has_pages: bool = True) -> Query:
    """Parse the raw *query* of a list.

    Args:
        query: the bytes after the question mark.
        visible: the fields that some policy shows. Filters read what browsers see, so a filter on
            any other field would mislead.
        wall: Unix seconds, for ``filter[createdAt][period]``.
        has_pages: whether the list has pages; an event stream has none.

    Raises:
        Refused: ``bad_request``. The text names the parameter and says what to send instead.
    """
    if len(query) > MAX_QUERY_BYTES:
        raise Refused("bad_request", f"A query has at most {MAX_QUERY_BYTES} bytes")
    if not query.isascii():
        raise Refused("bad_request", "The query has characters that are not percent-encoded")
    values: dict[str, Any] = {}
    # If there are more parts than parameters, one of them is unknown or repeated.
    for part in query.split(b"&", len(PARAMETERS)) if query else ():
        encoded_name, _, encoded_text = part.partition(b"=")
        name, text = _decode(encoded_name), _decode(encoded_text)
        parameter = PARAMETERS.get(name)
        if parameter is None:
            raise Refused("bad_request", _unknown(name))
        if name in values:
            raise Refused(
                "bad_request", f"{name} is repeated: send it once, as {parameter.expected}"
            )
        if not has_pages and name in _PAGES:
            raise Refused("bad_request", f"{name} has no effect on an event stream: remove it")
        values[name] = _read(name, parameter, text, visible, wall)
    pages = {member: values.pop(name) for name, member in _PAGES.items() if name in values}
    if "after" in pages and "before" in pages:
        raise Refused(
            "bad_request", "page[after] and page[before] exclude each other: send one of them"
        )
    return Query(**pages, filters=values)


def _read(
    name: str, parameter: "Parameter", text: str, visible: Collection[str], wall: float
) -> Any:
    if not parameter.fields.issubset(visible):
        raise Refused("bad_request", f"{name} reads a field that this gateway shows to no browser")
    if len(text) > MAX_TEXT:
        raise Refused("bad_request", f"{name} has more than {MAX_TEXT} characters")
    value = parameter.read(text, wall)
    if value is None:
        raise Refused("bad_request", f"{name} must be {parameter.expected}")
    return value


def _decode(encoded: bytes) -> str:
    """Percent-decode a name or a value; an empty text, which no parameter accepts, if it fails."""
    try:
        return unquote_to_bytes(encoded.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return ""


def _unknown(name: str) -> str:
    import difflib  # noqa: PLC0415  its import costs milliseconds, and only a mistake needs it

    accepted = f"a list accepts only {', '.join(PARAMETERS)}"
    if not _SHORT_NAME.fullmatch(name):
        return f"The query has an unknown parameter; {accepted}"
    lower = {parameter.lower(): parameter for parameter in PARAMETERS}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=_SIMILARITY)
    hint = f"did you mean {lower[close[0]]}?" if close else accepted
    return f"The query has an unknown parameter {name}; {hint}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of `PARAMETERS`.

    Attributes:
        read: reads a text, given the Unix time; returns None if the text is wrong.
        expected: the valid values, in words.
        schema: the valid values, as JSON schema.
        fields: the fields of a session that it reads.
        passes: whether a session, as the browser sees it, passes the filter with this value at
            this Unix time.
    """

    read: Callable[[str, float], Any]
    expected: str
    schema: Schema
    fields: frozenset[str] = frozenset()
    passes: Callable[[Any, dict[str, Any], float], bool] = lambda *_: True


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
_CREATED = frozenset({"createdAt"})


_CURSOR: Final = Parameter(
    _text,
    "a cursor from an answer to this caller",
    {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{24,{MAX_TEXT}}}$"},
)


def _values(name: str, passes: Callable[[Any, dict[str, Any], float], bool]) -> Parameter:
    schema = {"type": "string", "pattern": "^[^,]+(,[^,]+)*$", "maxLength": MAX_TEXT}
    expected = "one value or several, separated by commas"
    return Parameter(_list, expected, schema, frozenset({name}), passes)


def _time(passes: Callable[[Any, dict[str, Any], float], bool]) -> Parameter:
    schema = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
    return Parameter(_milliseconds, "a time in Unix milliseconds", schema, _CREATED, passes)


def _is_since(time: float, shown: dict[str, Any], _: float) -> bool:
    return unix_seconds(shown["createdAt"]) >= time


PARAMETERS: dict[str, Parameter] = {
    "page[size]": Parameter(
        _size,
        f"a whole number from 1 to {MAX_SIZE}",
        {"type": "integer", "minimum": 1, "maximum": MAX_SIZE, "default": DEFAULT_SIZE},
    ),
    "page[after]": _CURSOR,
    "page[before]": _CURSOR,
    "filter[type]": _values("type", lambda values, shown, _: shown["type"] in values),
    "filter[tags]": _values(
        "tags", lambda values, shown, _: any(tag in values for tag in shown["tags"])
    ),
    "filter[taskIdentifier]": _values(
        "taskIdentifier", lambda values, shown, _: shown["taskIdentifier"] in values
    ),
    "filter[externalId]": Parameter(
        _text,
        "one id",
        {"type": "string", "minLength": 1, "maxLength": MAX_TEXT},
        frozenset({"externalId"}),
        lambda value, shown, _: shown["externalId"] == value,
    ),
    "filter[status]": Parameter(
        _statuses,
        f"any of {', '.join(STATUSES)}, separated by commas",
        {"type": "string", "pattern": f"^({_STATUS})(,({_STATUS}))*$", "maxLength": MAX_TEXT},
        frozenset({"closedAt", "expiresAt"}),
        lambda values, shown, wall: _status(shown, wall) in values,
    ),
    "filter[createdAt][period]": Parameter(
        _period,
        "a period before now, such as 30m, 24h or 7d",
        {"type": "string", "pattern": f"^{_PERIOD}$"},
        _CREATED,
        _is_since,
    ),
    "filter[createdAt][from]": _time(_is_since),
    "filter[createdAt][to]": _time(lambda time, shown, _: unix_seconds(shown["createdAt"]) <= time),
}
"""The parameters of a list by name."""

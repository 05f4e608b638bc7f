"""Reads JSON from outside: RFC 8259 without repeated keys and NaN, within bounds on its work.

No two parsers can disagree on such a text. The bounds are checked before the parser runs, at the
speed of a search for bytes: a megabyte of ``{}`` would hold the event loop for a tenth of a second.
"""

import json
from collections.abc import Callable
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from math import isfinite
from typing import Any, Final

MAX_STRUCTURE: Final = 16_384
"""Brackets, braces and commas of one text, without those in strings: each may cost a microsecond.
Measured documents have 60."""
_STRINGS_FACTOR: Final = 8
"""A text may have this many times its bound if most of them are in strings, as in prose."""
_MAX_DIGITS: Final = 309
"""Digits of an integer: a float holds no longer one, and the time to read one grows as its square.
"""
_STRUCTURE: Final = b"{[,"


def loads(text: str | bytes, *, most: int = MAX_STRUCTURE) -> Any:
    """Read *text*.

    Raises:
        ValueError: it is not JSON, an object repeats a key, a number is NaN, infinite or longer
            than a float, it is nested too deeply for the parser, or it has more than *most*
            brackets, braces and commas.
    """
    if len(text) > most and _is_excessive(text, most):
        raise ValueError("too many members")
    try:
        return _load(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


Members = tuple[tuple[str, Any], ...]
"""An object that is not checked for repeated keys yet; a list in JSON is a list."""


def read_object(data: bytes, *, most: int) -> dict[str, Any]:
    """Read an object of which nothing is trusted, by the parser in C alone.

    Objects inside it come as `Members`, and integers as floats, so that no Python code runs for
    each of them.

    Raises:
        ValueError: as `loads`, but *most* counts what is in strings too; or it is not an object.
    """
    if len(data) > most and _structure(data) > most:
        raise ValueError("too many members")
    try:
        members = json.loads(data, object_pairs_hook=tuple, parse_int=float, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return unique(members)


def unique(members: Members) -> dict[str, Any]:
    """Make a dictionary of an object's members.

    Raises:
        ValueError: a key is repeated, or the value is not an object.
    """
    if not isinstance(members, tuple):
        raise ValueError("no object")  # noqa: TRY004  as for other texts
    return _unique(members)


def _is_excessive(text: str | bytes, most: int) -> bool:
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    count = _structure(data)
    return count > most and (
        count > _STRINGS_FACTOR * most or _structure_outside_strings(data, most) > most
    )


def _structure(data: bytes) -> int:
    return len(data) - len(data.translate(None, _STRUCTURE))


def _structure_outside_strings(data: bytes, most: int) -> int:
    """Count exactly, as prose in strings has commas too; *most* bounds the work."""
    quotes_end_strings = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if quotes_end_strings.count(b'"') > 4 * most:  # two strings at most for each comma or brace
        return most + 1
    return _structure(b"".join(quotes_end_strings.split(b'"')[::2]))


def _unique(pairs: "list[tuple[str, Any]] | Members") -> dict[str, Any]:
    # Two parsers disagree on which of two equal keys counts, so neither is believed.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated key")
    return members


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):  # 1e999, which would be written as Infinity
        raise ValueError(number)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def loader(decoder: json.JSONDecoder) -> Callable[[str], Any]:
    """Make a function that reads JSON; without whitespace around it, by the parser in C alone.

    It is made once, because `json.loads` makes a decoder for each call with arguments.
    """
    scan = decoder.scan_once  # type: ignore[attr-defined]

    def load(text: str) -> Any:
        try:
            value, end = scan(text, 0)
        except StopIteration:
            end = -1
        return value if end == len(text) else decoder.decode(text)

    return load


_load: Final = loader(
    json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_int=_integer,
        parse_float=_finite,
        parse_constant=_refuse,
    )
)


_write: Final[Callable[[Any, int], tuple[str, ...]]] = c_make_encoder(
    markers=None,
    default=_refuse,
    encoder=encode_basestring,
    indent=None,
    key_separator=":",
    item_separator=",",
    sort_keys=False,
    skipkeys=False,
    allow_nan=False,
)


def dumps(value: Any) -> str:
    """Write *value*, which was read from JSON, with a writer that is made once.

    `json.JSONEncoder` makes a writer for each text.

    Raises:
        ValueError: a number is NaN or infinite, as those beyond the floats are when they are read.
    """
    return "".join(_write(value, 0))

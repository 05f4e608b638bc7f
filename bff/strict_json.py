"""Reads JSON of which no two parsers can disagree: RFC 8259 without repeated keys and NaN."""

import json
from math import isfinite
from typing import Any, Final


def loads(text: str | bytes) -> Any:
    """Read *text*.

    Raises:
        ValueError: it is not JSON, an object repeats a key, a number is NaN or infinite, it is not
            UTF-8, or it is nested too deeply for the parser.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two parsers disagree on which of two equal keys counts, so neither is believed.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated key")
    return members


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):  # 1e999, which would be written as Infinity
        raise ValueError(number)
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
)
"""Made once: `json.loads` makes one for each call with arguments."""

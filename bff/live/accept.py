"""Decides by `Accept` whether a request is for an event stream (RFC 9110 §12.5.1). Pure.

An event stream needs a connection for itself, so only a request that prefers it gets one: it names
``text/event-stream`` with a greater weight than JSON. Everything else gets JSON, as before there
were event streams: equal weights, wildcards, ``q=0``, and lists that cannot be read.
"""

import re
from collections.abc import Sequence
from typing import Final

_MAX_RANGES: Final = 32
"""Media ranges of one request that are read. Without the bound one request could cost as much as
hundreds of hits."""
_MAX_PARAMETERS: Final = 8
"""Parameters of one range. A range with more is ignored, or 64 KiB of them would cost 10 ms before
any limit has counted the request."""
_EVENTS: Final = b"text/event-stream"
_JSON: Final = (b"application/json", b"application/*", b"*/*")
"""The ranges that match JSON, the most specific first."""
_WEIGHT: Final = re.compile(rb"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def prefers_events(values: Sequence[bytes]) -> bool:
    """Whether the values of all `Accept` lines together prefer an event stream to JSON."""
    text = b",".join(values).lower()
    if _EVENTS not in text:
        return False
    weights: dict[bytes, float] = {}
    for part in text.split(b",", _MAX_RANGES)[:_MAX_RANGES]:
        name, *parameters = part.split(b";", _MAX_PARAMETERS + 1)
        weight = _weight(parameters) if len(parameters) <= _MAX_PARAMETERS else None
        if weight is not None:
            name = name.strip()
            weights[name] = max(weights.get(name, 0.0), weight)
    json = next((weights[name] for name in _JSON if name in weights), 0.0)
    return weights.get(_EVENTS, 0.0) > json


def _weight(parameters: Sequence[bytes]) -> float | None:
    """Read the weight among *parameters*; None if it is malformed, so that the range is ignored."""
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            text = value.strip()
            return float(text) if _WEIGHT.fullmatch(text) else None
    return 1.0

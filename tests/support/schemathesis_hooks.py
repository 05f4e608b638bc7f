"""Hooks for Schemathesis, which does not know that a cursor must come from an answer."""

import re
from typing import Any

import schemathesis

CURSORS = ("page[after]", "page[before]")


@schemathesis.hook
def before_call(_: Any, case: "schemathesis.Case[Any]", __: Any) -> None:
    """Remove invented cursors that match the schema; other tests use real ones."""
    for name in CURSORS:
        value = (case.query or {}).get(name)
        if isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]{24,1024}", value):
            del case.query[name]

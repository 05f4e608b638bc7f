"""Sends, lists and undoes revocations at the ops port of a running gateway (`bff revoke`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from bff.ops.client import confirm

PATH: Final = "/revocations"
_KINDS: Final = ("jti", "session", "subject")
T = TypeVar("T", bound=Callable[..., Any])


def option_once(*names: str, **settings: Any) -> Callable[[T], T]:
    """Declare an option that may be given once.

    If it were given twice, click would use the last value alone: one revocation would be missing.
    """

    def once(_: click.Context, parameter: click.Parameter, values: Sequence[Any]) -> Any:
        if len(values) > 1:
            raise click.UsageError(f"Give {parameter.opts[0]} once; repeat the command for another")
        return values[0] if values else None

    return click.option(*names, multiple=True, callback=once, **settings)


def revoke(host: str, port: int, body: Mapping[str, Any], *, undo: bool) -> str:
    """Send or undo one revocation, and return a line that says so.

    Raises:
        OpsError: no gateway answered, or it refused.
    """
    answer = json.loads(confirm(host, port, "DELETE" if undo else "POST", PATH, body))
    named = next((f"{kind} {body[kind]}" for kind in _KINDS if kind in body), "all tokens")
    return f"{'Undone' if undo else 'Revoked'}: {named}, kept until {_date(answer['until'])}"


def listed(host: str, port: int) -> list[str]:
    """List the revocations in force, one a line.

    Raises:
        OpsError: as `revoke`.
    """
    revocations = json.loads(confirm(host, port, "GET", PATH))["revocations"]
    return [_line(one) for one in revocations] or ["No revocation is in force."]


def _line(revocation: Mapping[str, Any]) -> str:
    named = revocation["kind"] + (f" {revocation['value']}" if revocation["value"] else " tokens")
    before = revocation["issued_before"]
    moment = "" if before is None else f", issued before {_date(before)}"
    return f"{named}{moment}, kept until {_date(revocation['until'])}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

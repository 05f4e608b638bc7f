"""Sends, lists and undoes revocations at the ops port of a running gateway (`bff revoke`)."""

import json
from collections.abc import Mapping
from typing import Any, Final

from bff.clock import shown_date
from bff.ops.client import confirm

PATH: Final = "/revocations"
_KINDS: Final = ("jti", "session", "subject")


def revoke(host: str, port: int, body: Mapping[str, Any], *, undo: bool) -> str:
    """Send or undo one revocation, and return a line that says so.

    Raises:
        OpsError: no gateway answered, or it refused.
    """
    answer = json.loads(confirm(host, port, "DELETE" if undo else "POST", PATH, body))
    named = next((f"{kind} {body[kind]}" for kind in _KINDS if kind in body), "all tokens")
    return f"{'Undone' if undo else 'Revoked'}: {named}, kept until {shown_date(answer['until'])}"


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
    moment = "" if before is None else f", issued before {shown_date(before)}"
    return f"{named}{moment}, kept until {shown_date(revocation['until'])}"

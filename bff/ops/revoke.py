"""Sends, lists and undoes revocations at the ops port of a running gateway (`bff revoke`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

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


_TIMEOUT: Final = 5.0
"""Seconds for each read and write; the gateway waits up to a second for its workers and store."""


class RevokeError(Exception):
    """The gateway did not confirm; the text is its answer, or a remedy if it gave none."""


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``host:port`` or ``http://host:port``.

    Raises:
        ValueError: the text has another form.
    """
    parts = urlsplit(text if "//" in text else f"//{text}")
    if parts.scheme not in ("", "http") or not (parts.hostname and parts.port) or parts.path[1:]:
        raise ValueError(text)
    return parts.hostname, parts.port


def revoke(host: str, port: int, body: Mapping[str, Any]) -> str:
    """Send one revocation and return the gateway's confirmation.

    Raises:
        RevokeError: no gateway answered, or it refused.
    """
    return _send(host, port, "POST", body)


def undo(host: str, port: int, body: Mapping[str, Any]) -> str:
    """Undo one revocation and return the gateway's confirmation.

    Raises:
        RevokeError: as `revoke`.
    """
    return _send(host, port, "DELETE", body)


def listed(host: str, port: int) -> list[str]:
    """List the revocations in force, one a line.

    Raises:
        RevokeError: as `revoke`.
    """
    revocations = json.loads(_send(host, port, "GET", {}))["revocations"]
    return [_line(one) for one in revocations] or ["No revocation is in force."]


def _line(revocation: Mapping[str, Any]) -> str:
    named = revocation["kind"] + (f" {revocation['value']}" if revocation["value"] else " tokens")
    before = revocation["issued_before"]
    moment = "" if before is None else f", issued before {_date(before)}"
    return f"{named}{moment}, kept until {_date(revocation['until'])}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _send(host: str, port: int, method: str, body: Mapping[str, Any]) -> str:
    connection = HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        if body:
            headers = {"content-type": "application/json"}
            connection.request(method, "/revocations", json.dumps(body), headers)
        else:
            connection.request(method, "/revocations")
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, HTTPException) as exc:
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        raise RevokeError(
            f"No gateway answers on its ops port at {host}:{port} ({reason}); set --ops, or "
            "BFF_OPS_HOST and BFF_OPS_PORT"
        ) from None
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise RevokeError(text)
    return text

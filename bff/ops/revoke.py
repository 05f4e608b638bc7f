"""Sends a revocation to the ops port of a running gateway (`bff revoke`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from bff.config.settings import SETTINGS

T = TypeVar("T", bound=Callable[..., Any])


def option_once(*names: str, **settings: Any) -> Callable[[T], T]:
    """Declare an option that is refused if given twice: only one of the two would be revoked."""

    def once(_: click.Context, parameter: click.Parameter, values: Sequence[Any]) -> Any:
        if len(values) > 1:
            raise click.UsageError(f"Give {parameter.opts[0]} once; repeat the command for another")
        return values[0] if values else None

    return click.option(*names, multiple=True, callback=once, **settings)


_TIMEOUT: Final = 5.0
"""Seconds for each read and write; the gateway waits up to a second for its workers and store."""


class RevokeError(Exception):
    """The gateway did not confirm the revocation; the text is its answer or the remedy."""


def ops_address(environ: Mapping[str, str]) -> str:
    """Return the address of the ops port that the settings in *environ* give."""
    host, port = (
        environ.get(name, SETTINGS[name].default) for name in ("BFF_OPS_HOST", "BFF_OPS_PORT")
    )
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


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
    connection = HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/revocations", json.dumps(body), headers)
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

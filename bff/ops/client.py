"""Requests to the ops port of a running gateway, for the commands `bff revoke` and `bff status`."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

_TIMEOUT: Final = 7.0
"""Seconds for each read and write. The gateway waits up to a second for its workers and its store,
and for upstream if `/readyz` is verbose."""


class OpsError(Exception):
    """The gateway refused or did not confirm: its answer; or none answered: the remedy."""


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``host:port`` or ``http://host:port``.

    Raises:
        ValueError: the text has another form.
    """
    parts = urlsplit(text if "//" in text else f"//{text}")
    if parts.scheme not in ("", "http") or not (parts.hostname and parts.port) or parts.path[1:]:
        raise ValueError(text)
    return parts.hostname, parts.port


def send(
    host: str, port: int, method: str, path: str, body: Mapping[str, Any] | None = None
) -> tuple[int, str]:
    """Send one request; return the status and the body of the answer.

    Raises:
        OpsError: no gateway answers there.
    """
    connection = HTTPConnection(host, port, timeout=_TIMEOUT)
    data = None if body is None else json.dumps(body)
    headers = {} if body is None else {"content-type": "application/json"}
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, HTTPException) as exc:
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        raise OpsError(
            f"No gateway answers on its ops port at {host}:{port} ({reason}); start one "
            "(bff serve), or name its address: --ops, or BFF_OPS_HOST and BFF_OPS_PORT"
        ) from None
    finally:
        connection.close()


def confirm(
    host: str, port: int, method: str, path: str, body: Mapping[str, Any] | None = None
) -> str:
    """Send one request and return the body of its 200.

    Raises:
        OpsError: no gateway answers there, or it refuses.
        ValueError, KeyError, TypeError: the answer is not a gateway's.
    """
    status, text = send(host, port, method, path, body)
    if status != HTTPStatus.OK:
        raise OpsError(json.loads(text)["error"])
    return text

"""``python -m bff.health``: exits with 0 if the ops port of this machine answers (health checks).

It finds the port as the gateway does, in any address family, and goes through no proxy. Beside the
reader of files it imports only the standard library, because a container runs it every few seconds.
"""

import contextlib
import os
import sys
import tomllib
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException

from bff.config import files

_TIMEOUT = 2.0
"""Seconds."""
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a wildcard address answers


def address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port of the ops port: from variables, ``BFF_CONFIG``, or the defaults."""
    file: dict[str, object] = {}
    # The gateway reports a wrong file.
    with contextlib.suppress(KeyError, OSError, ValueError, RecursionError):
        file = tomllib.loads(files.read_text(environ["BFF_CONFIG"].strip()))
    host, port = (
        str(environ.get(name, "").strip() or file.get(name) or default)
        for name, default in (("BFF_OPS_HOST", "127.0.0.1"), ("BFF_OPS_PORT", "9787"))
    )
    return _LOOPBACK.get(host, host), int(port)


def main() -> int:
    """Ask once; returns the status of the process."""
    try:
        connection = HTTPConnection(*address(os.environ), timeout=_TIMEOUT)  # noqa: TID251  as `cli`
        connection.request("GET", "/healthz", headers={"host": "localhost"})
        status = connection.getresponse().status
    except (OSError, HTTPException, ValueError) as exc:
        print(f"The ops port does not answer: {type(exc).__name__}", file=sys.stderr)  # noqa: T201
        return 1
    return int(status != 200)  # noqa: PLR2004  importing http.HTTPStatus costs more than the check


if __name__ == "__main__":
    sys.exit(main())

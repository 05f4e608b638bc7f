"""The address of the store, and what is said when nobody is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engines import Engine, free_port
from world import Gateway, environ, running_upstream

from bff import settings
from bff.store import Place


def place(url: str) -> Place:
    told = settings.load(environ(BFF_STORE_URL=url)).store_url
    assert told is not None
    return told


def test_addresses(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    plain = {"username": None, "password": None, "database": 0, "tls": False, "cluster": False}

    assert place("valkey://host") == Place("host", 6379, **plain)
    assert place("redis://host:7/2") == Place("host", 7, **plain | {"database": 2})
    assert place("valkeys://:p%40%2Fss@host") == Place(
        "host", 6379, **plain | {"password": "p@/ss", "tls": True}
    )
    assert place(f"rediss+cluster://u:p@[::1]:7?ca_file={ca}") == Place(
        "::1", 7, "u", "p", 0, tls=True, cluster=True, ca_file=str(ca)
    )


@pytest.mark.parametrize(
    "url",
    [
        "host:6379",
        "http://host",
        "valkey://",
        "valkey://host:port",
        "valkey://host/name",
        "valkey+cluster://host/1",
        "valkeys://host?ssl_cert_reqs=none",
        "valkey://host?ca_file=/nowhere",
        "valkeys://host?ca_file=/nowhere",
        "valkey://host#0",
        "unix:///tmp/socket",
    ],
)
def test_what_is_no_address_is_a_problem_with_a_remedy(url: str) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        place(url.replace("//host", "//u:sentinel@host"))

    (problem,) = caught.value.problems
    assert problem.startswith("BFF_STORE_URL ")
    assert "sentinel" not in problem


def test_credentials_show_nowhere() -> None:
    told = settings.load(environ(BFF_STORE_URL="valkey://name:sentinel@host"))

    assert "sentinel" not in repr(told)
    assert "name" not in repr(told.store_url)


def test_a_gateway_whose_store_is_not_there_says_so_and_ends() -> None:
    told = environ(
        BFF_STORE_URL=f"valkey://name:sentinel@127.0.0.1:{free_port()}",
        BFF_PORT="0",
        BFF_OPS_PORT="0",
    )

    done = subprocess.run(
        [sys.executable, "-m", "bff", "serve"],
        env={"PATH": os.environ["PATH"], **told},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("BFF_STORE_URL: the store at 127.0.0.1:")
    assert "cannot be reached" in done.stderr
    assert "sentinel" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_whose_store_is_optional_begins_alone(tmp_path: Path) -> None:
    engine = Engine("valkey", tmp_path)
    told = {"BFF_STORE_URL": engine.url, "BFF_STORE_OPTIONAL": "true"}
    with running_upstream() as upstream, Gateway(upstream.port, **told) as gateway:
        assert gateway.output.count('"store_away"') == 1

"""`bff revoke`: the command, the address of the ops port, and a running gateway."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.world import (
    PATIENCE,
    Gateway,
    http,
    read,
)

from bff.cli import main

TOKENS = (Path(__file__).parent.parent.parent / "docs" / "TOKENS.md").read_text()


def bff(*arguments: str, **environ: str) -> Result:
    """Run a command without any setting but *environ*: no secret key, no file."""
    return CliRunner().invoke(main, arguments, env=environ)


def test_commands_of_the_docs_revoke_at_a_running_gateway(gateway: Gateway) -> None:
    def status(token: str, id_: str = "chat-1") -> int:
        headers = {"authorization": f"Bearer {token}"}
        return http.get(f"{gateway.url}/api/v1/sessions/{id_}", headers=headers).status_code

    ids, port = read("chat-1", "chat-2"), str(gateway.ops_port)
    claims: dict[str, dict[str, Any]] = {
        "ann": {"act": {"sub": "ann"}},
        "7d1e": {"jti": "7d1e"},
        "session": {"iat": 1},
    }
    tokens = {name: gateway.token(*ids, **more) for name, more in claims.items()}
    later = gateway.token(*read("chat-2"))
    assert [status(token) for token in tokens.values()] == [200] * 3
    session, actor, jti, moment = re.findall(r"^bff (revoke .*)$", TOKENS, re.MULTILINE)

    assert bff(*jti.split(), BFF_OPS_PORT=port).exit_code == 0
    assert [status(token) for token in tokens.values()] == [200, 401, 200]
    assert bff(*actor.split(), "--ops", f"http://127.0.0.1:{port}/").exit_code == 0
    assert [status(token) for token in tokens.values()] == [401, 401, 200]
    done = bff(*session.split(), "--ttl", "60", "--ops", f"127.0.0.1:{port}")
    assert done.exit_code == 0
    assert re.match(r"Revoked: session chat-1, kept until \d{4}-\d\d-\d\dT", done.stdout)
    assert (status(tokens["session"]), status(tokens["session"], "chat-2")) == (403, 200)
    assert bff(*moment.split(), BFF_OPS_PORT=port).exit_code == 0
    assert (status(tokens["session"], "chat-2"), status(later, "chat-2")) == (401, 200)


def test_command_reports_what_the_gateway_refuses(gateway: Gateway) -> None:
    done = bff("revoke", "--issued-before", "9999999999999", BFF_OPS_PORT=str(gateway.ops_port))

    assert done.exit_code == 1
    assert "may not be later than now" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "::1"])
def test_command_names_the_address_without_a_gateway(host: str) -> None:
    done = bff("revoke", "--jti", "one", BFF_OPS_HOST=host, BFF_OPS_PORT="1")

    assert done.exit_code == 1
    assert f"No gateway answers on its ops port at {host}:1 (" in done.stderr
    assert "BFF_OPS_HOST" in done.stderr


def test_command_works_as_a_process_without_settings(gateway: Gateway) -> None:
    command = [sys.executable, "-m", "bff", "revoke", "--jti", "one", "chat-1"]
    done = subprocess.run(command, env={}, check=False, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2  # --jti and a session

    subprocess.run(
        [*command[:-1], "--ops", f"localhost:{gateway.ops_port}"],
        env={},
        check=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    "arguments",
    [(), ("--jti", "a", "--actor", "b"), ("--jti", "a", "--session", "b"), ("--ttl", "9")],
)
def test_command_revokes_one_kind_at_a_time(arguments: tuple[str, ...]) -> None:
    done = bff("revoke", *arguments)

    assert done.exit_code == 2
    assert "one of --session, --actor and --jti, or --issued-before" in done.stderr


@pytest.mark.parametrize("address", ["gateway", "https://gateway:1", "gateway:x", "gateway:1/path"])
def test_command_refuses_an_unusable_address(address: str) -> None:
    done = bff("revoke", "--jti", "a", "--ops", address)

    assert done.exit_code == 2
    assert "The ops port's address is HOST:PORT" in done.stderr


@pytest.mark.parametrize("arguments", [("--jti", "a"), ("--issued-before", "1"), ("chat-1",)])
def test_former_command_names_its_new_name(arguments: tuple[str, ...]) -> None:
    done = bff("token", "--revoke", *arguments)

    assert done.exit_code == 2
    assert "bff token --revoke is renamed to bff revoke" in done.stderr

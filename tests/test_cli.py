"""The commands, as processes."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import jwt
import pytest
from support import command_line
from support.demos import printed_by, running_demo
from support.engines import free_port
from support.world import (
    KEPT,
    OWN_KEY,
    PATIENCE,
    ROOT_KEY,
    SECRET_KEY,
    environ,
    http,
)

from bff import __version__, cli
from bff.sessions import ids
from bff.tokens.verify import AUDIENCE, Issuer, Verifier

ROOT = Path(__file__).parent.parent


def process(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bff", *arguments],
        env=KEPT | environ(**changes),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def bff(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    return command_line.bff(*arguments, environ=environ(**changes))


def test_version_is_printed() -> None:
    assert process("--version").stdout == f"bff, version {__version__}\n"


def test_output_to_a_full_disk_is_a_problem_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bff", "check"],
            env=KEPT | environ(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "Cannot write the output (No space left on device)\n"


def test_output_has_every_letter_in_any_encoding() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bff", "check"],
        env=KEPT | environ(BFF_EXPOSE_METADATA="ステップ,Größe") | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        encoding="latin-1",
        timeout=PATIENCE,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u30b9" in done.stdout
    assert "Größe" in done.stdout


def test_disk_error_of_another_file_is_not_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def harden() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "harden", harden)
    with pytest.raises(OSError, match="No space left on device"):
        bff("serve")


@pytest.mark.parametrize("command", [("serve",), ("check",), ("token", "--session", "a")])
def test_command_prints_every_problem_of_the_settings(command: tuple[str, ...]) -> None:
    done = process(*command, BFF_PORT="x", BFF_RATE_LIMIT="y", TRIGGER_SECRET_KEY=None)

    assert done.returncode == 2
    assert done.stdout == ""
    for name in ("BFF_PORT", "BFF_RATE_LIMIT", "TRIGGER_SECRET_KEY"):
        assert f"- {name} " in done.stderr
    assert "Traceback" not in done.stderr
    assert OWN_KEY not in done.stderr


def test_check_prints_no_secret() -> None:
    done = bff("check")

    assert done.returncode == 0
    assert "The settings can be used." in done.stdout
    assert SECRET_KEY not in done.stdout
    assert OWN_KEY not in done.stdout


def test_serve_names_the_setting_of_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = process("serve", BFF_PORT=str(taken.getsockname()[1]))

    assert done.returncode == 2
    assert "(Address already in use); set BFF_PORT" in done.stderr


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_serve_names_the_setting_of_a_foreign_host(host: str) -> None:
    done = process("serve", BFF_HOST=host, BFF_PORT="0", BFF_OPS_PORT="0")

    assert done.returncode == 2
    assert re.search(
        r"\((no such host|Cannot assign requested address)\); set BFF_HOST", done.stderr
    )


def test_help_shows_each_command_in_a_whole_sentence() -> None:
    assert "..." not in bff("--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"BFF_SIGNING_KEYS": None}, "set BFF_SIGNING_KEYS to a new one"),
        (
            {"BFF_SIGNING_KEYS": ROOT_KEY, "BFF_ENVIRONMENT_ID": None},
            "BFF_ENVIRONMENT_ID, which is not set; bff check --probe shows it",
        ),
    ],
    ids=range(2),
)
def test_token_names_the_setting_that_minting_needs(
    changes: dict[str, str | None], text: str
) -> None:
    done = bff("token", "--session", "a", **changes)

    assert done.returncode == 2
    assert text in done.stderr


def test_documented_completion_completes_commands() -> None:
    page = (Path(__file__).parents[1] / "docs/OPERATIONS.md").read_text()
    sources = re.findall(r"_BFF_COMPLETE=(\w+)_source bff", page)

    assert sources == ["bash", "zsh", "fish"]
    for shell in sources:
        words = {"COMP_WORDS": "bff se", "COMP_CWORD": "se" if shell == "fish" else "1"}
        done = subprocess.run(
            [Path(sys.executable).with_name("bff")],
            env=KEPT | words | {"_BFF_COMPLETE": f"{shell}_complete"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "serve" in done.stdout.replace(",", "\n").split(), (shell, done.stdout)


def test_check_refuses_an_option_without_effect() -> None:
    assert "need --probe" in bff("check", "--url", "https://app.example.com").stderr


@pytest.mark.parametrize("ids", [("--session", ""), ("chat-1", ""), ("..",)])
def test_token_refuses_an_invalid_session_id(ids: tuple[str, ...]) -> None:
    done = bff("token", *ids)  # the scope read:sessions: covers every session

    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search("A session's id has 1 to 256 characters|--session is empty", done.stderr)


def test_token_mints_a_token_that_the_gateway_accepts() -> None:
    done = bff("token", "--session", "chat-1", "a/b", "--ttl", "60", "--actor", "ann")
    (token,) = done.stdout.split()
    verifier = Verifier([Issuer("default", "env_test", (OWN_KEY,))], ids.grant)

    caller = verifier.verify(token.encode(), time.time())

    assert caller.granted.ids == {"chat-1", "a/b"}
    assert caller.has_actor


def test_demo_upstream_alone_serves_a_gateway_of_ones_own(tmp_path: Path) -> None:
    """The printed commands start a gateway in front of the pretend upstream."""
    port = free_port()
    command = [sys.executable, "-u", "-m", "bff", "demo", "--upstream-only", "--port", "0"]
    with subprocess.Popen(command, env=KEPT, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = printed_by(process).replace("8787", str(port)).replace("\\\n", "").splitlines()
            exports = [line for line in lines if line.startswith("export ")]
            ask = next(line for line in lines if line.startswith("curl "))
            script = tmp_path / "paste.sh"
            script.write_text(
                "\n".join(
                    [
                        f'bff() {{ {sys.executable} -m bff "$@"; }}',
                        *exports,
                        "bff check --probe",
                        f"BFF_OPS_PORT=0 {sys.executable} -m bff serve --port {port} &",
                        "trap 'kill $!' EXIT",
                        ask.replace(
                            "curl", "curl -s --retry-connrefused --retry 60 --retry-delay 1"
                        ),
                    ]
                )
            )
            done = subprocess.run(
                ["bash", str(script)],
                env=KEPT, capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
            process.send_signal(signal.SIGINT)
            status = process.wait(timeout=PATIENCE)
        finally:
            process.kill()

    assert status == 0, "Ctrl-C ends it"
    assert "Problems: none" in done.stdout
    assert '"externalId":"chat-live"' in done.stdout
    assert "triggerConfig" not in done.stdout


OWN_ORIGIN = "http://localhost:8080"


def test_demo_commands_show_a_hit_a_403_a_304_and_a_429(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bff", "demo", "--port", str(port), "--origin", OWN_ORIGIN],
        env=KEPT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = printed_by(process)
        asked = http.get(f"http://127.0.0.1:{port}/healthz", headers={"origin": OWN_ORIGIN})
        # The printed commands, without comments and prose.
        lines = [x for x in printed.splitlines() if re.match(r"(curl|[A-Z]+=)", x)]
        first = next(line for line in lines if line.startswith("curl"))
        script = tmp_path / "paste.sh"
        script.write_text("\n".join([*lines[:3], first, *lines[3:]]))
        pasted = subprocess.run(
            ["bash", str(script)], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE)
        process.stdout.close()

    statuses = re.findall(r"^HTTP/1\.1 (\d+)", pasted, re.MULTILINE)
    assert statuses == ["200", "200", "403", "304"]
    assert "cache-status: bff; hit" in pasted
    document = json.loads(re.search(r"^\{.*?\}$", pasted, re.MULTILINE)[0])
    assert "triggerConfig" not in document
    signing_key = re.search(r"^GATEWAY_SIGNING_KEY=(\w+)$", printed, re.MULTILINE)[1]
    token = re.search(r"^ANN='Authorization: Bearer (\S+)'$", printed, re.MULTILINE)[1]
    assert jwt.decode(token, signing_key, algorithms=["HS256"], audience=AUDIENCE)
    assert "http://localhost:3000" in printed, "an origin whose pages may ask"
    assert asked.headers["access-control-allow-origin"] == OWN_ORIGIN
    assert set(document["metadata"]) <= {"progress"}
    assert re.search(r"^\s+60 200$", pasted, re.MULTILINE)
    assert re.search(r"^\s+1 429$", pasted, re.MULTILINE)
    assert process.returncode == 0


# Ctrl-C may wait for nothing, however long `bff serve` would.
_NEVER = """
from bff.cli import main
from bff.server import run
run.DRAIN_SECONDS = run.SHUTDOWN_SECONDS = 3600
main(["demo", "--port", "0"])
"""


def test_demo_ends_at_once_with_open_connections() -> None:
    with (
        httpx2.Client(timeout=30) as kept,
        httpx2.Client(timeout=30) as live,
        running_demo(sys.executable, "-c", _NEVER, cwd=ROOT, environ=KEPT) as printed,
    ):
        base = re.search(r"A gateway answers at (http://[\d.]+:\d+)", printed)[1]
        token = re.search(r"^ANN='Authorization: (Bearer \S+)'$", printed, re.MULTILINE)[1]
        headers = {"authorization": token, "accept": "text/event-stream"}
        assert kept.get(base + "/healthz").status_code == 200
        request = live.build_request("GET", base + "/api/v1/sessions", headers=headers)
        events = live.send(request, stream=True).iter_text()
        assert "event: sessions" in next(events) + next(events, "")
    # `running_demo` has sent SIGINT, and waited for the end.


def test_make_demo_works_beside_another_demo() -> None:
    """The command of the README, as it is written; make uses the environment of this Python."""
    environ = KEPT | {"VENV": sys.prefix}
    with (
        running_demo("make", "demo", cwd=ROOT, environ=environ) as one,
        running_demo("make", "demo", cwd=ROOT, environ=environ) as other,
    ):
        bases = [
            re.search(r"A gateway answers at (http://[\d.]+:\d+)", printed)[1]
            for printed in (one, other)
        ]
        pages = [http.get(base + "/healthz") for base in bases]
        # Pasted in a shell where `bff` is not on PATH.
        status = re.search(r"^/\S+ status --ops \S+$", one, re.MULTILINE)[0]
        shown = subprocess.run(
            ["bash", "-c", f"{status} --once"],
            env={"PATH": os.defpath}, capture_output=True, text=True, check=True,
        )  # fmt: skip

    assert len({*bases}) == 2
    assert "health" in shown.stdout
    assert [page.status_code for page in pages] == [200, 200]
    assert re.search(r"Port 8787 is taken, so the demo uses \d+", other)


def test_demo_names_the_remedy_for_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = process("demo", "--port", str(taken.getsockname()[1]))

    assert done.returncode == 2
    assert "(Address already in use); set --port" in done.stderr


def test_demo_names_the_problem_of_an_origin() -> None:
    done = process("demo", "--port", "0", "--origin", "localhost:8080")

    assert done.returncode == 2
    assert "'localhost:8080', which no browser sends" in done.stderr

"""Output that nobody reads, or that cannot be written: it must not matter to anything else."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import httpx2
import pytest
from support.engines import free_port
from support.world import (
    KEPT,
    ORIGIN,
    PATH,
    PATIENCE,
    Executed,
    Gateway,
    http,
    running_upstream,
    until,
)

# `run` is the gateway. A pipe holds 64 KiB: after as many bytes its next line waits.
FULL_PIPE = "{ head -c 65536 /dev/zero; run; }"
SHELL = {
    "a reader that stops": f"{FULL_PIPE} | sleep 1000",
    "all output to a reader that stops": f"{FULL_PIPE} 2>&1 | sleep 1000",
    "a reader that leaves": "run > >(head -1)",
    "all output to a reader that leaves": "run > >(head -1) 2>&1",
    "a full disk": "run > /dev/full",
    "all output to a full disk": "run > /dev/full 2>&1",
    "closed": "run >&-",
    "all closed": "run <&- >&- 2>&-",
}
SHUTDOWN_SECONDS = 40
"""More than the end of an idle gateway takes on a loaded machine, and less than a wait for ever."""


class Piped(Executed):
    """A gateway below a shell that treats its output badly."""

    def __init__(self, upstream_port: int, shell: str, *options: str) -> None:
        self.port, self.ops_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ops_url = f"http://127.0.0.1:{self.ops_port}"
        ports = {"BFF_PORT": str(self.port), "BFF_OPS_PORT": str(self.ops_port)}
        limits = {"BFF_BAD_TOKEN_LIMIT": "off", "BFF_IP_RATE_LIMIT": "off"}
        super().__init__(upstream_port, *options, **ports, **limits)
        # In a pipeline the gateway is not the shell's own process: it tells its id.
        run = 'exec 9>&1 >/dev/null; run() { echo $BASHPID >&9; exec "$@" 9>&-; }; '
        script = run + shell.replace("run", 'run "$@"', 1)
        self.command = ["bash", "-c", script, "bash", *self.command]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.command,
            env=KEPT | self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())
        self._wait()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> float:
        """Send SIGTERM; return the seconds until the process has ended."""
        os.kill(self.pid, signal.SIGTERM)
        began = time.monotonic()
        until(lambda: not alive(self.pid))
        return time.monotonic() - began


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def refuse(gateway: Gateway, times: int) -> None:
    """Cause refusals, whose lines are logged."""
    with httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as client:
        for number in range(times):
            sent = {"authorization": "Bearer x", "origin": ORIGIN}
            answer = client.get(PATH + f"chat-{number}", headers=sent)
            assert answer.status_code == 401
            assert answer.headers["access-control-allow-origin"] == ORIGIN


def lost(gateway: Gateway) -> float:
    text = http.get(gateway.ops_url + "/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("bff_log_lines_lost_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("shell", SHELL)
def test_37_output_that_fails_changes_no_answer(upstream: running_upstream, shell: str) -> None:
    with Piped(upstream.port, SHELL[shell]) as gateway:
        refuse(gateway, 100)
        if "stops" not in shell:  # there the lines wait
            until(lambda: lost(gateway) > 0)
        good = {"authorization": f"Bearer {gateway.token('read:sessions')}"}
        assert http.get(gateway.url + PATH + "chat-1", headers=good).status_code == 200
        assert http.get(gateway.ops_url + "/healthz").status_code == 200
        assert gateway.stop() < SHUTDOWN_SECONDS


@pytest.mark.parametrize("shell", ["all output to a reader that stops", "all closed"])
def test_37_output_that_fails_stops_no_worker(upstream: running_upstream, shell: str) -> None:
    with Piped(upstream.port, SHELL[shell], "--workers", "2") as gateway:
        refuse(gateway, 100)
        assert http.get(gateway.ops_url + "/metrics").text.count("bff_worker_up{") == 2
        ended = min(children(gateway.pid))
        os.kill(ended, signal.SIGKILL)  # the supervisor logs it
        until(lambda: len(children(gateway.pid) - {ended}) == 2)
        until(
            lambda: 'bff_worker_up{worker="0"} 1.0' in http.get(gateway.ops_url + "/metrics").text
        )
        assert gateway.stop() < SHUTDOWN_SECONDS

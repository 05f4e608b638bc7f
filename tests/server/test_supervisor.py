"""Workers of one supervisor: it replaces those that die or hang, and passes signals on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.engines import Engine
from support.workers import (
    by_worker,
    child_pids,
    get_session,
    kill_worker,
    reach_all,
    running_workers,
    up,
    wait_for_replacement,
)
from support.world import (
    NEW_KEY,
    OFF,
    OWN_KEY,
    PATIENCE,
    Executed,
    Gateway,
    claims,
    http,
    read,
    running_upstream,
    sign,
    until,
)

from bff.demo.upstream import Seen

# Two workers, of which the first one behaves as the argument says: how long its loop does not run
# before and after the first heartbeat, and how often. A replacement does not.
WORKERS = """
import asyncio, sys, time
from bff.server.supervisor import supervise
from bff.log_writer import LogWriter
from bff.telemetry import Telemetry

telemetry = Telemetry(LogWriter(1))
worker = supervise(2, telemetry.log, hung_seconds=3)
before, after, times = map(float, sys.argv[1:])
if worker.number or worker.replaces:
    before = after = 0

async def run():
    time.sleep(before)
    worker.start_heartbeat()
    for _ in range(int(times)):
        time.sleep(after)
        await asyncio.sleep(0.01)
    telemetry.log.info("ready", worker=worker.number, replaces=worker.replaces)
    await asyncio.sleep(3600)

asyncio.run(run())
"""


def ready_workers(number: int, *arguments: float) -> list[dict[str, object]]:
    """Run two workers until *number* were ready; return the log lines until then."""
    lines: list[dict[str, object]] = []
    with subprocess.Popen(
        [sys.executable, "-c", WORKERS, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while sum(line["event"] == "ready" for line in lines) < number:
            lines.append(json.loads(process.stdout.readline()))
        process.terminate()
    return lines


def test_hung_worker_is_killed_and_replaced() -> None:
    lines = ready_workers(2, 0, 3600, 1)

    events = [(line["event"], line["worker"]) for line in lines]
    assert sorted(events) == [
        *(("ready", 0), ("ready", 1)),
        *(("worker_died", 0), ("worker_hung", 0)),
    ]
    (died,) = [line for line in lines if line["event"] == "worker_died"]
    assert died["status"] == -signal.SIGKILL
    assert [line["replaces"] for line in lines if line["event"] == "ready"] == [False, True]


@pytest.mark.parametrize(
    ("before", "after", "times"), [(5, 0, 1), (0, 1, 6)], ids=["slow to start", "busy"]
)
def test_living_worker_is_not_killed(before: float, after: float, times: int) -> None:
    lines = ready_workers(2, before, after, times)

    assert [line["event"] for line in lines] == ["ready", "ready"]


STUBBORN = """
import asyncio, signal
from bff.log_writer import LogWriter
from bff.server import supervisor
from bff.telemetry import Telemetry

supervisor.STOP_SECONDS = 0.5
telemetry = Telemetry(LogWriter(1))
worker = supervisor.supervise(1, telemetry.log)

async def run():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    worker.start_heartbeat()
    telemetry.log.info("ready", worker=worker.number)
    await asyncio.sleep(30)

asyncio.run(run())
"""


def test_worker_that_does_not_end_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready"
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE)

    assert [json.loads(line)["event"] for line in output.splitlines()] == ["worker_hung"]
    assert process.returncode == 0


HUNG_AFTER_3_SECONDS = """
from bff.cli import main
from bff.server.supervisor import supervise
supervise.__kwdefaults__["hung_seconds"] = 3
main()
"""


def test_gateway_replaces_a_hung_worker(upstream: running_upstream) -> None:
    gateway = Executed(upstream.port, "--workers", "2", **OFF)
    gateway.command[1:3] = ["-c", HUNG_AFTER_3_SECONDS]
    with gateway:
        until(lambda: up(gateway) == [1, 1])
        hung, other = child_pids(gateway)
        os.kill(hung, signal.SIGSTOP)
        wait_for_replacement(gateway, hung)

        until(lambda: gateway.output.count('"worker_hung"') == 1)
        assert other in child_pids(gateway)
        assert reach_all(gateway, gateway.token(*read("chat-1"))) == {200}


REFUSED_FORKS = """
import asyncio, errno, os, signal
from bff.log_writer import LogWriter
from bff.server.supervisor import supervise
from bff.telemetry import Telemetry

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
fork, forks = os.fork, []

def short():
    forks.append(1)
    if len(forks) in (3, 4):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()

os.fork = short
telemetry = Telemetry(LogWriter(1))
worker = supervise(2, telemetry.log)

async def run():
    telemetry.log.info("ready", worker=worker.number, pid=os.getpid())
    if not worker.replaces and worker.number == 0:
        os._exit(1)
    await asyncio.sleep(3600)

asyncio.run(run())
"""


def test_supervisor_survives_a_refused_fork() -> None:
    """Too many processes, or no memory: the others serve, and it tries again."""
    lines: list[dict[str, object]] = []
    with subprocess.Popen(
        [sys.executable, "-c", REFUSED_FORKS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while sum(line["event"] == "ready" and line["worker"] == 0 for line in lines) < 1:
            lines.append(json.loads(process.stdout.readline()))
        process.terminate()
    refused = [line for line in lines if line["event"] == "worker_not_started"]
    assert [line["worker"] for line in refused] == [0, 0]
    assert process.returncode == 0


def test_ctrl_c_lets_requests_finish(upstream: running_upstream) -> None:
    called, finish = threading.Event(), threading.Event()

    async def slow(_: Seen) -> None:
        called.set()
        await asyncio.to_thread(finish.wait, PATIENCE)

    with running_workers(upstream) as gateway, ThreadPoolExecutor(1) as pool:
        upstream.app.override = slow
        try:
            answer = pool.submit(get_session, gateway, gateway.token(*read("chat-1")))
            assert called.wait(PATIENCE)
            group = os.getpgid(gateway.process.pid)
            for pid in (*child_pids(gateway), gateway.process.pid):
                if os.getpgid(pid) == group:  # as the terminal does
                    os.kill(pid, signal.SIGINT)
                    time.sleep(0.2)  # a worker that ends at once has the time to
            finish.set()
            assert answer.result() == 200
            assert gateway.process.wait(PATIENCE) == 0
        finally:
            finish.set()
            upstream.app.override = None
    assert '"server"' not in gateway.output


def test_replacement_reads_the_current_settings(upstream: running_upstream, tmp_path: Path) -> None:
    """It does not use those that the supervisor started with: a removed key stays removed."""
    keys, config = tmp_path / "keys", tmp_path / "bff.toml"
    keys.write_text(f"{NEW_KEY}\n{OWN_KEY}\n")
    config.write_text("")
    changes = {
        "BFF_SIGNING_KEYS": "",
        "BFF_SIGNING_KEYS_FILE": str(keys),
        "BFF_CONFIG": str(config),
    }
    with running_workers(upstream, **changes) as gateway:
        old, new = (sign(claims(time.time(), *read("chat-1")), k) for k in (OWN_KEY, NEW_KEY))
        assert reach_all(gateway, old) == {200}

        keys.write_text(NEW_KEY)
        config.write_text('BFF_STORE_URL = "valkey://127.0.0.1:1"')  # needs a restart
        os.kill(gateway.process.pid, signal.SIGHUP)
        until(lambda: min(by_worker(gateway, "bff_reloads_total")) >= 1)
        assert reach_all(gateway, old) == {401}

        kill_worker(gateway, child_pids(gateway)[1])
        assert reach_all(gateway, old) == {401}
        assert reach_all(gateway, new) == {200}
        assert "bff_store_up{" not in http.get(gateway.ops_url + "/metrics").text


def test_sighup_ends_no_worker_that_is_starting(pair: Gateway) -> None:
    died = pair.output.count('"worker_died"')
    os.kill(child_pids(pair)[1], signal.SIGKILL)
    until(lambda: pair.output.count('"worker_died"') > died)
    while len(child_pids(pair)) < 2 or up(pair) != [1, 1]:
        os.kill(pair.process.pid, signal.SIGHUP)
        time.sleep(0.005)
    assert pair.output.count('"worker_died"') == died + 1


def test_replacement_waits_for_usable_settings(upstream: running_upstream, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(OWN_KEY)
    changes = {"BFF_SIGNING_KEYS": "", "BFF_SIGNING_KEYS_FILE": str(keys)}
    with running_workers(upstream, **changes) as gateway:
        token = gateway.token(*read("chat-1"))
        keys.write_text("short")
        until(lambda: by_worker(gateway, "bff_settings_current") == [0, 0])
        os.kill(child_pids(gateway)[1], signal.SIGKILL)
        until(lambda: '"worker_died"' in gateway.output and len(child_pids(gateway)) == 2)
        until(lambda: '"worker": 1, "problems"' in gateway.output.partition('"worker_died"')[2])
        assert up(gateway) == [1, 0]
        assert {get_session(gateway, token) for _ in range(20)} == {200}

        keys.write_text(OWN_KEY)
        until(lambda: by_worker(gateway, "bff_settings_current") == [1, 1])
        assert reach_all(gateway, token) == {200}


def test_workers_reload_together_and_outlive_the_store(
    upstream: running_upstream, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(OWN_KEY)
    changes = {"BFF_SIGNING_KEYS": "", "BFF_SIGNING_KEYS_FILE": str(keys)}
    with Engine("valkey", tmp_path) as engine, running_workers(
        upstream, BFF_STORE_URL=engine.url, **changes
    ) as gateway:  # fmt: skip
        until(lambda: by_worker(gateway, "bff_replicas") == [2, 2])
        old, new = (sign(claims(time.time(), *read("chat-1")), k) for k in (OWN_KEY, NEW_KEY))
        assert reach_all(gateway, old) == {200}

        keys.write_text("short")
        until(lambda: by_worker(gateway, "bff_settings_current") == [0, 0])
        assert reach_all(gateway, old) == {200}
        keys.write_text(NEW_KEY)  # workers see it without a signal
        until(lambda: by_worker(gateway, "bff_settings_current") == [1, 1])
        assert reach_all(gateway, old) == {401}
        assert reach_all(gateway, new) == {200}

        engine.kill()
        until(lambda: by_worker(gateway, "bff_store_up") == [0, 0])
        kill_worker(gateway, child_pids(gateway)[0])
        assert reach_all(gateway, new) == {200}
        revoked = http.post(gateway.ops_url + "/revocations", json={"issued_before": time.time()})
        assert (revoked.status_code, revoked.json()["code"]) == (503, "not_ready")
        assert reach_all(gateway, new) == {401}

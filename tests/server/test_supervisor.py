"""Workers behind one ops port: who answers there answers for all, also while some die or hang."""

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.engines import Engine
from support.world import (
    OFF,
    OWN_KEY,
    PATH,
    Clock,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
    until,
)

from bff.demo.upstream import Seen
from bff.server.worker_ipc import WorkerPeers, WorkerSockets

NEW_KEY = "new-signing-key-sentinel-0123456789abcdef"
Samples = dict[tuple[str, str, str], float]
"""Value by name, worker, and one label that tells samples apart."""


@contextmanager
def workers(
    upstream: running_upstream, number: int = 2, **changes: str | None
) -> Iterator[Gateway]:
    with Gateway(upstream.port, "--workers", str(number), **OFF | changes) as gateway:
        until(lambda: sum(up(gateway)) == number)
        yield gateway


@pytest.fixture(scope="module")
def pair(upstream: running_upstream) -> Iterator[Gateway]:
    """Two workers, for tests that leave two behind."""
    with workers(upstream, BFF_CACHE_TTL="60") as gateway:
        yield gateway


def metrics(gateway: Gateway) -> Samples:
    text = http.get(gateway.ops_url + "/metrics").text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    told = {}
    for sample in samples:
        worker, *labels = (sample.labels.pop("worker"), *sorted(sample.labels.items()))
        told[sample.name, worker, str(labels)] = sample.value
    assert len(told) == len(samples), "no sample twice, and each of a worker"
    return told


def of_each(gateway: Gateway, name: str) -> list[float]:
    """The sum of a metric for each worker."""
    found = metrics(gateway)
    numbers = sorted(worker for family, worker, _ in found if family == "bff_worker_up")
    return [sum(v for k, v in found.items() if k[:2] == (name, number)) for number in numbers]


def up(gateway: Gateway) -> list[float]:
    return of_each(gateway, "bff_worker_up")


def ask(gateway: Gateway, token: str, id_: str = "chat-1") -> int:
    url, headers = gateway.url + PATH + id_, {"authorization": f"Bearer {token}"}
    return http.get(url, headers=headers).status_code


def ask_all(gateway: Gateway, token: str, name: str = "bff_requests_total") -> set[int]:
    """Ask until every worker has answered, as *name* shows; the statuses that came."""
    before, statuses = of_each(gateway, name), set()
    for _ in range(100):
        statuses |= {ask(gateway, token) for _ in range(10)}
        now = of_each(gateway, name)
        if len(now) == len(before) and all(n > b for n, b in zip(now, before, strict=True)):
            return statuses
    raise AssertionError(f"somebody answers nobody: {before}, {now}")


def pids(gateway: Gateway) -> list[int]:
    """Of the workers; by number, as long as nobody has died."""
    supervisor = gateway.process.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
    return [int(pid) for pid in children.split()]


def kill(gateway: Gateway, pid: int) -> None:
    """Kill a worker and wait until another has its place and answers."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in pids(gateway) and len(pids(gateway)) == 2)
    until(lambda: up(gateway) == [1, 1])


def test_one_ops_port_counts_every_worker_and_a_dead_ones_counters_alone_begin_anew(
    upstream: running_upstream,
) -> None:
    with workers(upstream) as gateway:
        token = gateway.token(*read("chat-1"))
        ask_all(gateway, token)
        before = metrics(gateway)
        for _ in range(30):
            assert ask(gateway, token) == 200
        grown = {k: v - before.get(k, 0) for k, v in metrics(gateway).items()}
        assert sum(v for k, v in grown.items() if k[0] == "bff_requests_total") == 30

        kill(gateway, pids(gateway)[1])
        after = metrics(gateway)
        counted = [k for k in before if k[0].endswith(("_total", "_count", "_bucket", "_sum"))]
        assert all(after[key] >= before[key] for key in counted if key[1] == "0")
        requests = [k for k in counted if k[0] == "bff_requests_total" and k[1] == "1"]
        assert any(after.get(key, 0) < before[key] for key in requests)


def test_a_purge_reaches_the_copies_of_every_worker(pair: Gateway) -> None:
    token = pair.token(*read("chat-1"))
    ask_all(pair, token)
    assert of_each(pair, "bff_copies") == [1, 1]

    response = http.delete(pair.ops_url + "/cache/sessions/chat-1")
    assert response.status_code == 204
    assert of_each(pair, "bff_copies") == [0, 0]


def test_a_revocation_reaches_every_worker_and_who_comes_after(pair: Gateway) -> None:
    token = pair.token(*read("chat-1"), jti="one")
    assert ask_all(pair, token) == {200}

    response = http.post(pair.ops_url + "/revocations", json={"jti": "one"})
    assert response.status_code == 200
    assert ask_all(pair, token) == {401}

    kill(pair, pids(pair)[0])
    assert ask_all(pair, token) == {401}
    assert ask_all(pair, pair.token(*read("chat-1"), jti="two")) == {200}


async def test_a_worker_that_nobody_tells_what_was_revoked_says_so(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bff.ops.admin.LEARN_SECONDS", 0.01)
    async with World(clock) as world:
        sockets = WorkerSockets(2)
        world.service.ops._peers = WorkerPeers(sockets, 0)
        await world.service.ops.join()
        asyncio.get_running_loop().remove_reader(sockets.receivers[0])
        for sock in (*sockets.receivers, *sockets.senders):
            sock.close()

        assert world.logged()[-1]["event"] == "revocations_not_learned"


def test_a_worker_that_hangs_is_seen_and_nothing_is_said_to_be_done_by_it(pair: Gateway) -> None:
    ask_all(pair, pair.token(*read("chat-1"), jti="hung"))
    revocations = of_each(pair, "bff_revocations")
    hung = pids(pair)[1]
    os.kill(hung, signal.SIGSTOP)
    try:
        # A connection that it had accepted answers nothing, so others are made until one does.
        def ops(method: str, path: str, **told: object) -> httpx2.Response:
            for _ in range(100):
                try:
                    return http.request(method, pair.ops_url + path, timeout=3, **told)
                except httpx2.TimeoutException:
                    continue
            raise AssertionError("nobody answers")

        ready = ops("GET", "/readyz")
        assert ready.status_code == 200
        (number,) = ready.json()["workers"]["silent"]
        assert f'bff_worker_up{{worker="{number}"}} 0.0' in ops("GET", "/metrics").text
        purged = ops("DELETE", "/cache/sessions/chat-1")
        revoked = ops("POST", "/revocations", json={"jti": "hung"})
        for response in (purged, revoked):
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")
            assert f"Worker {number}" in response.json()["error"]
    finally:
        os.kill(hung, signal.SIGCONT)

    # What was asked of it meanwhile is in its mailbox still.
    until(lambda: of_each(pair, "bff_revocations") == [n + 1 for n in revocations])
    assert of_each(pair, "bff_copies") == [0, 0]
    assert http.delete(pair.ops_url + "/cache/sessions/chat-1").status_code == 204


def test_a_slow_upstream_is_no_worker_that_hangs(upstream: running_upstream) -> None:
    """Ready is what all of them are; and who still waits for upstream is not silent."""
    asked = threading.Event()

    async def slow(_: Seen) -> None:
        asked.set()
        await asyncio.sleep(2)

    with workers(upstream) as gateway:
        upstream.app.override = slow
        try:
            first = http.get(gateway.ops_url + "/readyz")
            assert asked.is_set()
            assert first.status_code == 503
            assert first.json()["workers"] == {"answering": 2, "silent": []}
            assert re.match(
                r"worker [01]: the upstream was not asked yet",
                first.json()["environments"]["default"]["reason"],
            )
        finally:
            upstream.app.override = None
        until(lambda: http.get(gateway.ops_url + "/readyz").status_code == 200)


def test_ctrl_c_at_a_terminal_lets_requests_finish(upstream: running_upstream) -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def slow(_: Seen) -> None:
        asked.set()
        await asyncio.to_thread(go_on.wait, 4)

    with workers(upstream) as gateway, ThreadPoolExecutor(1) as pool:
        upstream.app.override = slow
        try:
            answer = pool.submit(ask, gateway, gateway.token(*read("chat-1")))
            assert asked.wait(20)
            group = os.getpgid(gateway.process.pid)
            for pid in (*pids(gateway), gateway.process.pid):
                if os.getpgid(pid) == group:  # as the terminal does
                    os.kill(pid, signal.SIGINT)
                    time.sleep(0.2)  # for who would end at once to do so
            go_on.set()
            assert answer.result() == 200
            assert gateway.process.wait(20) == 0
        finally:
            go_on.set()
            upstream.app.override = None
    assert '"server"' not in gateway.output


def test_who_takes_a_dead_ones_place_goes_by_the_settings_of_now(
    upstream: running_upstream, tmp_path: Path
) -> None:
    """Not by those that the supervisor began with: a key that was removed stays removed."""
    keys, config = tmp_path / "keys", tmp_path / "bff.toml"
    keys.write_text(f"{NEW_KEY}\n{OWN_KEY}\n")
    config.write_text("")
    told = {"BFF_SIGNING_KEYS": "", "BFF_SIGNING_KEYS_FILE": str(keys), "BFF_CONFIG": str(config)}
    with workers(upstream, **told) as gateway:
        old, new = (sign(claims(time.time(), *read("chat-1")), k) for k in (OWN_KEY, NEW_KEY))
        assert ask_all(gateway, old) == {200}

        keys.write_text(NEW_KEY)
        config.write_text('BFF_STORE_URL = "valkey://127.0.0.1:1"')  # waits for a restart
        os.kill(gateway.process.pid, signal.SIGHUP)
        until(lambda: min(of_each(gateway, "bff_reloads_total")) >= 1)
        assert ask_all(gateway, old) == {401}

        kill(gateway, pids(gateway)[1])
        assert ask_all(gateway, old) == {401}
        assert ask_all(gateway, new) == {200}
        assert "bff_store_up{" not in http.get(gateway.ops_url + "/metrics").text


def test_a_signal_to_reload_ends_no_worker_that_is_starting(pair: Gateway) -> None:
    died = pair.output.count('"worker_died"')
    os.kill(pids(pair)[1], signal.SIGKILL)
    until(lambda: pair.output.count('"worker_died"') > died)
    while len(pids(pair)) < 2 or up(pair) != [1, 1]:
        os.kill(pair.process.pid, signal.SIGHUP)
        time.sleep(0.005)
    assert pair.output.count('"worker_died"') == died + 1


def test_while_the_settings_cannot_be_read_a_new_worker_waits_and_the_others_serve(
    upstream: running_upstream, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(OWN_KEY)
    told = {"BFF_SIGNING_KEYS": "", "BFF_SIGNING_KEYS_FILE": str(keys)}
    with workers(upstream, **told) as gateway:
        token = gateway.token(*read("chat-1"))
        keys.write_text("short")
        until(lambda: of_each(gateway, "bff_settings_current") == [0, 0])
        os.kill(pids(gateway)[1], signal.SIGKILL)
        until(lambda: '"worker_died"' in gateway.output and len(pids(gateway)) == 2)
        until(lambda: '"worker": 1, "problems"' in gateway.output.partition('"worker_died"')[2])
        assert up(gateway) == [1, 0]
        assert {ask(gateway, token) for _ in range(20)} == {200}

        keys.write_text(OWN_KEY)
        until(lambda: of_each(gateway, "bff_settings_current") == [1, 1])
        assert ask_all(gateway, token) == {200}


def test_workers_of_a_store_change_together_and_outlive_it(
    upstream: running_upstream, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(OWN_KEY)
    told = {"BFF_SIGNING_KEYS": "", "BFF_SIGNING_KEYS_FILE": str(keys)}
    with Engine("valkey", tmp_path) as engine, workers(
        upstream, BFF_STORE_URL=engine.url, **told
    ) as gateway:  # fmt: skip
        until(lambda: of_each(gateway, "bff_replicas") == [2, 2])
        old, new = (sign(claims(time.time(), *read("chat-1")), k) for k in (OWN_KEY, NEW_KEY))
        assert ask_all(gateway, old) == {200}

        keys.write_text("short")
        until(lambda: of_each(gateway, "bff_settings_current") == [0, 0])
        assert ask_all(gateway, old) == {200}
        keys.write_text(NEW_KEY)  # by itself, without a signal
        until(lambda: of_each(gateway, "bff_settings_current") == [1, 1])
        assert ask_all(gateway, old) == {401}
        assert ask_all(gateway, new) == {200}

        engine.kill()
        until(lambda: of_each(gateway, "bff_store_up") == [0, 0])
        kill(gateway, pids(gateway)[0])
        assert ask_all(gateway, new) == {200}
        revoked = http.post(gateway.ops_url + "/revocations", json={"issued_before": time.time()})
        assert (revoked.status_code, revoked.json()["code"]) == (503, "not_ready")
        assert ask_all(gateway, new) == {401}


@pytest.mark.parametrize("number", [1, 2])
def test_the_metrics_of_workers_name_every_family_once(
    upstream: running_upstream, number: int
) -> None:
    with Gateway(upstream.port, "--workers", str(number)) as gateway:
        lines = http.get(gateway.ops_url + "/metrics").text.splitlines()
    helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(helps) == len(set(helps)) > 30
    assert ('worker="' in "".join(lines)) is (number > 1)

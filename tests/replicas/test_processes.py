"""Gateway processes on a real store, killed and restarted while browsers send requests."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx2
import pytest
from support.engines import ENGINES, Engine, free_port
from support.replicas import PATIENT
from support.world import (
    NEW_KEY,
    OFF,
    OWN_KEY,
    PATH,
    PATIENCE,
    Gateway,
    environ,
    http,
    read,
    running_upstream,
    until,
)

from bff.demo.upstream import session


@pytest.fixture(params=ENGINES)
def engine(request, tmp_path: Path) -> Iterator[Engine]:
    with Engine(request.param, tmp_path) as engine:
        yield engine


class Traffic:
    """Browsers in threads that use each gateway in turn until the block ends."""

    def __init__(self, gateways: list[Gateway], paths: list[str], *, threads: int, pause: float):
        self.gateways = gateways
        self.responses: list[tuple[float, int, str]] = []
        self.lost = 0
        self.wrong: list[tuple[str, str]] = []
        self._paths = paths
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def _run(self, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            gateway = self.gateways[turn % len(self.gateways)]
            id_ = self._paths[turn // len(self.gateways) % len(self._paths)]
            turn += 1
            # A connection for each request: one to a killed process is closed at once.
            with closing(HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)) as connection:
                try:
                    headers = {"authorization": f"Bearer {self.tokens[id_]}"}
                    connection.request("GET", PATH + id_, headers=headers)
                    response = connection.getresponse()
                    body = json.loads(response.read())
                except (OSError, HTTPException):
                    self.lost += 1
                    time.sleep(0.01)
                else:
                    result = body.get("externalId", body.get("code"))
                    self.responses.append((time.monotonic(), response.status, result))
                    if response.status == 200 and result != id_:
                        self.wrong.append((id_, result))
            time.sleep(self._pause)

    def __enter__(self) -> "Traffic":
        gateway = self.gateways[0]
        self.tokens = {
            id_: gateway.token(*read(id_), act={"sub": "someone"}) for id_ in self._paths
        }
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.wrong == []

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _ in self.responses)


def several(
    stack: ExitStack, number: int, upstream: running_upstream, changes: dict[str, str]
) -> list[Gateway]:
    """Start gateways at once, and wait until they count one another."""
    with ThreadPoolExecutor(number) as pool:
        made = [Gateway(upstream.port, **changes) for _ in range(number)]
        gateways = list(pool.map(stack.enter_context, made))
    wait_until_counted(gateways)
    return gateways


def wait_until_counted(gateways: list[Gateway]) -> None:
    """Wait until each gateway counts all of them as replicas."""
    for gateway in gateways:

        def met(gateway: Gateway = gateway) -> bool:
            return is_store_up(gateway) and f"bff_replicas {len(gateways)}.0" in metrics(gateway)

        until(met, lambda: "they do not count one another")


def metrics(gateway: Gateway) -> str:
    return http.get(gateway.ops_url + "/metrics").text


def is_store_up(gateway: Gateway) -> bool:
    return "bff_store_up 1.0" in metrics(gateway)


def wait_for_requests(traffic: Traffic, number: int) -> None:
    """Wait until *number* more requests are answered."""
    enough = len(traffic.responses) + number
    until(lambda: len(traffic.responses) >= enough)


@pytest.mark.parametrize(("engine", "number"), [("valkey", 4), ("redis", 2)], indirect=["engine"])
def test_processes_make_one_load_per_ttl(engine: Engine, number: int) -> None:
    """Also while one replica is killed and started again."""
    ttl = 0.5
    changes = OFF | {
        "BFF_STORE_URL": engine.url,
        **PATIENT,
        "BFF_CACHE_TTL": str(ttl),
        "BFF_CACHE_STALE_WHILE_REVALIDATE": "0.25",
    }
    with running_upstream() as upstream, ExitStack() as stack:
        gateways = several(stack, number, upstream, changes)
        with Traffic(gateways, ["chat-1"], threads=4, pause=0.01) as traffic:
            began = time.monotonic()
            time.sleep(1.5)
            gateways[-1].process.kill()
            gateways[-1].process.wait()
            gateways[-1] = stack.enter_context(Gateway(upstream.port, **changes))
            time.sleep(1.5)
            took = time.monotonic() - began
        loads = sum(seen.raw_path.endswith("chat-1") for seen in upstream.seen)

    assert set(traffic.statuses) == {200}
    assert loads <= 1.5 * (1 + took / ttl), "one when a copy is a TTL old, and few of paused claims"
    assert loads >= 2, "copies are loaded again"


@pytest.mark.parametrize(("engine", "number"), [("valkey", 2), ("redis", 3)], indirect=["engine"])
def test_limit_is_never_exceeded_while_replicas_die(engine: Engine, number: int) -> None:
    limit = 200
    changes = OFF | {
        "BFF_STORE_URL": engine.url,
        **PATIENT,
        "BFF_RATE_LIMIT": f"{limit}/hour",
    }
    with running_upstream() as upstream, ExitStack() as stack:
        gateways = several(stack, number, upstream, changes)
        with Traffic(gateways, ["chat-1"], threads=4, pause=0.0) as traffic:
            while traffic.statuses[200] < limit // 3:
                time.sleep(0.01)
            gateways[-1].process.kill()
            gateways[-1].process.wait()
            gateways[-1] = stack.enter_context(Gateway(upstream.port, **changes))
            while traffic.statuses[429] < 200:
                time.sleep(0.05)

    assert set(traffic.statuses) == {200, 429}
    assert traffic.statuses[200] <= limit
    assert traffic.statuses[200] >= limit - limit // 8, "all but the leases of the dead replica"


@pytest.mark.parametrize("engine", ["valkey"], indirect=True)
def test_budget_is_never_exceeded_while_replicas_die(engine: Engine) -> None:
    """And the bucket that upstream reports, to whichever replica."""
    changes = OFF | {
        "BFF_STORE_URL": engine.url,
        **PATIENT,
        "BFF_CACHE_TTL": "60",
        "BFF_UPSTREAM_BUDGET": "40/minute",
    }
    ids = [f"many-{n}" for n in range(100)]
    with running_upstream() as upstream, ExitStack() as stack:
        for n, id_ in enumerate(ids, start=100):
            upstream.app.environments[0].add(session(n, id_))
        gateways = several(stack, 3, upstream, changes)
        with Traffic(gateways, ids, threads=4, pause=0.0) as traffic:
            while len(upstream.seen) < 15:
                time.sleep(0.005)
            gateways[-1].process.kill()
            gateways[-1].process.wait()
            gateways[-1] = stack.enter_context(Gateway(upstream.port, **changes))
            while len(traffic.responses) < 600:
                time.sleep(0.05)

    assert set(traffic.statuses) == {200, 503}
    assert len(upstream.seen) <= 40
    assert len(upstream.seen) >= 40 - 4, "all but the loads that died with their replica"


@pytest.mark.parametrize("engine", ["valkey"], indirect=True)
def test_traffic_is_served_while_the_store_dies_and_returns(engine: Engine) -> None:
    changes = {
        "BFF_STORE_URL": engine.url,
        "BFF_STORE_TIMEOUT": "1",  # else a busy store goes down more often than the test lets it
        "BFF_RATE_LIMIT": "100000/minute",
        "BFF_IP_RATE_LIMIT": "off",
        "BFF_CACHE_TTL": "0.5",
    }
    with running_upstream() as upstream, ExitStack() as stack:
        gateways = several(stack, 2, upstream, changes)
        paths = ["chat-1", "chat-2", "chat-closed"]
        with Traffic(gateways, paths, threads=3, pause=0.005) as traffic:
            wait_for_requests(traffic, 20)
            engine.kill()
            until(lambda: not any(map(is_store_up, gateways)))
            wait_for_requests(traffic, 20)
            engine.start()
            wait_until_counted(gateways)
            engine.freeze()
            until(lambda: not any(map(is_store_up, gateways)))
            wait_for_requests(traffic, 20)
            engine.thaw()
            wait_until_counted(gateways)
            wait_for_requests(traffic, 20)

        assert set(traffic.statuses) == {200}
        assert traffic.lost == 0
        for gateway in gateways:
            assert gateway.output.count('"store_away"') <= 4
            until(lambda gateway=gateway: gateway.output.count('"store_there"') >= 3)


@pytest.mark.parametrize("engine", ["valkey"], indirect=True)
def test_workers_share_limits_and_dead_ones_are_replaced(engine: Engine) -> None:
    changes = OFF | {
        "BFF_STORE_URL": engine.url,
        **PATIENT,
        "BFF_RATE_LIMIT": "60/hour",
    }
    with (
        running_upstream() as upstream,
        Gateway(upstream.port, "--workers", "2", **changes) as gateway,
    ):
        token = gateway.token(*read("chat-1"), act={"sub": "someone"})

        def ask() -> int:
            url = gateway.url + PATH + "chat-1"
            # On a new connection, so that either worker may answer.
            return http.get(url, headers={"authorization": f"Bearer {token}"}).status_code

        statuses = Counter(ask() for _ in range(80))
        assert statuses == {200: 60, 429: 20}, "counted together"
        workers = children(gateway.process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(now := children(gateway.process.pid)) == 2 and workers[0] not in now)
        assert ask() == 429
        until(lambda: '"worker_died"' in gateway.output)
    assert gateway.process.returncode == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_replacement_workers_use_reloaded_settings(tmp_path: Path) -> None:
    """A removed key must not be accepted again because a worker died."""
    config = tmp_path / "bff.toml"

    def write(**changes: str) -> None:
        config.write_text("".join(f"{name} = {value!r}\n" for name, value in changes.items()))

    write(BFF_SIGNING_KEYS=f"{OWN_KEY},another-{OWN_KEY}")
    changes = OFF | {"BFF_SIGNING_KEYS": None, "BFF_CONFIG": str(config)}
    with running_upstream() as upstream, Gateway(
        upstream.port, "--workers", "2", **changes
    ) as gateway:  # fmt: skip
        token = gateway.token(*read("chat-1"))

        def statuses() -> Counter[int]:
            url, headers = gateway.url + PATH + "chat-1", {"authorization": f"Bearer {token}"}
            return Counter(http.get(url, headers=headers).status_code for _ in range(12))

        assert statuses() == {200: 12}
        write(BFF_SIGNING_KEYS=NEW_KEY)
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: gateway.output.count('"settings_reloaded"') >= 2)
        until(lambda: statuses() == {401: 12})

        for pid in children(gateway.process.pid):
            os.kill(pid, signal.SIGKILL)
        until(lambda: gateway.output.count('"listening"') == 4)
        until(lambda: answers(gateway))
        assert statuses() == {401: 12}

        write(BFF_NO_SUCH_THING="1")
        os.kill(children(gateway.process.pid)[0], signal.SIGKILL)
        until(lambda: '"settings_not_reloaded"' in gateway.output)
        assert statuses() == {401: 12}, "the other worker keeps its settings"
        write(BFF_SIGNING_KEYS=NEW_KEY)
        until(lambda: gateway.output.count('"listening"') == 5)


def answers(gateway: Gateway) -> bool:
    try:
        return http.get(gateway.url + "/healthz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("engine", ["valkey"], indirect=True)
def test_worker_is_replaced_while_the_store_is_down(engine: Engine) -> None:
    changes = OFF | {"BFF_STORE_URL": engine.url}
    with running_upstream() as upstream, Gateway(
        upstream.port, "--workers", "2", **changes
    ) as gateway:  # fmt: skip
        engine.kill()
        workers = children(gateway.process.pid)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: gateway.output.count('"listening"') == 4 and answers(gateway))
        token = gateway.token(*read("chat-1"))
        url, headers = gateway.url + PATH + "chat-1", {"authorization": f"Bearer {token}"}
        assert http.get(url, headers=headers).status_code == 200
        assert gateway.process.poll() is None


def test_workers_finish_requests_in_flight_on_sigterm() -> None:
    with running_upstream() as upstream, Gateway(upstream.port, "--workers", "2") as gateway:
        started = threading.Event()

        async def slowly(_):
            started.set()
            await asyncio.sleep(0.7)

        upstream.app.override = slowly
        responses = []

        def ask() -> None:
            headers = {"authorization": f"Bearer {gateway.token(*read('chat-1'))}"}
            responses.append(http.get(gateway.url + PATH + "chat-1", headers=headers).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        assert started.wait(PATIENCE)
        gateway.process.send_signal(signal.SIGTERM)
        thread.join()
        gateway.process.wait(timeout=PATIENCE)

        assert responses == [200]
        assert gateway.process.returncode == 0


def test_all_workers_exit_when_the_store_is_unreachable() -> None:
    variables = environ(BFF_STORE_URL=f"valkey://127.0.0.1:{free_port()}", BFF_PORT="0")
    done = subprocess.run(
        [sys.executable, "-m", "bff", "serve", "--workers", "2"],
        env={"PATH": os.environ["PATH"], **variables, "BFF_OPS_PORT": "0"},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "cannot be reached; correct it, or set BFF_STORE_OPTIONAL=true" in done.stderr


def test_workers_without_a_store_log_that_they_count_alone() -> None:
    with running_upstream() as upstream, Gateway(upstream.port, "--workers", "2") as gateway:
        until(lambda: '"workers_count_alone"' in gateway.output)
        assert "BFF_STORE_URL" in gateway.output


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

"""`bff serve --workers N` in processes of its own, and what its ops port says of each worker."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.world import OFF, PATH, Gateway, http, running_upstream, until

Samples = dict[tuple[str, str, str], float]
"""Value by name, worker, and the other labels."""


@contextmanager
def running_workers(
    upstream: running_upstream, number: int = 2, /, **changes: str | None
) -> Iterator[Gateway]:
    with Gateway(upstream.port, "--workers", str(number), **OFF | changes) as gateway:
        until(lambda: sum(up(gateway)) == number)
        yield gateway


def metrics(gateway: Gateway) -> Samples:
    text = http.get(gateway.ops_url + "/metrics").text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    values = {}
    for sample in samples:
        worker, *labels = (sample.labels.pop("worker"), *sorted(sample.labels.items()))
        values[sample.name, worker, str(labels)] = sample.value
    assert len(values) == len(samples), "no sample twice, and each of a worker"
    return values


def by_worker(gateway: Gateway, name: str) -> list[float]:
    """Return the sum of a metric for each worker."""
    values = metrics(gateway)
    numbers = sorted(worker for family, worker, _ in values if family == "bff_worker_up")
    return [sum(v for k, v in values.items() if k[:2] == (name, number)) for number in numbers]


def up(gateway: Gateway) -> list[float]:
    return by_worker(gateway, "bff_worker_up")


def get_session(gateway: Gateway, token: str, id_: str = "chat-1") -> int:
    url, headers = gateway.url + PATH + id_, {"authorization": f"Bearer {token}"}
    return http.get(url, headers=headers).status_code


def reach_all(gateway: Gateway, token: str, name: str = "bff_requests_total") -> set[int]:
    """Send requests until *name* has grown for every worker; return the statuses of the answers."""
    before, statuses = by_worker(gateway, name), set()
    for _ in range(100):
        statuses |= {get_session(gateway, token) for _ in range(10)}
        now = by_worker(gateway, name)
        if len(now) == len(before) and all(n > b for n, b in zip(now, before, strict=True)):
            return statuses
    raise AssertionError(f"a worker answers nothing: {before}, {now}")


def child_pids(gateway: Gateway) -> list[int]:
    """Return the pids of the workers, by number as long as none was replaced."""
    supervisor = gateway.process.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
    return [int(pid) for pid in children.split()]


def kill_worker(gateway: Gateway, pid: int) -> None:
    """Kill a worker and wait until its replacement answers."""
    os.kill(pid, signal.SIGKILL)
    wait_for_replacement(gateway, pid)


def wait_for_replacement(gateway: Gateway, pid: int) -> None:
    """Wait until one of two workers, whose pid was *pid*, is replaced and both answer."""
    until(lambda: pid not in child_pids(gateway) and len(child_pids(gateway)) == 2)
    until(lambda: up(gateway) == [1, 1])

"""Workers behind one ops port: each answers there for all, also while another dies or hangs."""

import asyncio
import errno
import os
import signal
import socket
import threading
import time
from typing import Any

import httpx2
import pytest
from support.listening import LIST
from support.workers import (
    by_worker,
    child_pids,
    get_session,
    kill_worker,
    metrics,
    reach_all,
    running_workers,
)
from support.world import PATIENCE, Clock, Gateway, World, http, read, running_upstream, until

from bff.demo.upstream import Seen
from bff.server.worker_ipc import WorkerPeers, WorkerSockets


def test_metrics_name_each_worker_and_restart_with_it(
    upstream: running_upstream,
) -> None:
    with running_workers(upstream) as gateway:
        token = gateway.token(*read("chat-1"))
        reach_all(gateway, token)
        before = metrics(gateway)
        for _ in range(30):
            assert get_session(gateway, token) == 200
        growth = {k: v - before.get(k, 0) for k, v in metrics(gateway).items()}
        assert sum(v for k, v in growth.items() if k[0] == "bff_requests_total") == 30

        kill_worker(gateway, child_pids(gateway)[1])
        after = metrics(gateway)
        counted = [k for k in before if k[0].endswith(("_total", "_count", "_bucket", "_sum"))]
        assert all(after[key] >= before[key] for key in counted if key[1] == "0")
        requests = [k for k in counted if k[0] == "bff_requests_total" and k[1] == "1"]
        assert any(after.get(key, 0) < before[key] for key in requests)


def test_purge_reaches_every_worker(pair: Gateway) -> None:
    token = pair.token(*read("chat-1"))
    reach_all(pair, token)
    assert by_worker(pair, "bff_copies") == [1, 1]

    response = http.delete(pair.ops_url + "/cache/sessions/chat-1")
    assert response.status_code == 204
    assert by_worker(pair, "bff_copies") == [0, 0]


def test_new_chat_ends_the_lists_of_every_worker(pair: Gateway) -> None:
    person, now, streams = {"sub": "ann"}, time.time(), list[socket.socket]()
    old = pair.token(*read("chat-1"), act=person, iat=int(now - 30))
    while not all(by_worker(pair, "bff_listeners")):
        streams.append(socket.create_connection(("127.0.0.1", pair.port)))
        streams[-1].settimeout(PATIENCE)
        streams[-1].sendall(
            f"GET {LIST} HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {old}\r\n\r\n".encode()
        )
        assert streams[-1].recv(65536).startswith(b"HTTP/1.1 200 ")

    assert get_session(pair, pair.token(*read("chat-1", "chat-2"), act=person)) == 200

    for stream in streams:
        received = b""
        with stream:
            while b'data: {"reason":"outdated"}\n' not in received:
                received += stream.recv(65536)
                assert time.time() < now + PATIENCE, received[-200:]


def test_revocation_reaches_every_worker_and_a_replacement(pair: Gateway) -> None:
    token = pair.token(*read("chat-1"), jti="one")
    assert reach_all(pair, token) == {200}

    response = http.post(pair.ops_url + "/revocations", json={"jti": "one"})
    assert response.status_code == 200
    assert reach_all(pair, token) == {401}

    kill_worker(pair, child_pids(pair)[0])
    assert reach_all(pair, token) == {401}
    assert reach_all(pair, pair.token(*read("chat-1"), jti="two")) == {200}


async def test_worker_logs_when_no_peer_sends_it_the_revocations(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bff.ops.admin.LEARN_SECONDS", 0.01)
    async with World(clock) as world:
        sockets = WorkerSockets(2)
        world.service.ops.peers = WorkerPeers(sockets, 0)
        await world.service.ops.join()
        asyncio.get_running_loop().remove_reader(sockets.receivers[0])
        for sock in (*sockets.receivers, *sockets.senders):
            sock.close()

        assert world.logged()[-1]["event"] == "revocations_not_learned"


async def test_call_without_a_descriptor_is_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order then says that it is not confirmed; it raised, and the ops port answered 500."""
    sockets = WorkerSockets(2)
    peers = WorkerPeers(sockets, 0)

    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", no_descriptor)

    try:
        assert await peers.call("metrics") == {1: None}
    finally:
        for sock in (*sockets.senders, *sockets.receivers):
            sock.close()


def test_silent_worker_is_named_and_confirms_nothing(pair: Gateway) -> None:
    reach_all(pair, pair.token(*read("chat-1"), jti="hung"))
    revocations = by_worker(pair, "bff_revocations")
    hung = child_pids(pair)[1]
    os.kill(hung, signal.SIGSTOP)
    try:
        # A connection that the stopped worker had accepted gets no answer: try another.
        def ops(method: str, path: str, **options: Any) -> httpx2.Response:
            for _ in range(100):
                try:
                    return http.request(method, pair.ops_url + path, timeout=3, **options)
                except httpx2.TimeoutException:
                    continue
            raise AssertionError("no worker answers")

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

    # The calls made meanwhile are still in its queue.
    until(lambda: by_worker(pair, "bff_revocations") == [n + 1 for n in revocations])
    assert by_worker(pair, "bff_copies") == [0, 0]
    assert http.delete(pair.ops_url + "/cache/sessions/chat-1").status_code == 204


def test_worker_with_a_slow_upstream_is_not_silent(upstream: running_upstream) -> None:
    """The gateway is ready if all workers are; one that waits for upstream is not silent."""
    called = threading.Event()

    async def slow(_: Seen) -> None:
        called.set()
        await asyncio.sleep(2)

    with running_workers(upstream) as gateway:
        upstream.app.override = slow
        try:
            first = http.get(gateway.ops_url + "/readyz?verbose")
            assert called.is_set()
            assert "[+] workers: all answer" in first.text
            assert "[-] upstream of default: the upstream was not checked yet" in first.text
            plain = http.get(gateway.ops_url + "/readyz").json()
            assert plain["workers"] == {"answering": 2, "silent": []}
        finally:
            upstream.app.override = None
        until(lambda: http.get(gateway.ops_url + "/readyz").status_code == 200)


@pytest.mark.parametrize("number", [1, 2])
def test_metrics_of_workers_name_every_family_once(upstream: running_upstream, number: int) -> None:
    with Gateway(upstream.port, "--workers", str(number)) as gateway:
        lines = http.get(gateway.ops_url + "/metrics").text.splitlines()
    helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(helps) == len(set(helps)) > 30
    assert ('worker="' in "".join(lines)) is (number > 1)

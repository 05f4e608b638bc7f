"""What frontends really run: the official packages on Node, a front proxy, a browser."""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

SDK = Path(__file__).parent / "sdk"


def need(program: str) -> str:
    """Path of *program*; where it is not installed the test is skipped, but never in CI."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed; .ci/run installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Node:
    """`sdk/client.mjs` in a process of its own: the official SDK, a call at a time."""

    def __init__(self, script: str = "client.mjs") -> None:
        self._process = subprocess.Popen(
            [need("node"), script],
            cwd=SDK,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()

    def call(
        self, call: str, url: str = "", token: str = "", retry: Any = None, **told: Any
    ) -> dict[str, Any]:
        """Let the SDK do *call* against the base *url*; *retry* is its own option."""
        options = {"retry": retry} if retry else {}
        config = {"baseURL": url, "accessToken": token, "requestOptions": options}
        line = json.dumps({"call": call, "config": config, **told})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        assert ready, "the SDK does not answer"
        return json.loads(self._process.stdout.readline())


def esbuild(source: str, *options: str, **kinds: str) -> str:
    """Bundle the module *source*, which may import what `sdk/package.json` names, for browsers."""
    done = subprocess.run(
        [
            need("node"),
            "node_modules/esbuild/bin/esbuild",
            "--bundle",
            "--format=esm",
            "--log-level=error",
            "--external:node:http2",
            "--define:process.env={}",
            '--define:process.env.NODE_ENV="production"',
            *(f"--{kind.replace('_', '-')}={value}" for kind, value in kinds.items()),
            *options,
        ],
        cwd=SDK,
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Front:
    """A proxy that serves the gateway below a path of its own, as a site's own server would.

    The gateway takes no prefix: whoever puts it below one knows which, and takes it off again
    (nginx: ``proxy_pass http://gateway/;``). `seen` holds the request lines: the evidence.
    """

    def __init__(self, port: int, prefix: str = "/trigger") -> None:
        self._gateway = port
        self._prefix = prefix.encode()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}{prefix}"
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Front":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                browser, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(browser,), daemon=True).start()

    def _pass(self, browser: socket.socket) -> None:
        """Pass one request on, and its answer back; then close."""
        with browser, socket.create_connection(("127.0.0.1", self._gateway)) as gateway:
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = browser.recv(65536)
                if not chunk:
                    return
                head += chunk
            line, _, rest = head.partition(b"\r\n")
            self.seen.append(line.decode())
            method, path, version = line.split(b" ")
            path = path.removeprefix(self._prefix)
            gateway.sendall(b"%b %b %b\r\nconnection: close\r\n" % (method, path, version))
            gateway.sendall(rest)
            while chunk := gateway.recv(65536):
                browser.sendall(chunk)

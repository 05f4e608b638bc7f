"""`bff status`, and the breakdown of ``/readyz?verbose``."""

import re
import subprocess
import sys

from support.world import KEPT, PATIENCE, Gateway, World, http, read

from bff import metrics
from bff.ops.status import Gauges, Reading, breakdown, screen


def bff(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bff", "status", *arguments],
        env=KEPT | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def get(gateway: Gateway, id_: str, *scopes: str) -> int:
    headers = {"authorization": f"Bearer {gateway.token(*(scopes or read(id_)))}"}
    return http.get(f"{gateway.url}/api/v1/sessions/{id_}", headers=headers).status_code


def test_screen_of_a_running_gateway(gateway: Gateway) -> None:
    for _ in range(3):
        assert get(gateway, "chat-1") == 200
    assert get(gateway, "chat-2", *read("chat-1")) == 403
    assert http.get(f"{gateway.url}/api/v1/sessions/chat-1").status_code == 401

    done = bff(BFF_OPS_PORT=str(gateway.ops_port))

    assert done.returncode == 0, done.stderr
    assert re.match(r"bff [\d.]+  ready  \(since the start\)\n", done.stdout)
    for text in (
        "environment default\n",
        "  health     the upstream ",
        "; longest stretch ",  # upstream's period may have ended: then there is no bound
        "  loads      1 ok",
        "  token_missing",
        "  unauthorized",
        "store        none",
    ):
        assert text in done.stdout, text
    assert re.search(r"hits +(66\.7|50\.0|\d\d\.\d) % of \d+ lookups", done.stdout)
    assert "99 % within" in done.stdout


def test_workers_are_added_up(upstream) -> None:
    with Gateway(upstream.port, "--workers", "2") as gateway:
        done = bff("--ops", f"127.0.0.1:{gateway.ops_port}", "--once")

    assert "\nworkers      2 answer\n" in done.stdout


def test_missing_gateway_is_reported_with_a_remedy() -> None:
    done = bff("--ops", "127.0.0.1:1")

    assert done.returncode == 1
    assert "No gateway answers on its ops port at 127.0.0.1:1" in done.stderr


def reading(when: float, hits: float, **requests: float) -> Reading:
    return Reading(
        when,
        {"status": "ready", "environments": {"default": {"ready": True, "reason": "fine"}}},
        {
            f"{metrics.REQUESTS}_total": [
                ({"code": "" if code == "ok" else code, "status": "200"}, n)
                for code, n in requests.items()
            ],
            f"{metrics.CACHE}_total": [
                ({"environment": "default", "result": "hit"}, hits),
                ({"environment": "default", "result": "miss"}, 10.0),
                ({"environment": "other", "result": "miss"}, 99.0),
            ],
            metrics.BUILD_INFO: [({"version": "1"}, 1.0)],
            metrics.BUDGET_LEFT: [({"environment": "default"}, 7.0)],
            metrics.STRETCHED_TTL_SECONDS: [({"environment": "default"}, 3.25)],
            metrics.SECRET_KEY_IN_USE: [({"environment": "default"}, 2.0)],
        },
    )


def test_two_readings_give_the_rates_between_them() -> None:
    before = reading(100.0, 90.0, ok=100.0, over_budget=5.0)
    now = reading(110.0, 120.0, ok=200.0, over_budget=25.0, rate_limited=1.0)

    text = screen(now, before)

    assert "in the last 10 s" in text
    assert "answers      12.1 a second" in text
    assert "hits       100.0 % of 30 lookups" in text
    assert "7 loads left now; longest stretch 3.2 s" in text
    assert "key        number 2 is used" in text
    refusals = text.partition("refusals\n")[2].splitlines()
    assert [line.split()[0] for line in refusals] == ["over_budget", "rate_limited"]


def test_replaced_worker_counts_from_zero() -> None:
    text = screen(reading(110.0, 3.0, ok=7.0), reading(100.0, 90.0, ok=1000.0))

    assert "answers      0.7 a second" in text


def test_breakdown_marks_what_is_bad() -> None:
    body = {
        "environments": {
            "a": {"ready": True, "reason": "fails"},
            "b": {"ready": False, "reason": "no key"},
        },
        "workers": {"answering": 1, "silent": [1]},
        "store": "down (gone)",
    }
    gauges: Gauges = {metrics.SETTINGS_CURRENT: {(): 0.0}, metrics.UPSTREAM_UP: {("a",): 0.0}}

    text = breakdown(body, gauges, ready=True)

    assert [line[:3] for line in text.splitlines()[:-1]].count("[-]") == 5
    assert "[+] tokens of a: can be verified" in text
    assert "[-] tokens of b: no key" in text
    assert text.endswith("\nready\n")


async def test_verbose_readiness_of_a_good_gateway_is_all_good(world: World) -> None:
    response = await world.ops.get("/readyz?verbose")

    assert response.headers["content-type"].startswith("text/plain")
    assert "[-]" not in response.text

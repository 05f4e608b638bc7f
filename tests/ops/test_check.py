"""`bff check`: the table, the problems, and a probe that tells a good place from a bad one."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from support.engines import Engine
from support.world import (
    ENVIRONMENT_ID,
    KEPT,
    OWN_KEY,
    ROOT_KEY,
    SECRET_KEY,
    Clock,
    Gateway,
    Through,
    World,
    environ,
    running_upstream,
)

from bff.config import reader, settings
from bff.demo.upstream import Answer, PretendUpstream
from bff.ops.check import Checker, Finding, Result

RUNS_KEY = "tr_dev_sk_RUNSONLY00000000000000001"


def check(told: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bff", "check", *arguments],
        env=KEPT | told,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


# -- the table


def test_the_table_shows_each_setting_with_its_source_and_no_secret(tmp_path) -> None:
    (tmp_path / "keys").write_text(f"{OWN_KEY}\n{OWN_KEY}2\n")
    (tmp_path / "bff.toml").write_text(
        'BFF_CACHE_TTL = 3\n[policies."chat.agent"]\nBFF_EXPOSE_METADATA = ["progress"]\n'
    )
    told = environ(
        BFF_SIGNING_KEYS=None,
        BFF_SIGNING_KEYS_FILE=str(tmp_path / "keys"),
        BFF_CONFIG=str(tmp_path / "bff.toml"),
    )

    done = check(told)

    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["TRIGGER_SECRET_KEY"] == ["TRIGGER_SECRET_KEY", "set", "environment"]
    assert rows["BFF_SIGNING_KEYS"][1:] == ["set,", "2", "of", "them", str(tmp_path / "keys")]
    assert rows["BFF_CACHE_TTL"] == ["BFF_CACHE_TTL", "3", "BFF_CONFIG"]
    assert rows["BFF_CACHE_CLOSED_TTL"] == ["BFF_CACHE_CLOSED_TTL", "30"]
    before, _, defaults = done.stdout.partition("\nDefaults\n")
    assert before.startswith("Set\n")
    assert "BFF_CACHE_TTL" in before
    assert "BFF_CACHE_CLOSED_TTL" in defaults
    assert "`" not in done.stdout
    assert "\nSet for policy 'chat.agent'\n" in done.stdout
    assert "metadata.progress" in done.stdout
    assert set(settings.SETTINGS) <= set(rows)
    assert OWN_KEY not in done.stdout + done.stderr
    assert SECRET_KEY not in done.stdout + done.stderr


def test_every_problem_is_shown_with_its_remedy_and_the_exit_is_2() -> None:
    told = environ(BFF_RATE_LIMIT="many", BFF_CACHE_TLL="2", TRIGGER_API_URL="http://u:pw@up/")

    done = check(told)

    assert done.returncode == 2
    assert "BFF_RATE_LIMIT is not a limit; write N/second" in done.stderr
    assert "did you mean BFF_CACHE_TTL?" in done.stderr
    assert "TRIGGER_API_URL may hold a host, a port and a path" in done.stderr
    assert "pw@" not in done.stdout + done.stderr


def test_a_ttl_that_may_be_meant_in_milliseconds_is_noted() -> None:
    assert "BFF_CACHE_TTL is 2000 seconds" in check(environ(BFF_CACHE_TTL="2000")).stdout
    assert "BFF_CACHE_TTL is" not in check(environ(BFF_CACHE_TTL="60")).stdout


# -- the probe, over real sockets


@pytest.fixture
def live(upstream: running_upstream) -> dict[str, str]:
    return environ(TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}")


def test_a_good_place_passes_every_probe(gateway: Gateway, live: dict[str, str]) -> None:
    done = check(live, "--probe", "--url", gateway.url)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROBLEM" not in done.stdout
    for text in (
        "the key is accepted and may read sessions",
        "left in the environment's bucket",
        "a token that names the session gets 200",
        "a token for another session gets [403, 403, 403] and no token 401",
        "a foreign Origin gets no permission to read",
        "nothing in front keeps copies",
        "the clock of the gateway agrees",
    ):
        assert text in done.stdout, text
    assert done.stdout.count("\n  OK ") == 10
    assert OWN_KEY not in done.stdout
    assert "eyJ" not in done.stdout


def test_a_wrong_key_is_a_problem_with_a_remedy(live: dict[str, str]) -> None:
    done = check(live | {"TRIGGER_SECRET_KEY": "tr_dev_sk_WRONG"}, "--probe")

    assert done.returncode == 2
    assert "PROBLEM  the key is rejected: check TRIGGER_SECRET_KEY" in done.stdout


def test_the_store_is_asked_too(live: dict[str, str], tmp_path) -> None:
    with Engine("valkey", tmp_path, "--requirepass", "pw") as engine:
        told = {"BFF_STORE_URL": engine.url.replace("//", "//:pw@")}
        well = check(live | told, "--probe")
        refused = check(live | {"BFF_STORE_URL": engine.url.replace("//", "//:no@")}, "--probe")
    away = check(live | told, "--probe")

    assert well.returncode == 0, well.stdout
    assert (
        "OK       it accepts the name and the password; replicas that are there: 0" in well.stdout
    )
    assert well.stdout.endswith("\nProblems: none\n")
    for done, why in ((refused, "rejects the name or the password"), (away, "cannot be reached")):
        assert done.returncode == 2
        assert f"{why}: check BFF_STORE_URL" in done.stdout
        assert done.stdout.endswith("\nProblems: 1\n")


def test_a_gateway_that_is_not_there_is_a_problem(live: dict[str, str]) -> None:
    done = check(live, "--probe", "--url", "http://127.0.0.1:1")

    assert done.returncode == 2
    assert "127.0.0.1:1 cannot be asked (unavailable: Connection refused): check" in done.stdout


def test_why_a_place_cannot_be_asked_is_told(live: dict[str, str], upstream) -> None:
    for url, why in (
        ("http://no-such-host.invalid", "unavailable: no such host"),
        (f"https://127.0.0.1:{upstream.port}", "unavailable: it does not speak TLS with us"),
    ):
        assert f"{url} cannot be asked ({why})" in check(live, "--probe", "--url", url).stdout
    for wrong in ("localhost:8787", "app.example.com"):
        done = check(live, "--probe", "--url", wrong)
        assert "--url begins with https:// or http://" in done.stderr
        assert done.returncode == 2


def test_what_is_not_the_browser_port_is_told_from_a_front_that_leaks(
    gateway: Gateway, live: dict[str, str]
) -> None:
    done = check(live, "--probe", "--url", gateway.ops_url)

    assert "is not the gateway, or a proxy in front" in done.stdout
    assert "isolation" not in done.stdout
    assert done.stdout.endswith("\nProblems: 1\n")


# -- the probe against bad places, in this process


class Body(httpx2.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class Places(httpx2.AsyncBaseTransport):
    """Reaches upstream and the gateway by host; `front` stands before the gateway."""

    def __init__(self, world: World) -> None:
        self._upstream = httpx2.ASGITransport(world.upstream)
        self._gateway = httpx2.ASGITransport(world.service.browser_app)
        self._clock = world.clock
        self.front: Callable[[httpx2.Request, httpx2.Response], Any] = lambda _, answer: answer
        self.skew = 0.0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host != "gateway":
            return await self._upstream.handle_async_request(request)
        answer = await self._gateway.handle_async_request(request)
        await answer.aread()
        answer.headers["date"] = formatdate(self._clock.wall + self.skew, usegmt=True)
        answer = self.front(request, answer)
        return httpx2.Response(
            answer.status_code, headers=answer.headers, stream=Body(answer.content)
        )


async def probe(
    world: World, places: Places, **changes: str
) -> tuple[list[Finding], list[Finding]]:
    told = reader.load(environ(**changes))
    prober = Checker(told, world.clock, transport=Through(places))
    (environment,) = told.environments
    up = [finding async for finding in prober.upstream(environment, None)]
    session = await prober.first_session(environment)
    gateway = [f async for f in prober.gateway(environment, "http://gateway", session)]
    await prober.aclose()
    return up, gateway


def problems(findings: list[Finding]) -> str:
    return "\n".join(finding.text for finding in findings if finding.result is Result.PROBLEM)


async def test_a_good_place_in_this_process_has_no_problem(world: World) -> None:
    up, gateway = await probe(world, Places(world))

    assert problems(up + gateway) == ""
    assert {finding.result for finding in gateway} == {Result.OK}


async def test_the_environment_of_a_root_key_is_told_and_compared(world: World) -> None:
    up, _ = await probe(world, Places(world), TRIGGER_SECRET_KEY=ROOT_KEY)
    assert f"the key belongs to environment {ENVIRONMENT_ID}" in [f.text for f in up]

    up, _ = await probe(
        world, Places(world), TRIGGER_SECRET_KEY=ROOT_KEY, BFF_ENVIRONMENT_ID="env_other"
    )
    assert "BFF_ENVIRONMENT_ID says env_other" in problems(up)


async def test_a_key_that_may_not_read_sessions_is_a_problem(world: World) -> None:
    upstream: PretendUpstream = world.upstream
    upstream.environments[0].additional_keys[RUNS_KEY] = ("read:runs",)

    up, _ = await probe(world, Places(world), TRIGGER_SECRET_KEY=RUNS_KEY)

    assert "the key is accepted but may not read sessions: give it read:sessions" in problems(up)


async def test_a_spent_bucket_is_shown(world: World) -> None:
    world.upstream.environments[0].bucket.remaining = 400_000
    world.upstream.environments[0].bucket.since = world.clock.wall

    up, _ = await probe(world, Places(world))

    assert any(f.result is Result.UNSURE and "399998 of 1000000 left" in f.text for f in up), up


async def test_a_front_that_keeps_copies_by_url_is_found(world: World) -> None:
    places, kept = Places(world), {}

    def front(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        return kept.setdefault(str(request.url), answer)

    places.front = front
    _, gateway = await probe(world, places)

    assert "isolation: while the copy is shared, a token for another session gets [200" in problems(
        gateway
    )
    assert "two requests got one answer" in problems(gateway)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cache-control": "public, max-age=60"}, "rewrites Cache-Control"),
        ({"vary": "Accept-Encoding"}, "removes Vary"),
        ({"access-control-allow-origin": "*"}, "adds CORS headers of its own"),
    ],
)
async def test_a_front_that_rewrites_headers_is_found(
    world: World, change: dict[str, str], text: str
) -> None:
    places = Places(world)

    def front(_: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        answer.headers.update(change)
        return answer

    places.front = front
    _, gateway = await probe(world, places)

    assert text in problems(gateway)


@pytest.mark.parametrize(("skew", "found"), [(4.0, 0), (30.0, 1), (-30.0, 1)])
async def test_clocks_that_disagree_are_found(clock: Clock, skew: float, found: int) -> None:
    async with World(clock) as world:
        places = Places(world)
        places.skew = skew
        _, gateway = await probe(world, places)

        assert problems(gateway).count("let both follow NTP") == found


async def test_a_front_that_routes_the_ops_port_is_found(world: World) -> None:
    places = Places(world)

    def front(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.url.path != "/metrics":
            return answer
        return httpx2.Response(200, content=world.telemetry.metrics())

    places.front = front
    _, gateway = await probe(world, places)

    assert "anybody reads /metrics here" in problems(gateway)


async def test_a_gateway_with_other_keys_is_told_from_one_that_leaks(world: World) -> None:
    _, gateway = await probe(world, Places(world), BFF_SIGNING_KEYS="x" * 40)

    assert "it runs with other settings" in problems(gateway)


async def test_a_session_that_cannot_be_had_is_told_with_its_code(world: World) -> None:
    async def down(_: object) -> Answer:
        return Answer(500, {})

    world.upstream.override = down

    _, gateway = await probe(world, Places(world))

    assert "gets 502 upstream_unavailable, not 404: see its log" in problems(gateway)


async def test_without_a_session_isolation_is_unsure_not_well(world: World) -> None:
    world.upstream.environments[0].sessions.clear()

    _, gateway = await probe(world, Places(world))

    assert problems(gateway) == ""
    assert any(f.result is Result.UNSURE and "pass --session ID" in f.text for f in gateway)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({}, 0, "verified by the keys here: whatever BFF_SIGNING_KEYS did not sign is refused"),
        ({"BFF_ENVIRONMENT_ID": None}, 0, "the environment's id is not needed: all keys are your"),
        ({"BFF_SIGNING_KEYS": None}, 0, "verified by upstream: an additional key"),
        (
            {"BFF_SIGNING_KEYS": None, "TRIGGER_SECRET_KEY": ROOT_KEY},
            0,
            "verified by the keys here: a root key signs Trigger.dev's",
        ),
        ({"BFF_VERIFY": "local,upstream"}, 0, "by the keys here and then by upstream"),
        (
            {"BFF_SIGNING_KEYS": None, "BFF_ENVIRONMENT_ID": None},
            2,
            "this key cannot tell: set BFF_ENVIRONMENT_ID",
        ),
    ],
    ids=range(6),
)
def test_the_probe_says_who_verifies_tokens_and_why(
    live: dict[str, str], changes: dict[str, str | None], code: int, says: str
) -> None:
    told = {name: text for name, text in (live | changes).items() if text is not None}

    done = check(told, "--probe")

    assert says in done.stdout
    assert done.returncode == code, done.stdout


def test_without_a_signing_key_isolation_is_left_unproved(
    gateway: Gateway, live: dict[str, str]
) -> None:
    told = {name: text for name, text in live.items() if name != "BFF_SIGNING_KEYS"}

    done = check(told, "--probe", "--url", gateway.url)

    assert "isolation cannot be proved from here" in done.stdout
    assert "Traceback" not in done.stderr

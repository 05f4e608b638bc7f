"""`bff check --probe`: upstream, the secret key, and the store."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import httpx2
import pytest
from ops.test_check import check
from support.engines import Engine
from support.raw_upstream import certificate
from support.world import ENVIRONMENT_ID, FRIENDLY, ROOT_KEY, World, environ, through

from bff.config import reader
from bff.demo.upstream import PretendUpstream
from bff.ops.check import Finding, Page, Result
from bff.ops.check_upstream import UpstreamChecker
from bff.replicas.keys import REPLICAS

RUNS_KEY = "tr_dev_sk_RUNSONLY00000000000000001"


async def findings(world: World, **changes: str) -> list[Finding]:
    settings = reader.load(environ(**changes))
    network = through(httpx2.ASGITransport(world.upstream))
    checker = UpstreamChecker(settings, world.clock, network=network)
    (environment,) = settings.environments
    return [finding async for finding in checker.findings(environment, None)]


def problems(findings: list[Finding]) -> str:
    return "\n".join(finding.text for finding in findings if finding.result is Result.PROBLEM)


def test_rejected_key_is_a_problem_with_a_remedy(live: dict[str, str]) -> None:
    done = check(live | {"TRIGGER_SECRET_KEY": "tr_dev_sk_WRONG"}, "--probe")

    assert done.returncode == 2
    assert "PROBLEM  the key is rejected: check TRIGGER_SECRET_KEY" in done.stdout
    assert f"\n           See {Page.UPSTREAM}\n" in done.stdout


def test_store_is_tested(live: dict[str, str], tmp_path: Path) -> None:
    with Engine("valkey", tmp_path, "--requirepass", "pw") as engine:
        store = {"BFF_STORE_URL": engine.url.replace("//", "//:pw@")}
        with engine.client(password="pw") as client:
            good = check(live | store, "--probe")
            assert not client.exists(REPLICAS), "the command takes no share of the limits"
        refused = check(live | {"BFF_STORE_URL": engine.url.replace("//", "//:no@")}, "--probe")
    down = check(live | store, "--probe")

    assert good.returncode == 0, good.stdout
    assert "OK       the store accepts the name and the password" in good.stdout
    assert "connected replicas: 0" in good.stdout
    assert good.stdout.endswith("\nProblems: none\n")
    for done, reason in (
        (refused, "rejects the name or the password"),
        (down, "cannot be reached"),
    ):
        assert done.returncode == 2
        assert f"{reason}: check BFF_STORE_URL" in done.stdout
        assert done.stdout.endswith("\nProblems: 1\n")


async def test_session_to_test_with_is_listed_upstream(world: World) -> None:
    settings = reader.load(environ())
    network = through(httpx2.ASGITransport(world.upstream))
    checker = UpstreamChecker(settings, world.clock, network=network)
    (environment,) = settings.environments

    assert await checker.first_session(environment) == FRIENDLY["chat-1"]
    world.answer(403, {})
    assert await checker.first_session(environment) is None


async def test_environment_of_a_root_key_is_compared(world: World) -> None:
    results = await findings(world, TRIGGER_SECRET_KEY=ROOT_KEY)
    assert f"the key belongs to environment {ENVIRONMENT_ID}" in [f.text for f in results]

    results = await findings(world, TRIGGER_SECRET_KEY=ROOT_KEY, BFF_ENVIRONMENT_ID="env_other")
    assert "but BFF_ENVIRONMENT_ID is env_other" in problems(results)


async def test_key_without_read_permission_is_a_problem(world: World) -> None:
    upstream: PretendUpstream = world.upstream
    upstream.environments[0].additional_keys[RUNS_KEY] = ("read:runs",)

    results = await findings(world, TRIGGER_SECRET_KEY=RUNS_KEY)

    assert "the key is accepted but may not read sessions: give it read:sessions" in problems(
        results
    )


async def test_low_bucket_is_shown(world: World) -> None:
    world.upstream.environments[0].bucket.remaining = 400_000
    world.upstream.environments[0].bucket.since = world.clock.wall

    results = await findings(world)

    assert any(f.result is Result.UNSURE and "399999 of 1000000 left" in f.text for f in results), (
        results
    )


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({}, 0, "verified with the signing keys: the gateway refuses tokens"),
        ({"BFF_ENVIRONMENT_ID": None}, 0, "BFF_ENVIRONMENT_ID is not needed: no signing key is"),
        ({"BFF_SIGNING_KEYS": None}, 0, "verified by upstream: a restricted key"),
        (
            {"BFF_SIGNING_KEYS": None, "TRIGGER_SECRET_KEY": ROOT_KEY},
            0,
            "verified with the signing keys: a root key signs Trigger.dev's",
        ),
        ({"BFF_VERIFY": "local,upstream"}, 0, "with the signing keys, then by upstream"),
        (
            {"BFF_SIGNING_KEYS": None, "BFF_ENVIRONMENT_ID": None},
            0,
            "the key belongs to environment env_test",
        ),
    ],
    ids=range(6),
)
def test_report_explains_how_tokens_are_verified(
    live: dict[str, str], changes: dict[str, str | None], code: int, text: str
) -> None:
    merged = {name: value for name, value in (live | changes).items() if value is not None}

    done = check(merged, "--probe")

    assert text in done.stdout
    assert done.returncode == code, done.stdout


async def test_check_tells_the_api_from_something_else(world: World) -> None:
    for status in (401, 403, 404):
        world.answer(status, b"<html>Log in</html>", content_type="text/html")
        text = problems(await findings(world))
        assert f"something that is not the API answers {status}" in text
        assert "the key is rejected" not in text


async def test_check_names_the_remedy_for_an_authority_of_ones_own(
    world: World, tmp_path: Path
) -> None:
    context = certificate(tmp_path, "own")
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        settings = reader.load(environ(TRIGGER_API_URL=f"https://127.0.0.1:{port}"))
        async with aclosing(UpstreamChecker(settings, world.clock)) as checker:
            (finding,) = [f async for f in checker.findings(settings.environments[0], None)]
    assert finding.result is Result.PROBLEM
    assert "its certificate is not valid" in finding.text
    assert "set BFF_UPSTREAM_CA_FILE" in finding.text

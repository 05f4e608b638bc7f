"""Incidents of operators: what they type, keys that change, and outages that spread."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import bff
from support.world import (
    KEPT,
    NEW_KEY,
    ORIGIN,
    OWN_KEY,
    PATIENCE,
    ROOT_KEY,
    SECRET_KEY,
    Clock,
    World,
    environ,
    running_upstream,
)

from bff.config import reader
from bff.config.settings import SettingsError
from bff.demo.upstream import Environment, session

APPS = ("capacitor://localhost", "chrome-extension://abcdefghijklmnop", "app://Obsidian.md")
BRANCH_KEY = "tr_preview_BRANCHsentinel00000001"
NEXT_KEY = "tr_dev_sk_NEXTsentinel00000000001"


@pytest.mark.parametrize("origin", APPS)
async def test_40_origins_of_apps_and_extensions_work_when_named(clock: Clock, origin: str) -> None:
    async with World(clock, BFF_ALLOWED_ORIGINS=f"{ORIGIN},{origin}") as world:
        good = await world.get("chat-1", origin=origin)
        null = await world.get("chat-1", origin="null")
    assert good.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-origin" not in null.headers


@pytest.mark.parametrize("networks", ["0.0.0.0/0", "10.0.0.0/8,::/0", "0.0.0.0/1,128.0.0.0/1"])
def test_46_network_of_everybody_is_refused_as_a_proxy(networks: str) -> None:
    with pytest.raises(SettingsError) as raised:
        reader.load(environ(BFF_TRUSTED_PROXIES=networks))
    assert "BFF_TRUSTED_PROXIES contains" in str(raised.value.problems)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TRIGGER_SECRET_KEY", f'"{SECRET_KEY}"'),
        ("BFF_SIGNING_KEYS", f"'{OWN_KEY}'"),
        ("BFF_SIGNING_KEYS", f"{OWN_KEY}\u00a0"),
        ("BFF_SIGNING_KEYS", f"{OWN_KEY},"),
        ("BFF_SIGNING_KEYS", "${SIGNING_KEYS_THAT_NOBODY_SET_ANYWHERE}"),
        ("BFF_ENVIRONMENT_ID", '"env_test"'),
        ("BFF_ENVIRONMENT_ID", "env_replace_me"),
        ("BFF_ALLOWED_ORIGINS", '"https://app.example.com"'),
    ],
)
def test_45_traces_of_tools_in_a_value_are_refused(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        reader.load(environ(**{name: text}))

    (problem,) = raised.value.problems
    assert problem.startswith(f"{name} ")
    assert OWN_KEY not in problem
    assert SECRET_KEY not in problem


def test_45_key_in_place_of_a_path_is_never_printed() -> None:
    for name in ("BFF_SIGNING_KEYS_FILE", "TRIGGER_SECRET_KEY_FILE", "BFF_CONFIG"):
        for key in (ROOT_KEY, NEW_KEY):
            changes = environ(**{name.removesuffix("_FILE"): None}) | {name: key}
            done = bff("check", environ=changes)
            assert done.returncode == 2
            assert key not in done.stdout + done.stderr


def serve(**changes: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bff", "serve"],
        env=KEPT | environ(BFF_PORT="0", BFF_OPS_PORT="0", **changes),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("key", [SECRET_KEY, ROOT_KEY])
def test_88_gateway_with_the_id_of_another_branch_does_not_start(key: str) -> None:
    with running_upstream() as upstream:
        done = serve(
            TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}",
            TRIGGER_SECRET_KEY=key,
            BFF_SIGNING_KEYS=ROOT_KEY,
            BFF_ENVIRONMENT_ID="env_other_branch",
        )

    assert done.returncode == 2
    assert "the key belongs to environment env_test, but BFF_ENVIRONMENT_ID is" in done.stderr
    assert key not in done.stderr


def test_88_branch_with_the_parents_id_does_not_start() -> None:
    branch = Environment("env_branch", BRANCH_KEY, branch="feat/one")
    branch.add(session(7, "chat-1"))
    with running_upstream() as upstream:
        upstream.app.environments = (*upstream.app.environments, branch)
        settings: dict[str, str | None] = {
            "TRIGGER_API_URL": f"http://127.0.0.1:{upstream.port}",
            "TRIGGER_SECRET_KEY": BRANCH_KEY,
            "BFF_SIGNING_KEYS": BRANCH_KEY,
            "BFF_BRANCH": "feat/one",
        }
        done = serve(**settings, BFF_ENVIRONMENT_ID="env_parent")

    assert done.returncode == 2
    assert "the key, branch feat/one, belongs to environment env_branch" in done.stderr


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_89_upstream_outage_does_not_empty_the_service(world: World, status: int) -> None:
    world.answer(status, {"error": "x"})
    assert (await world.get("chat-1")).status_code >= 500
    await world.ops.get("/readyz?verbose")
    world.clock.advance(600)

    ready = await world.ops.get("/readyz")
    refused = await world.get("chat-1")

    assert ready.status_code == 200
    assert refused.headers["access-control-allow-origin"], "browsers can read why"


async def test_90_id_that_upstream_forbids_moves_no_health(world: World) -> None:
    await world.ops.get("/readyz?verbose")
    world.answer(403, {"error": "Unauthorized"})
    for number in range(6):
        assert (await world.get(f"forbidden-{number}")).status_code == 502
    world.answer(0)

    text = (await world.ops.get("/readyz?verbose")).text
    assert "[+] upstream of default: the upstream answers" in text
    metrics = (await world.ops.get("/metrics")).text
    assert 'bff_upstream_up{environment="default"} 1.0' in metrics
    assert 'bff_ready{environment="default"} 1.0' in metrics


async def test_91_next_secret_key_is_not_used_silently(world: World) -> None:
    world.upstream.environments[0].additional_keys = {NEXT_KEY: ("read:sessions",)}
    await world.start(TRIGGER_SECRET_KEY=f"{SECRET_KEY},{NEXT_KEY}")

    assert (await world.get("chat-1")).status_code == 200

    (line,) = [line for line in world.logged() if line["event"] == "secret_key_rejected"]
    assert (line["level"], line["now_used"]) == ("error", 2)
    metrics = (await world.ops.get("/metrics")).text
    assert 'bff_secret_key_in_use{environment="default"} 2.0' in metrics
    assert 'bff_secret_key_changes_total{environment="default"} 1.0' in metrics
    assert "[-] secret keys of default" in (await world.ops.get("/readyz?verbose")).text
    assert NEXT_KEY not in world.log.getvalue()


async def test_planned_rotation_is_silent_and_shows_a_bad_key(world: World, clock: Clock) -> None:
    """In the order of docs/OPERATIONS.md."""

    async def in_use() -> str:
        before = world.calls
        clock.advance(5)
        assert (await world.get("chat-1")).status_code == 200
        await world.settle()
        assert world.calls > before, "a load with the keys of now"
        metrics = (await world.ops.get("/metrics")).text
        return re.search(r'bff_secret_key_in_use{environment="default"} (\S+)', metrics)[1]

    page = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text()
    (order,) = re.findall(r"rotate a secret key\*\*: [^.]+\(`(\w+),(\w+)`\)", page)
    keys = {"new": NEXT_KEY, "old": SECRET_KEY}
    both = ",".join(keys[name] for name in order)
    await world.start(BFF_CACHE_TTL="0", TRIGGER_SECRET_KEY=SECRET_KEY)
    held = world.upstream.environments[0].additional_keys
    held |= {SECRET_KEY: ("read:sessions",), NEXT_KEY: ("read:sessions",)}

    world.reload(TRIGGER_SECRET_KEY=both)
    assert await in_use() == "1.0"
    world.reload(TRIGGER_SECRET_KEY=NEXT_KEY)
    del held[SECRET_KEY]
    assert await in_use() == "1.0"
    assert "secret_key_rejected" not in world.log.getvalue()

    held[SECRET_KEY] = held.pop(NEXT_KEY)
    world.reload(TRIGGER_SECRET_KEY=both)
    assert await in_use() == "2.0", "upstream rejects the new key"


def test_91_check_tests_every_secret_key() -> None:
    with running_upstream() as upstream:
        other = Environment("env_other", f"{ROOT_KEY}2")
        upstream.app.environments = (*upstream.app.environments, other)
        settings = environ(
            TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}",
            TRIGGER_SECRET_KEY=f"{SECRET_KEY},{NEXT_KEY},{ROOT_KEY}2,{ROOT_KEY}",
        )
        done = bff("check", "--probe", environ=settings)

    assert done.returncode == 2
    assert "PROBLEM  secret key 2: the key is rejected" in done.stdout
    assert "PROBLEM  secret key 3: it belongs to environment env_other" in done.stdout
    assert "OK       secret key 4: the key is accepted" in done.stdout
    assert "secret key 1" not in done.stdout

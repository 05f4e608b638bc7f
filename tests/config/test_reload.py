"""Change without restart: all or nothing, at once, and nothing of the old rules afterwards."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from support.world import (
    NEW_KEY,
    ORIGIN,
    OWN_KEY,
    PATH,
    PATIENCE,
    Clock,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff import metrics
from bff.app import Service
from bff.config.reload import Watch


async def test_removed_signing_key_ends_its_tokens_at_once(
    world: World,
) -> None:
    old, new = (world.signed_with(key, "chat-1") for key in (OWN_KEY, NEW_KEY))
    assert (await world.get("chat-1", token=old)).status_code == 200
    assert (await world.get("chat-1", token=new)).status_code == 401

    world.reload(BFF_SIGNING_KEYS=f"{NEW_KEY},{OWN_KEY}")
    assert (await world.get("chat-1", token=old)).status_code == 200
    assert (await world.get("chat-1", token=new)).status_code == 200

    world.reload(BFF_SIGNING_KEYS=NEW_KEY)
    assert (await world.get("chat-1", token=old)).status_code == 401
    response = await world.get("chat-1", token=new)
    assert response.headers["cache-status"] == "bff; hit"
    assert world.calls == 1


async def test_invalid_file_changes_nothing_and_is_logged(world: World) -> None:
    world.reload(BFF_SIGNING_KEYS=NEW_KEY, BFF_RATE_LIMIT="plenty")

    assert (await world.get("chat-1")).status_code == 200
    line = world.logged()[-2]
    assert (line["event"], line["level"]) == ("settings_not_reloaded", "error")
    assert "BFF_RATE_LIMIT is not a limit" in line["problems"][0]
    assert NEW_KEY not in world.log.getvalue()
    metrics = (await world.ops.get("/metrics")).text
    assert 'bff_reloads_total{outcome="failed"} 1.0' in metrics
    assert "bff_settings_current 0.0" in metrics

    world.reload(BFF_RATE_LIMIT="10/minute")
    assert (await world.get("chat-1")).status_code == 401
    assert "bff_settings_current 1.0" in (await world.ops.get("/metrics")).text


async def test_flood_of_signals_costs_one_reload(world: World) -> None:
    for reloads in (1, 2):
        for _ in range(50):
            world.service.reload.on_signal()
        while world.telemetry.counts[metrics.RELOADS, "ok"] < reloads:
            await asyncio.sleep(0.01)

    assert world.telemetry.counts[metrics.RELOADS, "ok"] == 2


async def test_copies_stay_unless_the_policy_changes(world: World) -> None:
    await world.get("chat-1")
    world.reload(BFF_CACHE_TTL="60", BFF_ALLOWED_ORIGINS="https://other.example")

    response = await world.get("chat-1", origin="https://other.example")
    assert response.headers["cache-status"] == "bff; hit"
    assert response.headers["access-control-allow-origin"] == "https://other.example"
    assert "access-control-allow-origin" not in (await world.get("chat-1")).headers
    assert world.calls == 1

    world.reload(BFF_EXPOSE_METADATA="plan")
    response = await world.get("chat-1")
    assert response.json()["metadata"] == {"plan": "enterprise"}
    assert world.calls == 2

    world.reload(BFF_EXPOSE_METADATA=None)
    response = await world.get("chat-1")
    assert response.json()["metadata"] is None
    assert world.calls == 3


async def test_setting_that_needs_a_restart_is_logged(world: World) -> None:
    world.reload(BFF_PORT="9999", BFF_UPSTREAM_TIMEOUT="3")

    (line,) = [line for line in world.logged() if line["event"] == "settings_need_restart"]
    assert line["settings"] == ["BFF_PORT", "BFF_UPSTREAM_TIMEOUT"]


async def test_setting_that_needs_a_restart_waits_for_it(world: World) -> None:
    async def slow(_: object) -> None:
        await asyncio.sleep(0.1)

    world.upstream.override = slow
    world.reload(BFF_UPSTREAM_TIMEOUT="0.01")

    assert (await world.get("chat-1")).status_code == 200


async def test_connection_bounds_and_fast_path_need_a_restart(world: World) -> None:
    world.reload(BFF_FAST_PATH="false", BFF_MAX_CONNECTIONS="7", BFF_IDLE_TIMEOUT="9")

    (line,) = [line for line in world.logged() if line["event"] == "settings_need_restart"]
    assert line["settings"] == ["BFF_FAST_PATH", "BFF_MAX_CONNECTIONS", "BFF_IDLE_TIMEOUT"]


def test_file_change_counts_when_it_has_settled(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one")
    watch = Watch([str(path)])
    assert not watch.changed()

    path.write_text("tw")
    assert not watch.changed()
    path.write_text("two, longer")
    assert not watch.changed()
    assert watch.changed()
    assert not watch.changed()


def test_link_with_a_new_target_is_a_change(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(version)
    (tmp_path / "data").symlink_to("v1")
    (tmp_path / "key").symlink_to("data/key")
    watch = Watch([str(tmp_path / "key")])

    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").rename(tmp_path / "data")

    assert [watch.changed(), watch.changed()] == [False, True]


@pytest.mark.parametrize("how", ["signal", "file"])
def test_running_gateway_reloads_on_signal_and_on_change(
    upstream: running_upstream, tmp_path: Path, how: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(OWN_KEY)
    with Gateway(upstream.port, BFF_SIGNING_KEYS="", BFF_SIGNING_KEYS_FILE=str(keys)) as gateway:
        token = sign(claims(time.time(), *read("chat-1")), NEW_KEY)
        sent = {"authorization": f"Bearer {token}", "origin": ORIGIN}
        url = gateway.url + PATH + "chat-1"
        assert http.get(url, headers=sent).status_code == 401

        keys.write_text(f"{NEW_KEY}\n{OWN_KEY}\n")
        if how == "signal":
            os.kill(gateway.process.pid, signal.SIGHUP)
        ended = time.monotonic() + PATIENCE
        while (response := http.get(url, headers=sent)).status_code == 401:
            assert time.monotonic() < ended, gateway.output
            time.sleep(0.05)

        assert response.status_code == 200


async def test_change_during_start_is_noticed(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{NEW_KEY}\n{OWN_KEY}")
    monkeypatch.setattr("bff.config.reload.WATCH_SECONDS", 0.01)
    connect = Service.connect

    async def slowly(service: Service) -> None:
        keys.write_text(NEW_KEY)
        await connect(service)

    monkeypatch.setattr(Service, "connect", slowly)
    told = {"BFF_SIGNING_KEYS": None, "BFF_SIGNING_KEYS_FILE": str(keys)}
    async with World(clock, **told) as world:
        async with asyncio.timeout(10):
            while "settings_reloaded" not in world.log.getvalue():
                await asyncio.sleep(0.01)
        assert (await world.get("chat-1")).status_code == 401

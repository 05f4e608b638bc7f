"""Change without restart: all or nothing, at once, and nothing of the old rules afterwards."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from support.world import (
    FRIENDLY,
    ORIGIN,
    OWN_KEY,
    PATH,
    Clock,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff.app import Service
from bff.config.reload import Watch
from bff.demo.upstream import Seen

NEW_KEY = "new-signing-key-sentinel-0123456789abcdef"


def signed_with(world: World, key: str, *ids: str) -> str:
    return sign(claims(world.clock.wall, *read(*ids)), key)


async def test_a_removed_signing_key_stops_at_once_even_for_remembered_tokens(
    world: World,
) -> None:
    old, new = (signed_with(world, key, "chat-1") for key in (OWN_KEY, NEW_KEY))
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


async def test_a_bad_file_changes_nothing_and_is_reported(world: World) -> None:
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


async def test_copies_stay_unless_the_policy_changed(world: World) -> None:
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


async def test_copies_of_another_place_are_not_served_under_its_name(world: World) -> None:
    await world.get("chat-1")

    world.reload(TRIGGER_API_URL="http://127.0.0.2:1")
    await world.get("chat-1")

    assert [seen.header("host") for seen in world.upstream.seen] == ["127.0.0.1:1", "127.0.0.2:1"]


async def test_who_waits_across_a_change_is_decided_by_the_new_rules(world: World) -> None:
    release = asyncio.Event()

    async def slow(_: Seen) -> None:
        await release.wait()

    world.upstream.override = slow
    tokens = [signed_with(world, key, "chat-1") for key in (OWN_KEY, NEW_KEY)]
    world.reload(BFF_SIGNING_KEYS=f"{NEW_KEY},{OWN_KEY}", BFF_EXPOSE_METADATA="plan")
    waiting = [asyncio.create_task(world.get("chat-1", token=token)) for token in tokens]
    while world.calls == 0:
        await asyncio.sleep(0)

    world.reload(BFF_SIGNING_KEYS=NEW_KEY, BFF_EXPOSE_METADATA="progress")
    release.set()
    removed, kept = await asyncio.gather(*waiting)

    assert removed.status_code == 401
    assert kept.json()["metadata"] == {"progress": 0}
    assert world.calls == 1  # loaded once, projected by the policy that was in force then


async def test_limits_change_and_unchanged_ones_go_on_counting(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="2/minute")
    await world.get("chat-1")

    world.reload(BFF_IP_RATE_LIMIT="100/minute")
    assert (await world.get("chat-1")).headers["x-ratelimit-remaining"] == "0"

    world.reload(BFF_RATE_LIMIT="5/minute")
    assert (await world.get("chat-1")).headers["x-ratelimit-remaining"] == "4"


async def test_proxies_that_are_trusted_from_now_on_count_as_such_at_the_door_too(
    world: World,
) -> None:
    await world.start(BFF_MAX_CONNECTIONS_PER_ADDRESS="1")
    doors = world.service._connections
    assert [doors.enter("192.0.2.9"), doors.enter("192.0.2.9")] == [True, False]

    world.reload(BFF_TRUSTED_PROXIES="192.0.2.0/24")
    assert doors.enter("192.0.2.9")
    world.reload(BFF_TRUSTED_PROXIES=None)
    assert not doors.enter("192.0.2.9")


async def test_what_needs_a_restart_is_said(world: World) -> None:
    world.reload(BFF_PORT="9999", BFF_UPSTREAM_TIMEOUT="3")

    (line,) = [line for line in world.logged() if line["event"] == "settings_need_restart"]
    assert line["settings"] == ["BFF_PORT", "BFF_UPSTREAM_TIMEOUT"]


async def test_what_needs_a_restart_waits_for_it(world: World) -> None:
    async def slow(_: object) -> None:
        await asyncio.sleep(0.1)

    world.upstream.override = slow
    world.reload(BFF_UPSTREAM_TIMEOUT="0.01")

    assert (await world.get("chat-1")).status_code == 200


async def test_the_bounds_of_connections_and_the_lane_need_a_restart(world: World) -> None:
    world.reload(BFF_FAST_LANE="off", BFF_MAX_CONNECTIONS="7", BFF_IDLE_TIMEOUT="9")

    (line,) = [line for line in world.logged() if line["event"] == "settings_need_restart"]
    assert line["settings"] == ["BFF_FAST_LANE", "BFF_IDLE_TIMEOUT", "BFF_MAX_CONNECTIONS"]


async def test_which_key_was_used_last_is_told_by_number(world: World) -> None:
    await world.start(BFF_SIGNING_KEYS=f"{NEW_KEY},{OWN_KEY}")
    await world.get("chat-1", token=signed_with(world, OWN_KEY, "chat-1"))
    world.clock.advance(5)
    token = signed_with(world, NEW_KEY, "chat-1")
    await world.get("chat-1", token=token)
    world.clock.advance(60)
    await world.get("chat-1", token=token)  # remembered as verified, and used all the same

    def used() -> dict[str, float]:
        return {use.number: use.last for use in world.service.gateway.config.verifier.uses}

    assert used() == {1: 1_800_000_065.0, 2: 1_800_000_000.0}

    world.reload(BFF_SIGNING_KEYS=f"{'x' * 40},{NEW_KEY},{OWN_KEY}")
    assert used() == {1: 0.0, 2: 1_800_000_065.0, 3: 1_800_000_000.0}


# -- files


def test_a_change_counts_once_it_has_come_to_rest(tmp_path: Path) -> None:
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


def test_a_link_that_is_pointed_elsewhere_is_a_change(tmp_path: Path) -> None:
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
def test_a_running_gateway_takes_new_keys_on_a_signal_and_by_itself(
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
        ended = time.monotonic() + 15
        while (response := http.get(url, headers=sent)).status_code == 401:
            assert time.monotonic() < ended, gateway.output
            time.sleep(0.05)

        assert response.status_code == 200


async def test_what_changes_while_the_gateway_starts_is_noticed(
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


# -- the purge


async def purge(world: World, id_: str) -> int:
    return (await world.ops.delete(f"/cache/sessions/{id_}")).status_code


@pytest.mark.parametrize("id_", ["chat-1", FRIENDLY["chat-1"]])
async def test_a_purge_forgets_both_ids(world: World, id_: str) -> None:
    await world.get("chat-1")
    await world.get("chat-2")

    assert await purge(world, id_) == 204

    await world.get("chat-1")
    await world.get(FRIENDLY["chat-1"])
    await world.get("chat-2")
    assert world.calls == 3


@pytest.mark.parametrize("id_", ["chat-1", FRIENDLY["chat-1"]])
async def test_a_purge_during_a_load_wins(world: World, id_: str) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Seen) -> None:
        asked.set()
        await release.wait()

    world.upstream.override = slow
    waiting = asyncio.create_task(world.get("chat-1"))
    await asked.wait()
    await purge(world, id_)
    release.set()
    assert (await waiting).status_code == 200

    await world.get("chat-1")
    assert world.calls == 2
    await world.get("chat-1")
    assert world.calls == 2


@pytest.mark.parametrize("old_ends_first", [True, False])
async def test_who_comes_after_a_purge_does_not_join_the_load_before_it(
    world: World,
    old_ends_first: bool,
) -> None:
    release = [asyncio.Event(), asyncio.Event()]

    async def slow(_: Seen) -> None:
        await release[world.calls - 1].wait()

    world.upstream.override = slow
    before = asyncio.create_task(world.get("chat-1"))
    while world.calls < 1:
        await asyncio.sleep(0)
    await purge(world, "chat-1")
    after = asyncio.create_task(world.get("chat-1"))
    async with asyncio.timeout(5):
        while world.calls < 2:
            await asyncio.sleep(0)
    if old_ends_first:
        release[0].set()
        await before
        third = asyncio.create_task(world.get("chat-1"))
        await asyncio.sleep(0.01)
        assert world.calls == 2  # it joined the newer one
        release[1].set()
        assert (await third).headers["cache-status"] == "bff; fwd=miss; collapsed"
    release[1].set()
    assert (await after).headers["cache-status"] == "bff; fwd=miss; stored"
    release[0].set()
    await before

    assert (await world.get("chat-1")).headers["cache-status"] == "bff; hit"
    assert world.calls == 2


async def test_a_purge_of_an_encoded_id_and_of_no_id(world: World) -> None:
    await world.get("a/b: c%?#ü")

    assert await purge(world, "a%2Fb%3A%20c%25%3F%23%C3%BC") == 204
    assert await purge(world, "a/b") == 400

    await world.get("a/b: c%?#ü")
    assert world.calls == 2

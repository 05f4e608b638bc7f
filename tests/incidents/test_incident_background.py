"""Loops beside requests that end, and files that a dead or delayed watch does not see."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.world import NEW_KEY, OWN_KEY, World

from bff.config import reload
from bff.config.reload import Watch


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.005)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def _raise(end: BaseException) -> Callable[..., Any]:
    async def run(_: object) -> None:
        raise end

    return run


async def _return(_: object) -> None:
    return


async def _hang(_: object) -> None:
    await asyncio.sleep(3600)


ENDS = {
    "raises": _raise(OSError("no space")),
    "exits": _raise(SystemExit(1)),
    "is interrupted": _raise(KeyboardInterrupt()),
    "returns": _return,
    "hangs": _hang,
    "is cancelled": None,
}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{NEW_KEY}\n{OWN_KEY}\n")
    return path


async def begin(world: World, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with quick pauses and with keys in a file."""
    monkeypatch.setattr(reload, "WATCH_SECONDS", 0.01)
    await world.start(BFF_SIGNING_KEYS="", BFF_SIGNING_KEYS_FILE=str(keys))
    world.service.background._restart_seconds = 0.01


@pytest.mark.parametrize("end", ENDS)
async def test_38_loop_that_ends_is_started_again(
    world: World, keys: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("bff.background.CHECK_SECONDS", 0.05)
    await begin(world, keys, monkeypatch)
    background = world.service.background
    watching = next(loop for loop in background._loops if loop.task == "settings_watch")
    run = watching.run
    if (other := ENDS[end]) is not None:
        watching.run, watching.checks = other, 10
    watching.running.cancel()
    restarts = 'bff_background_restarts_total{task="settings_watch"} '
    await until(
        lambda: (
            world.telemetry.counts["bff_background_restarts", "settings_watch"] > 1
            or end == "is cancelled"
        )
    )
    watching.run = run
    await until(lambda: world.telemetry.counts["bff_background_restarts", "settings_watch"])
    text = (await world.ops.get("/metrics")).text
    assert restarts in text
    assert restarts + "0.0" not in text

    old = world.signed_with(OWN_KEY, "chat-1")
    await until(lambda: background.up["settings_watch"])
    assert (await world.get("chat-1", token=old)).status_code == 200
    write(keys, NEW_KEY)
    await until(lambda: len(world.service.reload.settings.environments[0].signing_keys) == 1)
    assert (await world.get("chat-1", token=old)).status_code == 401
    failed = [line for line in world.logged() if line["event"] == "background_failed"]
    assert len(failed) == 1, "one line, however often it ended"


async def test_38_stopped_loop_shows_in_readiness(
    world: World, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(world, keys, monkeypatch)
    background = world.service.background
    background._restart_seconds = 3600
    for loop in background._loops:
        loop.running.cancel()
    await until(lambda: not any(background.up.values()))

    stopped = (await world.ops.get("/readyz")).json()["background"]["restarting"]
    assert {"settings_watch", "loop_lag"} <= set(stopped)
    text = (await world.ops.get("/metrics")).text
    assert 'bff_background_up{task="settings_watch"} 0.0' in text


async def test_80_removed_key_is_noticed_without_the_watch(
    world: World, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop has ended for good, and the owner of loops with it."""
    monkeypatch.setattr(reload, "REREAD_SECONDS", 0.05)
    await begin(world, keys, monkeypatch)
    await world.service.background.stop()
    old = world.signed_with(OWN_KEY, "chat-1")
    assert (await world.get("chat-1", token=old)).status_code == 200

    write(keys, NEW_KEY)
    await until(lambda: len(world.service.reload.settings.environments[0].signing_keys) == 1)
    assert (await world.get("chat-1", token=old)).status_code == 401
    assert reload.REREAD_SECONDS <= 30


async def test_80_key_removed_during_the_start_is_noticed(
    world: World, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the settings and the first look at their files."""
    service = world.service
    watch = Watch.__init__

    def late(self: Watch, files: Any) -> None:
        keys.write_text(NEW_KEY)
        watch(self, files)

    monkeypatch.setattr(Watch, "__init__", late)
    await world.start(BFF_SIGNING_KEYS="", BFF_SIGNING_KEYS_FILE=str(keys))
    assert world.service is not service
    old = world.signed_with(OWN_KEY, "chat-1")
    assert (await world.get("chat-1", token=old)).status_code == 401


def test_80_busy_file_does_not_delay_the_change_of_another(tmp_path: Path) -> None:
    """A soak found this: a removed key was accepted as long as another file kept changing."""
    keys, busy = tmp_path / "keys", tmp_path / "busy"
    keys.write_text("one")
    busy.write_text("")
    watch = Watch([str(keys), str(busy)])

    keys.write_text("two")
    for looks in range(1, 20):
        busy.write_text("x" * looks)
        if watch.changed():
            break
    assert looks == 3


async def test_80_gauge_shows_a_change_that_is_not_in_force(
    world: World, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(world, keys, monkeypatch)
    assert "bff_settings_current 1.0" in (await world.ops.get("/metrics")).text
    await world.service.background.stop()

    write(keys, NEW_KEY)
    os.utime(keys, (1, 1))
    assert "bff_settings_current 0.0" in (await world.ops.get("/metrics")).text
    world.service.reload()
    assert "bff_settings_current 1.0" in (await world.ops.get("/metrics")).text

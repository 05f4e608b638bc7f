"""Loops beside requests that end, and files that a dead or delayed watch does not see."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engines import Engine
from support.replicas import PATIENT, RealClock, heartbeat
from support.world import NEW_KEY, OWN_KEY, World

from bff.background import Background, _Loop
from bff.config import reload
from bff.config.reload import Watch
from bff.metrics import BACKGROUND_RESTARTS, BACKGROUND_TASKS


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


async def _wait(_: object) -> None:
    await asyncio.sleep(3600)


ENDS = {
    "raises": _raise(OSError("no space")),
    "exits": _raise(SystemExit(1)),
    "is interrupted": _raise(KeyboardInterrupt()),
    "returns": _return,
    "hangs": _wait,
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


# -- all loops at once, each killed where it waits


class Odd(BaseException):
    pass


Kill = Callable[[Background, _Loop], None]


def _inside(make: Callable[[], BaseException]) -> Kill:
    """Let the future that the loop waits for raise in the code of the loop."""

    def kill(_: Background, loop: _Loop) -> None:
        task: Any = loop.running
        while isinstance(task._fut_waiter, asyncio.Task):
            task = task._fut_waiter
        task._fut_waiter.set_exception(make())

    return kill


def _outside(_: Background, loop: _Loop) -> None:
    assert loop.running is not None
    loop.running.cancel()


def _hang(background: Background, loop: _Loop) -> None:
    """Let it not beat for its deadline."""
    assert loop.checks is not None, f"{loop.task} may hang for ever"
    assert background._timer is not None
    loop.silent = round(loop.checks)
    background._timer.cancel()
    background._check()


DEATHS: dict[str, Kill] = {
    "value": _inside(lambda: ValueError("s3ntinel")),
    "system": _inside(lambda: OSError(24, "s3ntinel")),
    "memory": _inside(MemoryError),
    "lookup": _inside(KeyError),
    "recursion": _inside(RecursionError),
    "late": _inside(TimeoutError),
    "cancels itself": _inside(asyncio.CancelledError),
    "exits": _inside(lambda: SystemExit("s3ntinel")),
    "is interrupted": _inside(KeyboardInterrupt),
    "is closed": _inside(GeneratorExit),
    "odd": _inside(lambda: Odd("s3ntinel")),
    "is cancelled": _outside,
    "hangs": _hang,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine("valkey", tmp_path_factory.mktemp("store")) as engine:
        yield engine


@pytest.fixture
async def sharing(store: Engine, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that has every loop there is."""
    store.empty()
    settings = tmp_path / "bff.toml"
    settings.write_text(
        """
        [[token_sources]]
        name = "provider"
        issuer = "https://idp.example.com"
        audience = "bff"
        algorithms = "RS256"
        jwks_url = "https://idp.example.com/keys"
        """
    )
    files = {"BFF_CONFIG": str(settings)}
    async with World(RealClock(), BFF_STORE_URL=store.url, **PATIENT, **files) as world:
        world.service.background._restart_seconds = 0.01
        yield world


def waits(loop: _Loop) -> Any:
    """Return the future that the loop waits for; None if it does not run."""
    task: Any = loop.running
    while isinstance(waiter := getattr(task, "_fut_waiter", None), asyncio.Task):
        task = waiter
    return waiter


@pytest.mark.parametrize("death", DEATHS)
async def test_38_every_loop_survives_every_end(sharing: World, death: str) -> None:
    world, background = sharing, sharing.service.background
    loops = list(background._loops)
    assert {loop.task for loop in loops} == set(BACKGROUND_TASKS)
    await until(lambda: all(loop.done or waits(loop) for loop in loops))
    for loop in loops:
        if loop.done:  # its work is done: begin it again
            loop.done = False
            background._begin(loop)
    await asyncio.sleep(0)
    tasks = {loop: loop.running for loop in loops}
    waited = {loop: waits(loop) for loop in loops}

    for loop in loops:
        DEATHS[death](background, loop)
    await until(lambda: all(loop.done or waits(loop) not in (None, waited[loop]) for loop in loops))
    # Some loops catch some failures, as the listener of the store does.
    ended = {loop.task for loop in loops if loop.running is not tasks[loop]}
    counts, log = world.telemetry.counts, world.log.getvalue()
    assert {task for task in BACKGROUND_TASKS if counts[BACKGROUND_RESTARTS, task]} == ended
    assert ended >= {"settings_watch", "loop_lag", "streams", "listeners"}
    failed = [line["task"] for line in world.logged() if line["event"] == "background_failed"]
    assert sorted(failed) == sorted(set(failed)), "one line of each"
    assert set(failed) == ended
    assert "s3ntinel" not in log

    await heartbeat(world)
    assert (await world.ops.post("/revocations", json={"jti": "gone"})).status_code == 200
    token = world.token({"read": "sessions:chat-1"}, jti="gone")
    assert (await world.get("chat-1", token=token)).status_code == 401
    assert (await world.get("chat-1")).status_code == 200


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

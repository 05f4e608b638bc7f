"""Every loop beside requests runs for ever, whatever ends it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.virtual_time import run as run_history

from bff import background, metrics
from bff.background import DONE, Background, Beat
from bff.telemetry import Telemetry


class Owner:
    def __init__(self) -> None:
        self.log = io.StringIO()
        self.telemetry = Telemetry(self.log)
        self.background = Background(self.telemetry, restart_seconds=0.001)
        self.rounds = 0

    @property
    def restarts(self) -> float:
        return self.telemetry.counts[metrics.BACKGROUND_RESTARTS, "loop_lag"]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def until(self, met: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not met():
                await asyncio.sleep(0.002)


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    owner = Owner()
    yield owner
    await owner.background.stop()


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "end",
    [
        *(ValueError("secret"), SystemExit(1), KeyboardInterrupt(), Odd(), GeneratorExit(), None),
        asyncio.CancelledError(),
    ],
    ids=lambda end: type(end).__name__,
)
async def test_loop_that_ends_runs_again(owner: Owner, end: BaseException | None) -> None:
    async def run(_: Beat) -> None:
        owner.rounds += 1
        if owner.rounds < 4:
            if end is not None:
                raise end
            return
        await asyncio.sleep(3600)

    owner.background.start("loop_lag", run)
    await owner.until(lambda: owner.rounds == 4)

    assert owner.restarts == 3
    assert owner.background.up == {"loop_lag": True}
    (line,) = owner.lines()
    assert (line["event"], line["task"]) == ("background_failed", "loop_lag")
    assert "secret" not in owner.log.getvalue()


async def test_loop_that_is_cancelled_runs_again(owner: Owner) -> None:
    async def run(_: Beat) -> None:
        owner.rounds += 1
        await asyncio.sleep(3600)

    owner.background.start("loop_lag", run)
    for number in range(1, 4):
        await owner.until(lambda number=number: owner.rounds == number)
        owner.background._loops[0].running.cancel()
    await owner.until(lambda: owner.rounds == 4)
    assert owner.restarts == 3


@pytest.mark.parametrize("stubborn", [False, True])
async def test_loop_that_hangs_runs_again(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    monkeypatch.setattr(background, "CHECK_SECONDS", 0.01)
    free = asyncio.Event()

    async def run(beat: Beat) -> None:
        owner.rounds += 1
        while owner.rounds == 1:
            try:
                await free.wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise
        while True:
            beat()
            await asyncio.sleep(0.001)

    owner.background.start("loop_lag", run, deadline=0.1)
    await owner.until(lambda: owner.rounds == 2)
    assert owner.restarts == 1
    await asyncio.sleep(0.3)
    assert owner.restarts == 1, "a loop that beats does not hang"
    assert owner.lines()[0]["reason"] == "hung"
    free.set()


def test_loop_that_always_hangs_is_logged_once() -> None:
    """However long its deadline is: it never ran well."""

    async def history() -> None:
        owner = Owner()

        async def run(beat: Beat) -> None:
            beat()
            await asyncio.sleep(86_400)

        owner.background.start("loop_lag", run, deadline=120.0)
        await asyncio.sleep(1800)
        assert 12 <= owner.restarts <= 15
        assert owner.background._loops[0].pause > 1
        (line,) = owner.lines()
        assert line["reason"] == "hung"
        await owner.background.stop()

    run_history(history)


def test_loop_that_ran_for_a_minute_is_logged_again() -> None:
    async def history() -> None:
        owner = Owner()

        async def run(beat: Beat) -> None:
            for _ in range(70):
                beat()
                await asyncio.sleep(1)
            raise ValueError

        owner.background.start("loop_lag", run, deadline=120.0)
        await asyncio.sleep(300)
        assert len(owner.lines()) == owner.restarts == 4
        await owner.background.stop()

    run_history(history)


@pytest.mark.parametrize("hangs", [False, True])
async def test_failing_log_stops_no_loop(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(background, "CHECK_SECONDS", 0.01)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(owner.telemetry, "exception", fail)
    monkeypatch.setattr(owner.telemetry, "log", None)
    asyncio.get_running_loop().set_exception_handler(fail)

    async def run(_: Beat) -> None:
        owner.rounds += 1
        if hangs:
            await asyncio.sleep(3600)
        raise ValueError

    owner.background.start("loop_lag", run, deadline=0.05)
    await owner.until(lambda: owner.rounds == 4)
    assert owner.restarts >= 3


async def test_pause_grows_to_its_bound(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MAX_RESTART_SECONDS", 0.004)

    async def run(_: Beat) -> None:
        owner.rounds += 1

    owner.background.start("loop_lag", run)
    await owner.until(lambda: owner.rounds == 6)
    assert owner.background._loops[0].pause == 0.004


async def test_loop_that_is_done_does_not_run_again(owner: Owner) -> None:
    async def run(_: Beat) -> bool:
        owner.rounds += 1
        return DONE

    owner.background.start("loop_lag", run)
    await owner.until(lambda: owner.rounds)
    await asyncio.sleep(0.05)
    assert (owner.rounds, owner.restarts) == (1, 0)
    assert owner.background.up == {"loop_lag": True}


async def test_waiting_loop_shows_as_down(owner: Owner) -> None:
    owner.background._restart_seconds = 3600

    async def run(_: Beat) -> None:
        return

    owner.background.start("loop_lag", run)
    await owner.until(lambda: owner.restarts)
    assert owner.background.up == {"loop_lag": False}


async def test_stop_ends_loops_and_restarts_none(owner: Owner) -> None:
    async def run(_: Beat) -> None:
        owner.rounds += 1
        await asyncio.sleep(3600)

    async def fails(_: Beat) -> None:
        raise ValueError

    owner.background.start("loop_lag", run)
    owner.background.start("key_refresh", fails)
    await owner.until(lambda: owner.rounds)
    await owner.background.stop()
    counted = dict(owner.telemetry.counts)
    await asyncio.sleep(0.05)
    assert dict(owner.telemetry.counts) == counted
    assert owner.background.up == {}


async def test_start_replaces_the_loops_of_its_name(owner: Owner) -> None:
    running: set[int] = set()

    def loop(number: int) -> Callable[[Beat], Any]:
        async def run(_: Beat) -> None:
            running.add(number)
            try:
                await asyncio.sleep(3600)
            finally:
                running.discard(number)

        return run

    owner.background.start("key_refresh", loop(1), loop(2))
    await owner.until(lambda: running == {1, 2})
    owner.background.start("key_refresh", loop(3))
    await owner.until(lambda: running == {3})
    assert owner.restarts == 0

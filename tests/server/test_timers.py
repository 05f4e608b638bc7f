"""The timers of a connection, on a loop whose time the test moves."""

from typing import Any

from support.differential import FakeLoop

from bff.server.timers import Deadline, IdleTimer


def test_deadline_that_is_set_again_replaces_the_first() -> None:
    loop: Any = FakeLoop()
    ended: list[str] = []
    deadline = Deadline(loop)
    assert not deadline.is_set

    deadline.set(10, lambda: ended.append("first"))
    deadline.set(5, lambda: ended.append("second"))

    assert deadline.is_set
    assert loop.seconds == [5]
    loop.timers[0].run()
    assert ended == ["second"]


def test_cancelled_deadline_calls_nothing() -> None:
    loop: Any = FakeLoop()
    deadline = Deadline(loop)
    deadline.cancel()
    deadline.set(10, lambda: None)

    deadline.cancel()

    assert not deadline.is_set
    assert loop.timers == []


def test_one_idle_timer_serves_all_requests() -> None:
    loop: Any = FakeLoop()
    ended: list[float] = []
    idle = IdleTimer(loop, 75, lambda: ended.append(loop.now))
    idle.start()
    loop.now = 60
    idle.stop()
    idle.start()
    assert loop.seconds == [75]

    loop.now = 75
    loop.timers[0].run()
    assert ended == []
    assert loop.seconds == [60], "it was idle for 15 seconds"

    loop.now = 135
    loop.timers[0].run()
    assert ended == [135]
    assert loop.timers == []


def test_idle_timer_ends_when_the_connection_is_not_idle() -> None:
    loop: Any = FakeLoop()
    ended: list[float] = []
    idle = IdleTimer(loop, 75, lambda: ended.append(loop.now))
    idle.start()
    idle.stop()
    loop.now = 75
    loop.timers[0].run()
    assert loop.timers == []

    idle.start()
    assert loop.seconds == [75], "the next request starts it again"
    idle.cancel()
    assert loop.timers == []
    assert ended == []

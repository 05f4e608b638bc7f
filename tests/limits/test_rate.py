"""Windows without a provider; the tests pass the time."""

from hypothesis import given
from hypothesis import strategies as st

from bff.limits.rate import UNLIMITED_WINDOW, Limiter, Unlimited


def test_window_begins_with_the_first_request_and_ends() -> None:
    limiter = Limiter("caller", 2, 60)

    exceeded = [limiter.charge("a", now).exceeded for now in (10, 69, 69.9, 70, 70)]

    assert exceeded == [False, False, True, False, False]
    assert limiter.charge("b", 70).remaining == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=200), st.integers(1, 5)
)
def test_no_key_exceeds_its_limit_in_a_window(steps, limit) -> None:
    limiter = Limiter("caller", limit, 60)
    now, allowed = 0.0, {}
    for key, pause in steps:
        now += pause
        window = limiter.charge(key, now)
        assert window.remaining == max(0, limit - window.used)
        assert 0 <= window.reset(now) <= 60
        if not window.exceeded:
            allowed.setdefault((key, window.ends), []).append(now)

    assert all(len(times) <= limit for times in allowed.values())


def test_limiter_drops_the_oldest_window_when_full() -> None:
    limiter = Limiter("caller", 1, 60, max_keys=3)
    for number in range(4):
        limiter.charge(number, number)

    assert limiter.charge(3, 5).exceeded
    assert limiter.charge(1, 5).exceeded
    assert not limiter.charge(0, 5).exceeded


def test_limiter_drops_ended_windows_without_a_sweep() -> None:
    limiter = Limiter("caller", 1, 60)
    for number in range(100):
        limiter.charge(number, 0)
    for number in range(100):
        limiter.charge(1000 + number, 61)

    assert len(limiter._windows) == 100


def test_unlimited_counts_nothing_and_is_never_exceeded() -> None:
    limiter = Unlimited("caller")
    for _ in range(3):
        window = limiter.charge("a", 0)
        window.charge()
    window.refund()
    limiter.refund("a")

    assert window is limiter.charge("b", 1e9) is UNLIMITED_WINDOW
    assert window.used == 0
    assert (window.exceeded, window.exhausted, window.first, window.headers) == (False,) * 4


def test_refund_takes_back_the_last_charge() -> None:
    limiter = Limiter("caller", 2, 60)
    limiter.charge("a", 0).charge()
    assert limiter.look("a", 0).exhausted

    limiter.refund("a")

    assert limiter.look("a", 0).used == 1


def test_look_begins_no_window_and_counts_nothing() -> None:
    limiter = Limiter("bad-token", 1, 60.0)

    assert not limiter.look("a", 0.0).exhausted
    assert len(limiter._windows) == 0
    limiter.charge("a", 0.0)
    assert limiter.look("a", 59.0).exhausted
    assert not limiter.look("a", 60.0).exhausted, "the window has ended"
    assert not Unlimited("off").look("a", 0.0).exhausted

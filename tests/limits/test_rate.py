"""Windows, addresses, the budget; by a clock that is a number."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff.limits.budget import Budget
from bff.limits.client_address import address_key, browser_address
from bff.limits.rate import Limiter


def test_a_window_begins_with_the_first_request_and_ends_in_time() -> None:
    limiter = Limiter("caller", 2, 60)

    taken = [limiter.charge("a", now).exceeded for now in (10, 69, 69.9, 70, 70)]

    assert taken == [False, False, True, False, False]
    assert limiter.charge("b", 70).remaining == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=200), st.integers(1, 5)
)
def test_no_key_gets_more_than_its_limit_in_a_window(steps, limit) -> None:
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


def test_keys_are_bounded_and_the_oldest_window_goes() -> None:
    limiter = Limiter("caller", 1, 60, max_keys=3)
    for number in range(4):
        limiter.charge(number, number)

    assert limiter.charge(3, 5).exceeded
    assert limiter.charge(1, 5).exceeded
    assert not limiter.charge(0, 5).exceeded


def test_windows_that_ended_are_forgotten_without_a_sweep() -> None:
    limiter = Limiter("caller", 1, 60)
    for number in range(100):
        limiter.charge(number, 0)
    for number in range(100):
        limiter.charge(1000 + number, 61)

    assert len(limiter._windows) == 100


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.3.4", "::ffff:1.2.3.4", True),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("local", "local", True),
        ("local", "127.0.0.1", False),
    ],
)
def test_addresses_are_counted_by_host_or_network(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", [b"1.1.1.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"10.2.2.2, 10.3.3.3"], "10.2.2.2"),
        ("10.0.0.1", [b"1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::1"),
        ("::ffff:10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("fd00::1", [b"2001:db8::1"], "2001:db8::1"),
        ("local", [b"198.51.100.7"], "local"),
        ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
        ("10.0.0.1", [b"6.6.6.6", *[b"10.2.2.2"] * 31], "6.6.6.6"),
        ("10.0.0.1", [*[b"6.6.6.6"] * 1000, *[b"10.2.2.2"] * 32], "10.2.2.2"),
    ],
)
def test_only_what_trusted_proxies_say_counts(peer: str, forwarded, expected: str) -> None:
    assert browser_address(peer, forwarded, TRUSTED) == expected


# -- the budget


@given(st.lists(st.floats(0, 1.5), max_size=200), st.integers(1, 5))
def test_never_more_than_the_budget_in_any_period(pauses, limit) -> None:
    budget = Budget(limit, 1.0)
    now, spent = 1000.0, []
    for pause in pauses:
        now += pause
        if budget.wait(now) == 0:
            budget.spend(now)
            spent.append(now)

    for index, start in enumerate(spent):
        assert sum(1 for t in spent[index:] if t < start + 1.0 - 1e-6) <= limit


def test_wait_tells_when_the_next_load_may_be_spent() -> None:
    budget = Budget(2, 1.0)
    budget.spend(10.0)
    budget.spend(10.25)

    assert budget.wait(10.5) == 0.5
    assert budget.wait(11.0) == 0
    assert budget.left(10.5) == 0
    assert budget.left(11.0) == 1
    assert budget.left(12.0) == 2


def test_the_lower_half_of_the_bucket_is_the_customers() -> None:
    budget = Budget(None)
    budget.observe(0, limit=10, remaining=7, reset=5)
    spent = 0
    while budget.wait(1) == 0:
        budget.spend(1)
        spent += 1

    assert spent == 2
    assert budget.wait(1) == 4
    assert budget.wait(5) == 0


@pytest.mark.parametrize(
    ("seconds", "paused"), [(-5, 1), (0, 1), (7, 7), (10**9, 60), (float("inf"), 60)]
)
def test_a_pause_is_bounded_both_ways(seconds: float, paused: float) -> None:
    budget = Budget(10)
    budget.pause(100, seconds)

    assert budget.wait(100) == paused


def test_freshness_stretches_with_the_hot_sessions() -> None:
    budget = Budget(10, 1.0)
    epochs = [-1] * 500
    for index in range(500):
        epochs[index] = budget.count_hot(epochs[index], 0)
    for index in range(500):  # asked again, they are the same sessions
        epochs[index] = budget.count_hot(epochs[index], 1)

    assert budget.stretched == 50
    budget.count_hot(-1, 30)
    assert budget.stretched == 50, "the epoch before still counts"
    budget.count_hot(-1, 60)
    budget.count_hot(-1, 90)
    assert budget.stretched == 0.1


def test_no_budget_stretches_nothing() -> None:
    budget = Budget(None)
    budget.count_hot(-1, 0)

    assert budget.stretched == 0
    assert budget.left(0) is None

"""Windows whose quota is leased: the store is a counter, and the tests pass the time."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import capacity

from bff.limits.rate import ALONE_SECONDS, LeasePending, Limiter, Window


@dataclass
class Counter:
    """The store's count of one key, as its script makes it."""

    limit: int
    seconds: float
    used: int = 0
    ends: float = 0.0
    windows: list[int] = field(default_factory=list)
    """The requests allowed in each of its windows."""

    def take(self, want: int, now: float) -> tuple[int, int, float]:
        self.begin_window(now)
        given = max(0, min(want, self.limit - self.used))
        self.used += given
        return given, self.limit - self.used, self.ends - now

    def begin_window(self, now: float) -> None:
        if now >= self.ends:
            self.used, self.ends = 0, now + self.seconds
            self.windows.append(0)


class Lease:
    """A lease in flight: `reach` counts it in the store, `land` brings the answer."""

    def __init__(self, provider: "QuotaProvider", window: Window, want: int, sent: float) -> None:
        self.provider, self.window, self.want, self.sent = provider, window, want, sent
        self.answer: tuple[int, int, float] | None = None

    def reach(self, now: float) -> None:
        self.answer = self.provider.counter.take(self.want, now)

    def land(self) -> None:
        assert self.answer is not None
        given, remaining_elsewhere, seconds = self.answer
        self.window.grant(self.provider, self.want, given, remaining_elsewhere, self.sent + seconds)


class QuotaProvider:
    up = True
    replicas = 2

    def __init__(self, counter: Counter, clock: "Now") -> None:
        self.counter, self.clock = counter, clock
        self.under_way: list[Lease] = []

    def lease(self, window: Window, want: int) -> Any:
        lease = Lease(self, window, want, self.clock.now)
        self.under_way.append(lease)
        return lease


class Now:
    now = 100.0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("charge"), st.integers(0, 2)),
        st.tuples(st.just("reach"), st.integers(0, 2)),
        st.tuples(st.just("land"), st.integers(0, 2)),
        st.tuples(st.just("pass"), st.sampled_from([0.001, 0.1, 4.0, 9.9])),
    ),
    max_size=200,
)


@given(st.integers(1, 40), steps)
def test_leased_window_is_never_exceeded_in_any_order_of_events(
    limit: int, events: list[tuple[str, int]]
) -> None:
    clock = Now()
    counter = Counter(limit, 10.0)
    providers = [QuotaProvider(counter, clock) for _ in range(3)]
    limiters = [Limiter("caller", limit, 10, provider=provider) for provider in providers]
    for event, which in events:
        if event == "pass":
            clock.now += which
        elif event == "charge":
            try:
                window = limiters[which].charge("key", clock.now)
            except LeasePending:
                continue
            if not window.exceeded:
                assert clock.now < counter.ends, "the lease was used after its window"
                counter.windows[-1] += 1
        else:
            for lease in providers[which].under_way[:1]:
                if event == "reach" and lease.answer is None:
                    lease.reach(clock.now)
                elif event == "land" and lease.answer is not None:
                    providers[which].under_way.pop(0)
                    lease.land()

    assert all(allowed <= limit for allowed in counter.windows)


def one_replica(limit: int) -> tuple[Limiter, QuotaProvider, Counter, Now]:
    clock = Now()
    counter = Counter(limit, 60.0)
    provider = QuotaProvider(counter, clock)
    return Limiter("caller", limit, 60, provider=provider), provider, counter, clock


def spend(limiter: Limiter, provider: QuotaProvider, clock: Now, number: int) -> int:
    """Charge *number* requests, ending each lease at once; returns how many are allowed."""
    allowed = 0
    for _ in range(number):
        while True:
            try:
                window = limiter.charge("key", clock.now)
            except LeasePending:
                for lease in provider.under_way:
                    lease.reach(clock.now)
                    lease.land()
                provider.under_way.clear()
            else:
                allowed += not window.exceeded
                break
    return allowed


def test_one_replica_uses_a_whole_limit_in_few_leases() -> None:
    limiter, provider, counter, clock = one_replica(300)
    leases = []
    lease = provider.lease
    provider.lease = lambda window, want: leases.append(want) or lease(window, want)  # type: ignore[func-returns-value]

    assert spend(limiter, provider, clock, 400) == 300
    assert counter.used == 300
    assert leases[0] == 300 // 8
    assert len(leases) < 80
    before = len(leases)
    assert spend(limiter, provider, clock, 1000) == 0
    assert len(leases) == before, "no lease of a window that is used up"


def test_replica_holds_at_most_an_eighth_of_a_limit() -> None:
    limiter, provider, counter, clock = one_replica(300)
    for _ in range(300):
        spend(limiter, provider, clock, 1)
        (window,) = limiter._windows.values()
        assert window.granted - window.used <= limiter.limit // 8
        assert counter.used - window.used <= limiter.limit // 8


def test_lease_that_ends_in_the_next_window_replaces_the_old_one() -> None:
    limiter, provider, counter, clock = one_replica(80)
    spend(limiter, provider, clock, 5)
    clock.now += 59.9
    spend(limiter, provider, clock, 2)  # three of ten are left, and a lease is in flight
    (lease,) = provider.under_way
    window = lease.window
    assert window.granted - window.used == 3
    clock.now += 0.2
    lease.reach(clock.now)
    lease.land()
    window.refund()  # belongs to the old window

    (window,) = limiter._windows.values()
    assert (window.used, window.granted) == (0, counter.used)


def test_replica_uses_its_share_while_the_store_is_down() -> None:
    limiter, provider, counter, clock = one_replica(100)
    assert spend(limiter, provider, clock, 5) == 5
    provider.up = False

    assert spend(limiter, provider, clock, 200) == 50 - 5

    provider.up = True
    used = counter.used
    assert spend(limiter, provider, clock, 200) == 50
    assert counter.used - used == 100 - used, "the store counted what was used without it"


def test_late_lease_is_not_waited_for_again() -> None:
    """The request that waited in vain is decided, and so are the next ones for a second."""
    limiter, provider, counter, clock = one_replica(100)
    with pytest.raises(LeasePending) as caught:
        limiter.charge("key", clock.now)
    caught.value.window.count_alone(clock.now)

    charged = [limiter.charge("key", clock.now).exceeded for _ in range(60)]
    assert charged == [False] * 50 + [True] * 10, "its share: half of the limit"

    clock.now += ALONE_SECONDS
    (lease,) = provider.under_way
    lease.window.lease_failed(clock.now - ALONE_SECONDS)
    provider.under_way.clear()
    assert spend(limiter, provider, clock, 100) == 50
    assert counter.used == 100, "the store counted what was used without it"


def test_window_has_the_whole_limit_without_a_provider() -> None:
    limiter = Limiter("caller", 3, 60)

    assert [limiter.charge("key", 0.0).exceeded for _ in range(4)] == [False] * 3 + [True]


def test_formulae_of_the_capacity_page_hold() -> None:
    """The short form of `make simulate`."""
    for case in capacity.cases(1000):
        said, seen = capacity.formulae(case), capacity.simulate(case)
        assert all(part < 0.05 for part in capacity.differences(said, seen).values()), case

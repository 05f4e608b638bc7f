"""Leases as arithmetic: a store that is a counter, time moved by hand, any order of events."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from programs import capacity

from bff.limits.rate import LeasePending, Limiter, Window


@dataclass
class Counter:
    """What the store keeps for one key: `store._TAKE`, in Python."""

    limit: int
    seconds: float
    used: int = 0
    ends: float = 0.0
    windows: list[int] = field(default_factory=list)
    """How many requests were let through in each of its windows."""

    def take(self, want: int, now: float) -> tuple[int, int, float]:
        self.look(now)
        given = max(0, min(want, self.limit - self.used))
        self.used += given
        return given, self.limit - self.used, self.ends - now

    def look(self, now: float) -> None:
        if now >= self.ends:
            self.used, self.ends = 0, now + self.seconds
            self.windows.append(0)


class Lease:
    """A question on its way to the counter and back."""

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

    def lease(self, window: Window, want: int) -> Lease:
        lease = Lease(self, window, want, self.clock.now)
        self.under_way.append(lease)
        return lease


class Now:
    now = 100.0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.just("reach"), st.integers(0, 2)),
        st.tuples(st.just("land"), st.integers(0, 2)),
        st.tuples(st.just("pass"), st.sampled_from([0.001, 0.1, 4.0, 9.9])),
    ),
    max_size=200,
)


@given(st.integers(1, 40), steps)
def test_whatever_the_order_no_window_of_the_store_lets_one_too_many_through(
    limit: int, events: list[tuple[str, int]]
) -> None:
    clock = Now()
    counter = Counter(limit, 10.0)
    lessors = [QuotaProvider(counter, clock) for _ in range(3)]
    limiters = [Limiter("caller", limit, 10, provider=provider) for provider in lessors]
    for what, which in events:
        if what == "pass":
            clock.now += which
        elif what == "ask":
            try:
                window = limiters[which].charge("key", clock.now)
            except LeasePending:
                continue
            if not window.exceeded:
                assert clock.now < counter.ends, "spent in the window it was leased in"
                counter.windows[-1] += 1
        else:
            for lease in lessors[which].under_way[:1]:
                if what == "reach" and lease.answer is None:
                    lease.reach(clock.now)
                elif what == "land" and lease.answer is not None:
                    lessors[which].under_way.pop(0)
                    lease.land()

    assert all(let_through <= limit for let_through in counter.windows)


def alone(limit: int) -> tuple[Limiter, QuotaProvider, Counter, Now]:
    clock = Now()
    counter = Counter(limit, 60.0)
    provider = QuotaProvider(counter, clock)
    return Limiter("caller", limit, 60, provider=provider), provider, counter, clock


def spend(limiter: Limiter, provider: QuotaProvider, clock: Now, number: int) -> int:
    """Ask *number* times, each lease arriving at once; returns how many were let through."""
    let_through = 0
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
                let_through += not window.exceeded
                break
    return let_through


def test_one_replica_uses_all_of_a_limit_in_few_leases() -> None:
    limiter, provider, counter, clock = alone(300)
    asked = []
    lease = provider.lease
    provider.lease = lambda window, want: asked.append(want) or lease(window, want)

    assert spend(limiter, provider, clock, 400) == 300
    assert counter.used == 300
    assert asked[0] == 300 // 8
    assert len(asked) < 80
    few = len(asked)
    assert spend(limiter, provider, clock, 1000) == 0
    assert len(asked) == few, "what is used up is not asked for again"


def test_nobody_holds_more_than_an_eighth_of_a_limit() -> None:
    limiter, provider, counter, clock = alone(300)
    for _ in range(300):
        spend(limiter, provider, clock, 1)
        (window,) = limiter._windows.values()
        assert window.granted - window.used <= limiter.limit // 8
        assert counter.used - window.used <= limiter.limit // 8


def test_a_lease_that_arrives_in_the_next_window_leaves_nothing_of_the_former() -> None:
    limiter, provider, counter, clock = alone(80)
    spend(limiter, provider, clock, 5)
    clock.now += 59.9
    spend(limiter, provider, clock, 2)  # of ten: three are left, and more is on its way
    (lease,) = provider.under_way
    window = lease.window
    assert window.granted - window.used == 3
    clock.now += 0.2
    lease.reach(clock.now)
    lease.land()
    window.used -= 1  # one of the former's is given back

    (window,) = limiter._windows.values()
    assert (window.used, window.granted) == (0, counter.used)


def test_the_share_of_one_among_several_while_the_store_is_away() -> None:
    limiter, provider, counter, clock = alone(100)
    assert spend(limiter, provider, clock, 5) == 5
    provider.up = False

    assert spend(limiter, provider, clock, 200) == 50 - 5

    provider.up = True
    used = counter.used
    assert spend(limiter, provider, clock, 200) == 50
    assert counter.used - used == 100 - used, "what was spent alone was counted afterwards"


def test_without_a_lessor_the_whole_window_is_there_at_once() -> None:
    limiter = Limiter("caller", 3, 60)

    assert [limiter.charge("key", 0.0).exceeded for _ in range(4)] == [False] * 3 + [True]


def test_the_formulae_of_the_capacity_page_hold() -> None:
    """The short form of `make simulate`."""
    for case in capacity.cases(1000):
        said, seen = capacity.formulae(case), capacity.simulate(case)
        assert all(part < 0.05 for part in capacity.differences(said, seen).values()), case

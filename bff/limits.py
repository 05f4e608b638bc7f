"""Who is counted, and by what; and what may be spent upstream. Decides without I/O.

Time is seconds on a clock that never jumps.
"""

import asyncio
import sys
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from math import inf
from typing import Protocol

MAX_RESET = 60.0
"""Seconds: the official SDK waits for a reset however far it is, so none is further away."""
_MAX_HOPS = 32
"""More trusted proxies in a row than anyone has; what stands left of them is not even split."""

Network = IPv4Network | IPv6Network


_SAME_SECONDS = 1.0
"""Upstream's periods that end as close together as this are one."""
PARTS = 4
"""All replicas together hold at most this part of what is left of a window without using it."""
_NEVER = sys.maxsize


class Lessor(Protocol):
    """Gives out windows that several replicas share, a lease at a time."""

    @property
    def up(self) -> bool:
        """Whether it can be asked."""

    @property
    def replicas(self) -> int:
        """Among how many a limit is divided while it cannot."""

    def lease(self, window: "Window", want: int) -> "asyncio.Task[None]":
        """Begin to get *want* more, and then `settle` or `unsettle` the window."""


class Unleased(Exception):  # noqa: N818  not a mistake: the answer is elsewhere
    """Whether one more may be taken is not known here: await *lease*, and ask again."""

    def __init__(self, limiter: "Limiter", lease: "asyncio.Task[None]") -> None:
        super().__init__(limiter.name)
        self.limiter = limiter
        self.lease = lease


class Window:
    """What one key has used of its limit, until when.

    What may be used is what has been granted: without a lessor all of the limit, else what was
    leased so far, or this replica's share while the lessor is away.
    """

    __slots__ = (
        "_borrowed", "_leased", "ends", "granted", "key", "leasing", "limiter", "low", "rest",
        "used", "waiting",
    )  # fmt: skip

    def __init__(self, limiter: "Limiter", key: Hashable, ends: float, *, leased: bool) -> None:
        self.limiter = limiter
        self.key = key
        self.ends = ends
        self.used = 0
        self.granted = 0 if leased else limiter.limit
        self.rest = limiter.limit - self.granted
        """What the lessor had left when it was last asked."""
        self.low = 0 if leased else _NEVER
        """How many are used when more is leased."""
        self.leasing: asyncio.Task[None] | None = None
        self.waiting = 0
        self._leased = False
        self._borrowed = 0

    @property
    def exceeded(self) -> bool:
        """Whether more was taken than the limit gives."""
        return self.used > self.granted

    @property
    def first(self) -> bool:
        """Whether the last one taken was the first too many."""
        return self.used == self.granted + 1

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to take."""
        return self.used >= self.granted

    def more(self, lessor: Lessor) -> None:
        """See to it that one can be taken, or is known not to be there.

        Raises:
            Unleased: neither is known before a lease is.
        """
        if not lessor.up:
            share = max(1, self.limiter.limit // lessor.replicas)
            if self.granted < share:
                self._borrowed += share - self.granted
                self.granted = share
            return
        if self._borrowed:
            # What was spent without asking is leased afterwards; what was refused was not spent.
            self.used = min(self.used, self.granted)
            self.granted -= self._borrowed
            self._borrowed = 0
        if self.leasing is None:
            share = max(self._share(lessor), self.waiting + 1)
            want, self.waiting = self.used - self.granted + share, 0
            if want <= 0:
                return
            self.leasing = lessor.lease(self, want)
        if self.used >= self.granted:
            self.waiting += 1
            raise Unleased(self.limiter, self.leasing)

    def _share(self, lessor: Lessor) -> int:
        return max(1, self.rest // (PARTS * lessor.replicas))

    def settle(self, lessor: Lessor, want: int, given: int, rest: int, ends: float) -> None:
        """Learn that *given* of *want* are leased until *ends*, and *rest* are left for others."""
        self.leasing = None
        if self._leased and ends - self.ends > self.limiter.seconds / 2:
            # A window has begun there while the lease was on its way: the former one's is void.
            self.limiter.renew(self, ends).settle(lessor, want, given, rest, ends)
            return
        self._leased = True
        self.granted += given
        self.rest = rest
        self.ends = ends
        self.low = _NEVER if given < want else self.granted - self._share(lessor) // 2

    def unsettle(self) -> None:
        """Learn that nothing could be leased."""
        self.leasing = None

    @property
    def remaining(self) -> int:
        """What is left to take."""
        return max(0, self.granted - self.used) + self.rest

    def reset(self, now: float) -> float:
        """Seconds until a new window, at most `MAX_RESET`."""
        seconds = self.ends - now
        if seconds > MAX_RESET:
            return MAX_RESET
        return seconds if seconds > 0 else 0.0


class Limiter:
    """Counts by key; a window begins with the first request of a key and lasts *seconds*.

    Args:
        name: what is counted, for headers and metrics.
        max_keys: bound on the keys remembered; beyond it the oldest window is forgotten.
        lessor: where windows are leased from; without one each is this process's whole.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        seconds: float,
        *,
        max_keys: int = 100_000,
        lessor: Lessor | None = None,
    ) -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self._lessor = lessor
        self._max_keys = max_keys
        # Windows are all of one length, so the order of insertion is the order of expiry.
        self._windows: OrderedDict[Hashable, Window] = OrderedDict()

    def window(self, key: Hashable, now: float) -> Window:
        """Look at the window of *key* without taking.

        Raises:
            Unleased: it has to be leased first.
        """
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            window = self._open(key, now)
        if window.used >= window.low and self._lessor is not None:
            window.more(self._lessor)
        return window

    def take(self, key: Hashable, now: float) -> Window:
        """Count one for *key*; raises as `window` does, and then counts nothing."""
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            window = self._open(key, now)
        if window.used >= window.low and self._lessor is not None:
            window.more(self._lessor)
        window.used += 1
        return window

    def untake(self, key: Hashable) -> None:
        """Give back the last one counted for *key*."""
        if window := self._windows.get(key):
            window.used -= 1

    def renew(self, window: Window, ends: float) -> Window:
        """Begin another window in place of *window*, for what that has used beyond its grants.

        Another one and not the same, for what is given back later belongs to the former.
        """
        new = Window(self, window.key, ends, leased=True)
        new.used = max(0, window.used - window.granted)
        if self._windows.get(window.key) is window:
            self._windows[window.key] = new
            self._windows.move_to_end(window.key)
        return new

    def _open(self, key: Hashable, now: float) -> Window:
        windows = self._windows
        windows.pop(key, None)
        for _ in range(2):  # two out for one in: what has ended is gone soon, no sweep is needed
            if windows and (
                len(windows) >= self._max_keys or next(iter(windows.values())).ends <= now
            ):
                windows.popitem(last=False)
        leased = self._lessor is not None
        window = windows[key] = Window(self, key, now + self.seconds, leased=leased)
        return window


class Budget:
    """What the gateway may spend of one environment's bucket upstream.

    At most *limit* loads in any *seconds*; of the bucket that upstream reports, which is shared
    with the customer's own backend, never the lower half; nothing while upstream says 429.

    Args:
        limit: None for no limit of our own; upstream's word counts all the same.
    """

    EPOCH = 30.0
    """Seconds over which distinct sessions are counted as hot: twice a usual poll interval."""

    def __init__(self, limit: int | None, seconds: float = 1.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self.replicas = 1
        """Among how many the limit is divided; not 1 while replicas cannot count together."""
        self._spent: deque[float] = deque(maxlen=limit)
        self._allowance = inf
        self._allowance_ends = -inf
        self._paused = -inf
        self._epoch = 0
        self._hot = 0
        self._hot_before = 0
        self.stretched = 0.0
        """Seconds a copy must count as fresh for so that all hot sessions fit the budget."""

    def wait(self, now: float) -> float:
        """Seconds until one more load may be spent; 0 if it may now."""
        if now < self._paused:
            return self._paused - now
        if self._allowance < 1 and now < self._allowance_ends:
            return self._allowance_ends - now
        if self.limit is not None:
            share = max(1, self.limit // self.replicas)
            if len(self._spent) >= share:
                return max(0.0, self._spent[-share] + self.seconds - now)
        return 0.0

    def spend(self, now: float) -> None:
        """Count one load; ask `wait` before."""
        if self.limit is not None:
            self._spent.append(now)
        self._allowance -= 1

    def pause(self, now: float, seconds: float) -> None:
        """Spend nothing for *seconds* (bounded to between 1 and `MAX_RESET`): upstream said 429."""
        self._paused = max(self._paused, now + min(max(seconds, 1.0), MAX_RESET))

    def observe(self, now: float, *, limit: int, remaining: int, reset: float) -> None:
        """Learn from an answer what is left upstream: *remaining* of *limit*, for *reset* seconds.

        What is above the lower half may be spent until then. Answers overtake one another, and say
        nothing of what was asked after them: of one period the lowest word counts, and none of a
        former one.
        """
        allowance, ends = remaining - limit // 2, now + min(max(reset, 0.0), MAX_RESET)
        later = ends - self._allowance_ends
        if (
            now >= self._allowance_ends
            or later >= _SAME_SECONDS
            or (later > -_SAME_SECONDS and allowance < self._allowance)
        ):
            self._allowance, self._allowance_ends = allowance, ends

    def count_hot(self, epoch: int, now: float) -> int:
        """Count a session as hot, unless it has been in *epoch* (its last); returns the current."""
        current = int(now / self.EPOCH)
        if current != self._epoch:
            self._hot_before = self._hot if current == self._epoch + 1 else 0
            self._hot = 0
            self._epoch = current
        if epoch != current:
            self._hot += 1
            if self.limit is not None:
                self.stretched = max(self._hot, self._hot_before) * self.seconds / self.limit
        return current

    def left(self, now: float) -> int | None:
        """How many loads may be spent at once now; None if nothing bounds them."""
        if self.wait(now) > 0:
            return 0
        bounds = []
        if self.limit is not None:
            recent = sum(1 for spent in self._spent if spent > now - self.seconds)
            bounds.append(self.limit - recent)
        if self._allowance != inf and now < self._allowance_ends:
            bounds.append(int(self._allowance))
        return min(bounds, default=None)


@lru_cache(maxsize=16_384)
def address_key(address: str) -> str:
    """The key under which an address is counted: an IPv4 address, or the /64 of an IPv6 one.

    ``::ffff:`` is unmapped, or all of IPv4 would be one /64. What is not an address (a socket
    file's peer) stands for itself.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(IPv6Network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def browser_address(peer: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """The address a request came from: *peer*, or what trusted proxies say of it.

    *forwarded* holds the ``X-Forwarded-For`` values in order. Each proxy appends the peer it saw,
    so from the right, the first address that is not a trusted proxy's is the browser's; what
    stands left of it is the browser's own invention.
    """
    if not forwarded or not trusted or not is_trusted(peer, trusted):
        return peer
    address = peer
    hops = b",".join(forwarded).decode("latin-1").rsplit(",", _MAX_HOPS)
    for hop in reversed(hops):
        candidate = _without_port(hop.strip())
        try:
            ip_address(candidate)
        except ValueError:
            break
        address = candidate
        if not is_trusted(address, trusted):
            break
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether *address* is in one of the *trusted* networks; ``::ffff:`` is unmapped."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in trusted)


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, _ = hop.partition(":")
    return host if colon and hop.count(":") == 1 else hop

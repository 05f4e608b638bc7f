"""Who is counted, and by what; and what may be spent upstream. Decides without I/O.

Time is seconds on a clock that never jumps.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from math import inf

MAX_RESET = 60.0
"""Seconds: the official SDK waits for a reset however far it is, so none is further away."""

Network = IPv4Network | IPv6Network


class Window:
    """What one key has used of its limit, until when."""

    __slots__ = ("ends", "limiter", "used")

    def __init__(self, limiter: "Limiter", ends: float) -> None:
        self.limiter = limiter
        self.ends = ends
        self.used = 0

    @property
    def exceeded(self) -> bool:
        """Whether more was taken than the limit gives."""
        return self.used > self.limiter.limit

    @property
    def first(self) -> bool:
        """Whether the last one taken was the first too many."""
        return self.used == self.limiter.limit + 1

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to take."""
        return self.used >= self.limiter.limit

    @property
    def remaining(self) -> int:
        """What is left to take."""
        return max(0, self.limiter.limit - self.used)

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
    """

    def __init__(self, name: str, limit: int, seconds: float, *, max_keys: int = 100_000) -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self._max_keys = max_keys
        # Windows are all of one length, so the order of insertion is the order of expiry.
        self._windows: OrderedDict[Hashable, Window] = OrderedDict()

    def window(self, key: Hashable, now: float) -> Window:
        """Look at the window of *key* without taking."""
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            window = self._open(key, now)
        return window

    def take(self, key: Hashable, now: float) -> Window:
        """Count one for *key*."""
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            window = self._open(key, now)
        window.used += 1
        return window

    def _open(self, key: Hashable, now: float) -> Window:
        windows = self._windows
        windows.pop(key, None)
        for _ in range(2):  # two out for one in: what has ended is gone soon, no sweep is needed
            if windows and (
                len(windows) >= self._max_keys or next(iter(windows.values())).ends <= now
            ):
                windows.popitem(last=False)
        window = windows[key] = Window(self, now + self.seconds)
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
        if self.limit is not None and len(self._spent) == self.limit:
            return max(0.0, self._spent[0] + self.seconds - now)
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

        What is above the lower half may be spent until then.
        """
        self._allowance = remaining - limit // 2
        self._allowance_ends = now + min(max(reset, 0.0), MAX_RESET)

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
    hops = b",".join(forwarded).decode("latin-1").split(",")
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

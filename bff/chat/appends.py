"""The messages that one process is sending, and those that it has charged."""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from cachetools import TTLCache

from bff.errors import Refused

MAX_APPENDS: Final = 64
"""Messages under way at once: each holds up to a whole body."""
MAX_APPENDS_PER_CALLER: Final = 2
"""Messages under way of one caller, so that one caller's slow uploads block no other caller."""
MAX_STOP_BYTES: Final = 256
"""Bytes of a body that may be a stop. The official transport sends 15."""
MAX_STOPS: Final = 256
"""Such bodies under way at once. They have places of their own: uploads must not keep a stop."""
MAX_STOPS_PER_CALLER: Final = 8
CHARGED_SECONDS: Final = 60.0
"""Seconds in which a message that is sent again by its part id is not charged again."""
_MAX_REPEATED: Final = 3
"""Sends of one message that one charge covers. Upstream stores it once, but handles every send."""
_MAX_CHARGED: Final = 10_000


class Places:
    """Bounds what is under way at once.

    Args:
        most: the bound.
        each: the bound of one caller.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most = most
        self._each = each
        self._total = 0
        self._by_caller: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return self._total

    def refuse(self, caller: Hashable) -> None:
        """Refuse a message for which there is no room.

        Raises:
            Refused: ``too_many_messages`` or ``overloaded``.
        """
        if self._by_caller[caller] >= self._each:
            raise Refused("too_many_messages", retry_after=1.0)
        if self._total >= self._most:
            raise Refused("overloaded", retry_after=1.0)

    def begin(self, caller: Hashable) -> None:
        """Count a message; `end` counts its end."""
        self.refuse(caller)
        self._total += 1
        self._by_caller[caller] += 1

    def end(self, caller: Hashable) -> None:
        """Count the end of a message."""
        self._total -= 1
        self._by_caller[caller] -= 1
        if not self._by_caller[caller]:
            del self._by_caller[caller]


class Appends:
    """Bounds messages under way, and remembers what was charged.

    Args:
        clock: seconds on the clock that never jumps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.messages = Places(MAX_APPENDS, MAX_APPENDS_PER_CALLER)
        self.stops = Places(MAX_STOPS, MAX_STOPS_PER_CALLER)
        """Those that are small enough to be a stop, until they are known to be a message."""
        self._charged: TTLCache[Hashable, int] = TTLCache(
            _MAX_CHARGED, CHARGED_SECONDS, timer=clock
        )

    def __len__(self) -> int:
        return len(self.messages) + len(self.stops)

    def is_charged(self, caller: Hashable, part: tuple[str, str], body: bytes) -> bool:
        """Whether this very message was charged a moment ago: the browser sends it again.

        *part* is the session's id and the part id.
        """
        key = _key(caller, part, body)
        used: int = self._charged.get(key, 0)
        if not used or used > _MAX_REPEATED:
            return False
        self._charged[key] = used + 1
        return True

    def charged(self, caller: Hashable, part: tuple[str, str], body: bytes) -> None:
        """Remember that a message was charged."""
        self._charged[_key(caller, part, body)] = 1


def _key(caller: Hashable, part: tuple[str, str], body: bytes) -> Hashable:
    return caller, part, hashlib.sha256(body).digest()

"""Ends the list streams of a person who has a newer token for a new session. No I/O.

A list shows the sessions that its token names. So a page has to open its list anew when there is a
new session, and this tells it so. Each name counts once for a person: two pages with different
lists must not end each other's for ever.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final

from cachetools import TTLCache

from bff.live.listener import Listener

REMEMBERED_SECONDS: Final = 3600.0
"""Seconds for which the names of a person count as known: usual tokens live no longer."""
_MAX_PERSONS: Final = 10_000
"""Persons whose names are remembered: as many as there are listeners by default."""
_MAX_NAMES: Final = 2_000
"""Sessions of one person that are remembered; beyond it a new one ends no list."""


class Lists:
    """The open list streams of one process, by the key under which their callers are counted.

    Args:
        clock: seconds on the clock that never jumps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._open: dict[Hashable, dict[Listener, float]] = {}
        """When the token of each list was issued."""
        self._names: TTLCache[Hashable, frozenset[str]] = TTLCache(
            _MAX_PERSONS, REMEMBERED_SECONDS, timer=clock
        )
        """The sessions that tokens of a person have named, a list of whom was open."""

    def __len__(self) -> int:
        return len(self._open)

    def add(self, listener: Listener, names: frozenset[str], issued: float) -> None:
        """Remember a list; *names* are those of its token, which was *issued* then."""
        person = listener.caller
        self._open.setdefault(person, {})[listener] = issued
        self._names[person] = self._names.get(person, names) | names

    def remove(self, listener: Listener) -> None:
        """Forget a listener that has ended."""
        lists = self._open.get(listener.caller, {})
        if lists.pop(listener, None) is not None and not lists:
            del self._open[listener.caller]

    def outdated(self, person: Hashable, names: Iterable[str], issued: float) -> Iterator[Listener]:
        """Take the lists that a token for new *names*, which was *issued* then, makes outdated."""
        lists = self._open.get(person)
        if lists is None:
            return
        before = self._names.get(person, frozenset())
        together = before.union(names)
        if len(before) < len(together) <= _MAX_NAMES:
            self._names[person] = together
            yield from [one for one, of_list in lists.items() if of_list <= issued]

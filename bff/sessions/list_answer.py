"""A chat list: selects the sessions of one page from those that a token names. Decides without I/O.

The sessions have the order in which the token names them, so the backend that mints the token
decides the order. A page has one entry for each session that exists and passes the filters. It also
has one for each session that the gateway cannot load now, so no session is missing without notice.
Filters read only what the browser may see.

A session is late if its load has to wait for the budget. The page reports it, and its cursor
carries it to the end of the list. A client that follows `pagination.next` gets there, and the
gateway tries to load it again, at most twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from bff.digests import etag
from bff.errors import Refusal, Refused
from bff.response import copy_head
from bff.sessions import cursor
from bff.sessions.copy import Copy
from bff.sessions.cursor import MAX_LATE, Cursor, CursorError
from bff.sessions.list_query import PARAMETERS, Query

Outcome = Copy | Refusal
"""The copy of a session, or the reason why the gateway has none."""
Entries = Sequence[tuple[int, Outcome]]
"""The entries of a page: where each stands in the order of the page, and its outcome."""


def is_late(outcome: Outcome | None) -> bool:
    """Whether only the budget has kept the gateway from loading the session."""
    return isinstance(outcome, Refusal) and outcome.code == "over_budget"


def unavailable_members(unavailable: Mapping[str, Refusal]) -> list[dict[str, str]]:
    """Say why sessions are not shown, by named id."""
    return [
        {"id": id_, "error": refusal.text, "code": refusal.code}
        for id_, refusal in unavailable.items()
    ]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list, as it goes to the browser."""

    copies: list[Copy]
    shown: list[str]
    """The named ids of the copies."""
    loaded: float
    """When the oldest copy was loaded; infinite without copies."""
    unavailable: dict[str, Refusal]
    """Named ids whose sessions may exist, but cannot be loaded now."""
    refusal: Refusal | None
    """The answer in place of a page that holds no session and would look like the end."""
    etag: bytes
    head: bytes
    body: bytes


@dataclass(slots=True)
class Listing:
    """A request for one page: its query, the ids that the token names, and the outcomes so far.

    Args:
        named: valid ids, each once, in the order of the token.
        caller: the caller's key.
        wall: Unix seconds.
        outcomes: by named id. The gateway adds to it after each wait.
        in_memory: the ids whose copies were not loaded for this request. Their age is checked
            again after each wait.
    """

    query: Query
    named: Sequence[str]
    caller: bytes
    wall: float
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    in_memory: set[str] = field(default_factory=set)
    _positions: dict[str, int] = field(init=False)
    _begin: Cursor | None = field(init=False, default=None)
    """The cursor of the request; None for the first page."""
    _forward: bool = field(init=False, default=True)
    _round: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._positions = {id_: position for position, id_ in enumerate(self.named)}
        if self.query.after is not None:
            self._begin = self._read(self.query.after, "page[after]")
        elif self.query.before is not None:
            self._begin = self._read(self.query.before, "page[before]")
            self._forward = self._begin is None

    def _read(self, text: str, parameter: str) -> Cursor | None:
        """Read a cursor. The cursor of another list leads to the first page."""
        try:
            return cursor.read(text, self.named, self.caller)
        except CursorError:
            expected = PARAMETERS[parameter].expected
            raise Refused("bad_request", f"{parameter} must be {expected}") from None

    @property
    def only_late(self) -> bool:
        """Whether the page only tries late sessions again, because no others are left."""
        return self._begin is not None and self._begin.position == len(self.named)

    def forget(self, *, unless: Callable[[Copy], bool], purged: Callable[[Copy], bool]) -> None:
        """Forget *purged* copies, and those in memory *unless* they may still be served."""
        for id_, outcome in list(self.outcomes.items()):
            if isinstance(outcome, Copy) and (
                purged(outcome) or (id_ in self.in_memory and not unless(outcome))
            ):
                del self.outcomes[id_]
                self.in_memory.discard(id_)

    def page(self, find: Callable[[str], Outcome | None]) -> Page | None:
        """Make the page; return None if a session has to be waited for.

        *find* returns the outcome for an id, or None if a load has to end first. The first round
        waits for as many sessions as the page holds, and for one more, which shows whether there is
        a next page. If too few of them exist or match, the next round waits for twice as many. So
        the number of rounds stays small even if few sessions match.
        """
        order, regular = self._order()
        entries: list[tuple[int, Outcome]] = []
        waiting = 0
        for index, position in enumerate(order):
            outcome = find(self.named[position])
            if outcome is None:
                waiting += 1
            elif self._has_entry(position, outcome):
                entries.append((index, outcome))
            if len(entries) + (waiting >> self._round) > self.query.size:
                break
        if waiting:
            self._round += 1
            return None
        more = len(entries) > self.query.size
        entries = entries[: self.query.size]
        used = entries[-1][0] + 1 if more else len(order)
        pagination = self._pagination(order, regular, used, entries, more=more)
        shown = [(self.named[order[index]], outcome) for index, outcome in entries]
        return self._write(shown if self._forward else shown[::-1], pagination)

    def _order(self) -> tuple[Sequence[int], int]:
        """Return the positions in order, late sessions last, and the number of the others."""
        begin, end = self._begin, len(self.named)
        if begin is None:
            return range(end), end
        if not self._forward:
            return range(begin.position - 1, -1, -1), begin.position
        regular = range(begin.position, end)
        return [*regular, *begin.late, *begin.again], len(regular)

    def _has_entry(self, position: int, outcome: Outcome) -> bool:
        if isinstance(outcome, Refusal):
            return outcome.code != "not_found"
        # If the token names both ids of a session, the first one has the entry.
        if any(
            self._positions.get(id_ or "", position) < position
            for id_ in (outcome.id, outcome.external_id)
        ):
            return False
        return not self.query.filters or self.query.matches(json.loads(outcome.body), self.wall)

    def _late_after(
        self, order: Sequence[int], regular: int, used: int, entries: Entries
    ) -> tuple[set[int], set[int]]:
        """Return what is late after this page: to be tried once more, and for the last time.

        The page has used the first *used* positions of the *order*.
        """
        begin = self._begin or Cursor(0)
        late, again = set(begin.late), set(begin.again)
        for index, outcome in entries:
            if index < regular and is_late(outcome):
                late.add(order[index])
            elif index < regular:
                late.discard(order[index])  # a page that is read again, backwards
                again.discard(order[index])
        for position in order[regular:used]:
            if position in late and is_late(self.outcomes.get(self.named[position])):
                again.add(position)
            else:
                again.discard(position)
            late.discard(position)
        return late, again

    def _pagination(
        self, order: Sequence[int], regular: int, used: int, entries: Entries, *, more: bool
    ) -> dict[str, str]:
        """Write the cursors. The arguments are those of `_late_after`."""
        begin, end = self._begin or Cursor(0), len(self.named)
        late, again = self._late_after(order, regular, used, entries)
        positions = [order[index] for index, _ in entries]
        pagination = {}
        following: int | None
        previous: int | None
        if self._forward:
            first = positions[0] if entries and entries[0][0] < regular else begin.position
            previous = first if self._begin is not None and (entries or late or again) else None
            following = order[used - 1] + 1 if used < regular else end
        else:
            previous = positions[-1] if more else None
            following = positions[0] + 1 if positions else None
        if following is not None and (more or not self._forward or late or again):
            pagination["next"] = self._cursor(following, late, again)
        if previous is not None:
            pagination["previous"] = self._cursor(previous, set(begin.late), set(begin.again))
        return pagination

    def _cursor(self, position: int, late: set[int], again: set[int]) -> str:
        """Write a cursor with what was late before its position."""
        last_try = [p for p in sorted(again) if p < position][:MAX_LATE]
        first_try = [p for p in sorted(late) if p < position][: MAX_LATE - len(last_try)]
        made = Cursor(position, tuple(first_try), tuple(last_try))
        return made.write(self.named, self.caller)

    def _write(self, entries: Sequence[tuple[str, Outcome]], pagination: dict[str, str]) -> Page:
        shown = {id_: outcome for id_, outcome in entries if isinstance(outcome, Copy)}
        unavailable = {id_: outcome for id_, outcome in entries if isinstance(outcome, Refusal)}
        # The members beside `data`. The SDK's parser drops the ones that it does not define.
        members: dict[str, Any] = {"pagination": pagination}
        if unavailable:
            members["unavailable"] = unavailable_members(unavailable)
        tail = json.dumps(members, separators=(",", ":"))[1:].encode()
        copies = list(shown.values())
        # The tags of the copies are hashes of their bodies, so equal tags mean equal bytes.
        tag = etag(*(copy.etag for copy in copies), tail)
        return Page(
            copies=copies,
            shown=list(shown),
            loaded=min((copy.loaded for copy in copies), default=inf),
            unavailable=unavailable,
            refusal=None if copies else self._refusal(unavailable, pagination),
            etag=tag,
            head=copy_head(tag),
            body=b'{"data":[%b],%b' % (b",".join(copy.body for copy in copies), tail),
        )

    def _refusal(
        self, unavailable: dict[str, Refusal], pagination: dict[str, str]
    ) -> Refusal | None:
        """Return the answer if no session can be shown; an empty page would mean that none exists.

        None if more pages follow: the browser gets the page and passes over a broken session. A
        first page of late sessions is refused nevertheless, so a poll learns that they are late.
        """
        late = [refusal for refusal in unavailable.values() if is_late(refusal)]
        if "next" in pagination and not (late and self._begin is None):
            return None
        if late:
            return min(late, key=lambda refusal: refusal.retry_after or 0.0)
        return next(iter(unavailable.values()), None)

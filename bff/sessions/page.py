"""A chat list: selects the sessions of one page from those that a token names. Decides without I/O.

The sessions have the order in which the token names them, so the backend that mints the token
decides the order. A page has one entry for each session that exists and passes the filters, and one
for each session that the gateway cannot load now: no session is missing without notice. Filters
read only what the browser may see. A cursor is the position of one named id; another caller cannot
use it.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from bff.digests import etag
from bff.errors import Refusal, Refused
from bff.response import copy_head
from bff.sessions.copy import Copy
from bff.sessions.list_query import PARAMETERS, Query

Outcome = Copy | Refusal
"""The copy of a session, or the reason why the gateway has none."""
_DIGEST_BYTES = 18
"""Bytes of a cursor: too many to guess, and 24 characters in base64 without padding."""


def cursor(id_: str, caller: bytes) -> str:
    """Write the position of *id_* as 24 characters, which only the caller with this key can use."""
    digest = hashlib.sha256(caller + id_.encode()).digest()
    return base64.urlsafe_b64encode(digest[:_DIGEST_BYTES]).decode()


def find_cursor(text: str, parameter: str, named: Sequence[str], caller: bytes) -> int:
    """Find the position in *named* that the cursor *text* of this query *parameter* stands for.

    Raises:
        Refused: ``bad_request``. The text is the same for nonsense and for another caller's cursor.
    """
    for position, id_ in enumerate(named):
        if cursor(id_, caller) == text:
            return position
    raise Refused("bad_request", f"{parameter} must be {PARAMETERS[parameter].expected}")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list, as it goes to the browser."""

    copies: list[Copy]
    loaded: float
    """When the oldest copy was loaded; infinite without copies."""
    unavailable: dict[str, Refusal]
    """Named ids whose sessions may exist, but cannot be loaded now."""
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
    _start: int = field(init=False, default=0)
    _step: int = field(init=False, default=1)
    _round: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._positions = {id_: position for position, id_ in enumerate(self.named)}
        if self.query.after is not None:
            self._start = self._find(self.query.after, "page[after]") + 1
        elif self.query.before is not None:
            self._start = self._find(self.query.before, "page[before]") - 1
            self._step = -1

    def _find(self, text: str, parameter: str) -> int:
        return find_cursor(text, parameter, self.named, self.caller)

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
        a next page. If too few of them exist or match, the next round waits for twice as many, and
        so on: the number of rounds stays small even if few sessions match.
        """
        end = len(self.named) if self._step > 0 else -1
        entries: list[tuple[int, Outcome]] = []
        waiting = 0
        for position in range(self._start, end, self._step):
            outcome = find(self.named[position])
            if outcome is None:
                waiting += 1
            elif self._has_entry(position, outcome):
                entries.append((position, outcome))
            if len(entries) + (waiting >> self._round) > self.query.size:
                break
        if waiting:
            self._round += 1
            return None
        more = len(entries) > self.query.size
        entries = entries[: self.query.size][:: self._step]
        return self._write(entries, more=more)

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

    def _write(self, entries: list[tuple[int, Outcome]], *, more: bool) -> Page:
        pagination = {}
        if entries:
            forward = self._step > 0
            if more or not forward:
                pagination["next"] = cursor(self.named[entries[-1][0]], self.caller)
            if self.query.after is not None if forward else more:
                pagination["previous"] = cursor(self.named[entries[0][0]], self.caller)
        copies = [outcome for _, outcome in entries if isinstance(outcome, Copy)]
        unavailable = {
            self.named[position]: outcome
            for position, outcome in entries
            if isinstance(outcome, Refusal)
        }
        # The members beside `data`. The SDK's parser drops the ones that it does not define.
        members: dict[str, Any] = {"pagination": pagination}
        if unavailable:
            members["unavailable"] = [
                {"id": id_, "error": refusal.text, "code": refusal.code}
                for id_, refusal in unavailable.items()
            ]
        tail = json.dumps(members, separators=(",", ":"))[1:].encode()
        # The tags of the copies are hashes of their bodies, so equal tags mean equal bytes.
        tag = etag(*(copy.etag for copy in copies), tail)
        body = b'{"data":[%b],%b' % (b",".join(copy.body for copy in copies), tail)
        loaded = min((copy.loaded for copy in copies), default=inf)
        return Page(copies, loaded, unavailable, tag, copy_head(tag), body)

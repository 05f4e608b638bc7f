"""A chat list: which of the sessions that a token names stand on a page. Decides without I/O.

The sessions stand in the order in which the token names them, so whoever mints it decides the
order. A page is made of places: one for each session that exists and passes the filters, and one
for each that cannot be loaded now, so that none is missing in silence. Filters look at what the
browser may see and at nothing else. A cursor is a place between two named ids, and of no use to
another caller.
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
from bff.sessions.list_query import _CURSOR, Query

_DIGEST_BYTES = 18


def cursor(id_: str, caller: bytes) -> str:
    """Write the place of *id_*: 24 characters, of use to the caller with this key alone."""
    digest = hashlib.sha256(caller + id_.encode()).digest()
    return base64.urlsafe_b64encode(digest[:_DIGEST_BYTES]).decode()


def find_cursor(text: str, named: Sequence[str], caller: bytes) -> int:
    """Tell where in *named* the id stands that *text* was written for.

    Raises:
        Refused: ``bad_request``; the same for what is no cursor and for another caller's.
    """
    for position, id_ in enumerate(named):
        if cursor(id_, caller) == text:
            return position
    raise Refused("bad_request", f"page[after] and page[before] are each {_CURSOR}")


@dataclass(slots=True)
class Page:
    """A page of the list, as it goes to the browser."""

    copies: list[Copy]
    loaded: float
    """When the oldest of them was; infinite without any."""
    unavailable: dict[str, Refusal]
    """By the id that the token names: exists, maybe, but cannot be loaded now."""
    etag: bytes
    head: bytes
    body: bytes


@dataclass(slots=True)
class Listing:
    """One list on its way: what is asked for, of which ids, and what has been found out so far.

    Args:
        named: valid ids, each once, in the order of the token.
        caller: the caller's key.
        wall: Unix seconds.
    """

    query: Query
    named: Sequence[str]
    caller: bytes
    wall: float
    known: dict[str, Copy | Refusal] = field(default_factory=dict)
    _positions: dict[str, int] = field(init=False)
    _start: int = field(init=False, default=0)
    _step: int = field(init=False, default=1)
    _round: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._positions = {id_: position for position, id_ in enumerate(self.named)}
        if self.query.after is not None:
            self._start = find_cursor(self.query.after, self.named, self.caller) + 1
        elif self.query.before is not None:
            self._start = find_cursor(self.query.before, self.named, self.caller) - 1
            self._step = -1

    def page(self, find: Callable[[str], Copy | Refusal | None]) -> Page | None:
        """Make the page; None if something that `find` knows not yet has to be waited for.

        *find* is asked for no more sessions than the page may hold, and one that tells whether
        there are more. Where that was not enough, because some are missing or filtered out, twice
        as many are waited for at once, and so on: few rounds, however many do not match.
        """
        end = len(self.named) if self._step > 0 else -1
        positions: list[tuple[int, Copy | Refusal]] = []
        waiting = 0
        for position in range(self._start, end, self._step):
            found = find(self.named[position])
            if found is None:
                waiting += 1
            elif self._holds(position, found):
                positions.append((position, found))
            if len(positions) + (waiting >> self._round) > self.query.size:
                break
        if waiting:
            self._round += 1
            return None
        more = len(positions) > self.query.size
        positions = positions[: self.query.size][:: self._step]
        return self._write(positions, more=more)

    def _holds(self, position: int, found: Copy | Refusal) -> bool:
        if isinstance(found, Refusal):
            return found.code != "not_found"
        # Where a token names both ids of a session, it stands in the place of the first.
        if any(
            self._positions.get(id_ or "", position) < position
            for id_ in (found.id, found.external_id)
        ):
            return False
        return not self.query.filters or self.query.matches(json.loads(found.body), self.wall)

    def _write(self, positions: list[tuple[int, Copy | Refusal]], *, more: bool) -> Page:
        pagination = {}
        if positions:
            forward = self._step > 0
            if more if forward else True:
                pagination["next"] = cursor(self.named[positions[-1][0]], self.caller)
            if self.query.after is not None if forward else more:
                pagination["previous"] = cursor(self.named[positions[0][0]], self.caller)
        copies = [found for _, found in positions if isinstance(found, Copy)]
        unavailable = {
            self.named[position]: found
            for position, found in positions
            if isinstance(found, Refusal)
        }
        # The members beside `data`; the SDK's parser drops what it does not know.
        beside: dict[str, Any] = {"pagination": pagination}
        if unavailable:
            beside["unavailable"] = [
                {"id": id_, "error": refusal.text, "code": refusal.code}
                for id_, refusal in unavailable.items()
            ]
        tail = json.dumps(beside, separators=(",", ":"))[1:].encode()
        # Equal tags, equal bytes: the copies' own are hashes of theirs.
        tag = etag(*(copy.etag for copy in copies), tail)
        body = b'{"data":[%b],%b' % (b",".join(copy.body for copy in copies), tail)
        loaded = min((copy.loaded for copy in copies), default=inf)
        return Page(copies, loaded, unavailable, tag, copy_head(tag), body)

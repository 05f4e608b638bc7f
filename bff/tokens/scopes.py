"""The scope grammar of Trigger.dev's public access tokens, and what a list of scopes grants. Pure.

A scope is ``action:type[:id]``; everything after the second colon is the id (ids contain colons).
The rules are measured on the server, not taken from its documentation; they are part of what a
frontend relies on, so they are followed to the letter, odd ones included.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grant:
    """What the scopes of one token allow for one action on one type of resource."""

    every: bool
    """Every resource of the type, whatever its id."""
    ids: frozenset[str]
    """The ids that are named, in whichever form the token names them."""
    named: tuple[str, ...] = field(default=(), compare=False)
    """The same, each once, in the order of the token."""

    def covers(self, id_: str, other: str | None = None) -> bool:
        """Whether a resource is granted by either of its ids."""
        return self.every or id_ in self.ids or other in self.ids


def grant(scopes: Iterable[object], *, action: str, type_: str) -> Grant:
    """Read *scopes* for one *action* on one *type_*; what is not a string grants nothing."""
    ids: dict[str, None] = {}
    every = False
    for scope in scopes:
        if not isinstance(scope, str):
            continue
        scope_action, _, rest = scope.partition(":")
        scope_type, _, scope_id = rest.partition(":")
        if scope in ("admin", "admin:"):
            every = True
        elif scope_action not in (action, "*"):
            continue
        elif scope_type == "all" or (scope_type == type_ and not scope_id):
            every = True
        elif scope_type == type_:
            ids[scope_id] = None
    return Grant(every=every, ids=frozenset(ids), named=tuple(ids))

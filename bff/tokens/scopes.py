"""The scope grammar of Trigger.dev's public access tokens, and what a list of scopes grants. Pure.

A scope is ``action:type[:id]``. The id is everything after the second colon, because ids contain
colons. The rules were measured on Trigger.dev's server, not taken from its documentation. Frontends
rely on them, so the gateway follows all of them exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grant:
    """The resources of one type that a token allows for one action."""

    every: bool
    """Whether all resources of the type are granted."""
    ids: frozenset[str]
    """The ids that the token names, friendly or external."""
    named: tuple[str, ...] = field(default=(), compare=False)
    """The same ids in the order of the token."""
    writes: "Grant | None" = field(default=None, compare=False)
    """The resources that the token allows for ``write``; None for none."""

    def covers(self, id_: str, other: str | None = None) -> bool:
        """Whether the resource with these ids is granted by one of them."""
        return self.every or id_ in self.ids or other in self.ids


def grant(scopes: Iterable[object], *, action: str, type_: str) -> Grant:
    """Read *scopes* for *action* on *type_*; a scope that is not a string grants nothing."""
    ids: dict[str, None] = {}
    every = False
    for scope in scopes:
        if not isinstance(scope, str):
            continue
        scope_action, _, rest = scope.partition(":")
        scope_type, _, scope_id = rest.partition(":")
        if scope_action == "admin" and not scope_type:  # whatever follows a second colon
            every = True
        elif scope_action not in (action, "*"):
            continue
        elif scope_type == "all" or (scope_type == type_ and not scope_id):
            every = True
        elif scope_type == type_:
            ids[scope_id] = None
    return Grant(every=every, ids=frozenset(ids), named=tuple(ids))

"""The policy: an allow-list of paths, applied to a document. Pure and total.

A path names a value and everything below it; ``*`` stands for every key of a map and every item of
a list. What no path names is left out, and a path that expects a map or a list where the document
holds a scalar names nothing. Whatever the policy says, the result parses in the official SDK: the
fields that its parser demands are there (null where that is allowed and they are not named),
``metadata`` is a map or null, ``tags`` is a list, ``triggerConfig`` is absent or an empty stub.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bff.digests import fingerprint

DEFAULT_FIELDS = (
    "id",
    "externalId",
    "type",
    "taskIdentifier",
    "currentRunId",
    "closedAt",
    "closedReason",
    "expiresAt",
    "createdAt",
    "updatedAt",
)
REQUIRED_FIELDS = ("id", "type", "taskIdentifier", "createdAt", "updatedAt")
"""The SDK's parser accepts neither null nor absence for these."""
_NULL_WHEN_HIDDEN = dict.fromkeys(("externalId", "closedAt", "closedReason", "expiresAt"))
Tree = dict[str, Any]  # step -> Tree
_EVERYTHING: Tree = {}
_NOTHING = object()


class PolicyError(ValueError):
    """A policy that cannot be: *parameter* of `Policy`, and what to write instead."""

    def __init__(self, parameter: str, remedy: str) -> None:
        super().__init__(remedy)
        self.parameter = parameter


@dataclass(frozen=True)
class Policy:
    """What of a document a browser may see.

    Args:
        fields: top-level names; ``triggerConfig`` among them shows as ``{"basePayload": {}}``.
        metadata: dotted paths below ``metadata``.
        tags: globs; a tag that matches one is shown.

    Raises:
        PolicyError: the result could not parse in the SDK, or a path is malformed.
    """

    fields: tuple[str, ...] = DEFAULT_FIELDS
    metadata: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    _metadata_tree: Tree = field(init=False, repr=False, compare=False)
    _tag_pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _plain_fields: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED_FIELDS if name not in self.fields]
        if missing:
            raise PolicyError("fields", f"add {', '.join(missing)}: the SDK fails without")
        for name in self.fields:
            if name in ("metadata", "tags"):
                raise PolicyError("fields", f"leave {name} out: it has a setting of its own")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
                raise PolicyError("fields", f"{name!r} is not the name of a top-level field")
        for path in self.metadata:
            if not all(path.split(".")):
                raise PolicyError("metadata", f"{path!r} has an empty step: write key.*.key")
        set_ = object.__setattr__
        set_(self, "_metadata_tree", _tree(self.metadata))
        set_(
            self, "_tag_pattern", re.compile("|".join(map(fnmatch.translate, self.tags)) or "(?!)")
        )
        set_(self, "_plain_fields", tuple(f for f in self.fields if f != "triggerConfig"))

    @property
    def visible(self) -> frozenset[str]:
        """Names of the top-level fields of which a browser may see something."""
        settings = {"metadata": self.metadata, "tags": self.tags}
        return frozenset(self.fields).union(name for name, rules in settings.items() if rules)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that differ between policies that show different things."""
        rules = [sorted(self.fields), sorted(self.metadata), sorted(self.tags)]
        return fingerprint(*rules)

    def project(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Copy of *document* a browser may see; *document* is valid (`sessions.parse_document`)."""
        shown: dict[str, Any] = {}
        for name in self._plain_fields:
            if name in document:
                shown[name] = document[name]
        for name in _NULL_WHEN_HIDDEN:
            shown.setdefault(name, None)
        if "triggerConfig" in self.fields:
            shown["triggerConfig"] = {"basePayload": {}}
        metadata = _select(document["metadata"], [self._metadata_tree])
        shown["metadata"] = None if metadata is _NOTHING else metadata
        shown["tags"] = [tag for tag in document["tags"] if self._tag_pattern.match(tag)]
        return shown


def _tree(paths: tuple[str, ...]) -> Tree:
    """Nest *paths* as maps, with `_EVERYTHING` where one ends: it swallows what is below it."""
    root: Tree = {}
    for path in paths:
        *steps, last = path.split(".")
        node = root
        for step in steps:
            node = node.setdefault(step, {})
            if node is _EVERYTHING:
                break
        else:
            node[last] = _EVERYTHING
    return root


def _select(value: object, trees: list[Tree]) -> object:
    """Select the part of *value* that any of *trees* names, or `_NOTHING`; empty parts go.

    There are several trees because a key may be named by itself and by ``*``.
    """
    if any(tree is _EVERYTHING for tree in trees):
        return value
    if isinstance(value, dict):
        steps = ((key, inner, _below(trees, key, "*")) for key, inner in value.items())
        members = {key: _select(inner, below) for key, inner, below in steps if below}
        return {k: v for k, v in members.items() if v is not _NOTHING} or _NOTHING
    if isinstance(value, list) and (below := _below(trees, "*")):
        items = [_select(inner, below) for inner in value]
        return [item for item in items if item is not _NOTHING] or _NOTHING
    return _NOTHING


def _below(trees: list[Tree], *steps: str) -> list[Tree]:
    return [tree[step] for tree in trees for step in steps if step in tree]

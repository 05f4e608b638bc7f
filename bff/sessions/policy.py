"""The policy: an allow-list of paths that projects a document to what browsers may see. Pure.

A path names a value and everything below it; ``*`` stands for every key of a map and every item of
a list. The policy drops every value that no path names. A path that expects a map or a list where
the document holds a scalar names nothing.

The SDK's parser accepts the result of every policy. A required field is always shown. A hidden
field that the parser needs is null. ``metadata`` is a map or null, ``tags`` is a list,
``triggerConfig`` is absent or an empty stub.

`bff.sessions.fields` says which fields the default policy shows.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bff.digests import fingerprint
from bff.sessions.fields import FIELDS

DEFAULT_FIELDS = tuple(name for name, row in FIELDS.items() if row.default == "shown")
_OWN_SETTING = tuple(name for name, row in FIELDS.items() if row.default == "own setting")
REQUIRED_FIELDS = tuple(
    name for name, row in FIELDS.items() if row.required and name not in _OWN_SETTING
)
"""Every policy must name these: the SDK's parser accepts neither null nor absence."""
_NULL_WHEN_HIDDEN = tuple(
    name for name, row in FIELDS.items() if row.null_when_hidden and name not in _OWN_SETTING
)
_STUBS = {name: row.stub for name, row in FIELDS.items() if row.stub is not None}
Tree = dict[str, Any]
"""Paths nested as maps, from a step to the `Tree` below it."""
_EVERYTHING: Tree = {}
"""Marks the end of a path: the value and everything below it are shown."""
_NOTHING = object()


class PolicyError(ValueError):
    """An impossible policy: *parameter* of `Policy` is wrong; *remedy* says what to write."""

    def __init__(self, parameter: str, remedy: str) -> None:
        super().__init__(remedy)
        self.parameter = parameter


@dataclass(frozen=True)
class Policy:
    """Selects the parts of a document that a browser may see.

    Args:
        fields: top-level names. ``triggerConfig`` is shown as ``{"basePayload": {}}``.
        metadata: dotted paths below ``metadata``.
        tags: globs. A tag is shown if one of them matches.

    Raises:
        PolicyError: the SDK's parser would reject the result, or a path is malformed.
    """

    fields: tuple[str, ...] = DEFAULT_FIELDS
    metadata: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    _metadata_tree: Tree = field(init=False, repr=False, compare=False)
    _tag_pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _plain_fields: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _stubs: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    field_names: frozenset[str] = field(init=False, repr=False, compare=False)
    """Names of the top-level fields that the table or this policy knows."""

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED_FIELDS if name not in self.fields]
        if missing:
            raise PolicyError("fields", f"add {', '.join(missing)}: the SDK needs them")
        for name in self.fields:
            if name in _OWN_SETTING:
                raise PolicyError("fields", f"leave {name} out: it has a setting of its own")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
                raise PolicyError("fields", f"{name!r} is not the name of a top-level field")
        for path in self.metadata:
            if not all(path.split(".")):
                raise PolicyError("metadata", f"{path!r} has an empty step: write key.*.key")
            if re.search(r"^\$(\.|$)|^/|\[(\d*|\*)\]|://", path):
                raise PolicyError("metadata", f"{path!r} is in another notation: write key.*.key")
        set_ = object.__setattr__
        set_(self, "_metadata_tree", _tree(self.metadata))
        set_(
            self, "_tag_pattern", re.compile("|".join(map(fnmatch.translate, self.tags)) or "(?!)")
        )
        set_(self, "_plain_fields", tuple(f for f in self.fields if f not in _STUBS))
        set_(self, "_stubs", {f: stub for f, stub in _STUBS.items() if f in self.fields})
        set_(self, "field_names", frozenset(FIELDS).union(self.fields))

    @property
    def visible(self) -> frozenset[str]:
        """Names of the top-level fields that a browser may see, wholly or in part."""
        settings = {"metadata": self.metadata, "tags": self.tags}
        return frozenset(self.fields).union(name for name, rules in settings.items() if rules)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits. Policies that show different things have different ones."""
        rules = [sorted(self.fields), sorted(self.metadata), sorted(self.tags)]
        return fingerprint(*rules)

    def project(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the parts of *document* that a browser may see.

        *document* is valid: it comes from `sessions.document.parse_document`.
        """
        shown: dict[str, Any] = {}
        for name in self._plain_fields:
            if name in document:
                shown[name] = document[name]
        for name in _NULL_WHEN_HIDDEN:
            shown.setdefault(name, None)
        shown |= self._stubs
        # Most policies show no part of either, and documents can have much of both.
        metadata = _NOTHING
        if self.metadata:
            metadata = _select(document["metadata"], [self._metadata_tree])
        shown["metadata"] = None if metadata is _NOTHING else metadata
        tags = document["tags"] if self.tags else ()
        shown["tags"] = [tag for tag in tags if self._tag_pattern.match(tag)]
        return shown


def _tree(paths: tuple[str, ...]) -> Tree:
    """Nest *paths* as maps. A path that ends above another one covers it."""
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
    """Select the part of *value* that any of *trees* names, without empty maps and lists.

    Returns `_NOTHING` if no part is left. There are several trees because one path may name a key
    and another path may cover it with ``*``.
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

"""The policy shows the named parts of a document and drops the rest; the SDK parses the result."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sdk_rules import parses

from bff.demo.upstream import session
from bff.sessions.policy import DEFAULT_FIELDS, REQUIRED_FIELDS, Policy, PolicyError

keys = st.sampled_from(["a", "b", "c", "*", "d e"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4))
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=4), max_leaves=12
)
paths = st.lists(keys, min_size=1, max_size=4).map(".".join)
metadata = st.one_of(st.none(), st.dictionaries(keys, values, max_size=4))


def steps(value: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar with its path; the step of a list item is `[]`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from steps(inner, *above, key)
    elif isinstance(value, list):
        for inner in value:
            yield from steps(inner, *above, "[]")
    else:
        yield above, value


def is_named(path: tuple[str, ...], allowed: list[str]) -> bool:
    """Whether an allowed path is a prefix of *path*; `*` stands for any key and any item."""
    for text in allowed:
        named = text.split(".")
        if len(named) <= len(path) and all(
            n == "*" or (n == p and p != "[]") for n, p in zip(named, path, strict=False)
        ):
            return True
    return False


@given(metadata, st.lists(paths, max_size=5))
def test_project_shows_exactly_the_named_metadata(document: Any, allowed: list[str]) -> None:
    shown = Policy(metadata=tuple(allowed)).project(session(1, metadata=document))["metadata"]

    expected = [(p, v) for p, v in steps(document or {}) if is_named(p, allowed)]
    assert [x for x in steps(shown or {})] == expected  # noqa: C416
    assert shown is None or isinstance(shown, dict)


@given(metadata, st.lists(paths, max_size=5))
def test_project_is_idempotent(document: Any, allowed: list[str]) -> None:
    policy = Policy(metadata=tuple(allowed))
    once = policy.project(session(1, metadata=document))

    assert policy.project(once) == once


@given(
    st.lists(st.sampled_from([*DEFAULT_FIELDS, "triggerConfig", "newField"]), max_size=12),
    st.lists(paths, max_size=4),
    st.lists(st.sampled_from(["*", "public:*", "x?"]), max_size=2),
    metadata,
    st.dictionaries(st.sampled_from(["newField", "other", "secret"]), values, max_size=3),
)
def test_project_shows_named_fields_and_the_sdk_parses_them(
    fields: list[str], allowed: list[str], tags: list[str], document: Any, new: dict[str, Any]
) -> None:
    fields = list(dict.fromkeys([*REQUIRED_FIELDS, *fields]))
    policy = Policy(fields=tuple(fields), metadata=tuple(allowed), tags=tuple(tags))

    shown = json.loads(json.dumps(policy.project(session(1, "c", metadata=document) | new)))

    assert parses(shown)
    always = {"externalId", "closedAt", "closedReason", "expiresAt", "metadata", "tags"}
    assert set(shown) <= set(fields) | always
    assert shown.get("triggerConfig", {"basePayload": {}}) == {"basePayload": {}}
    if "externalId" not in fields:
        assert shown["externalId"] is None


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (["plan"], {"plan": "pro"}),
        (["user"], {"user": {"name": "Ann", "email": "a@b"}}),
        (["user.name"], {"user": {"name": "Ann"}}),
        (["plan.name"], None),
        (["steps.*.title"], {"steps": [{"title": "one"}, {"title": "two"}]}),
        (["steps.title"], None),
        (["*.name"], {"user": {"name": "Ann"}}),
        (["user.name", "user"], {"user": {"name": "Ann", "email": "a@b"}}),
        (
            ["*"],
            {
                "plan": "pro",
                "user": {"name": "Ann", "email": "a@b"},
                "steps": [{"title": "one", "cost": 1}, {"title": "two"}, "three"],
            },
        ),
        ([], None),
        (["none.such"], None),
    ],
)
def test_metadata_path_selects_values(allowed: list[str], expected: object) -> None:
    document = {
        "plan": "pro",
        "user": {"name": "Ann", "email": "a@b"},
        "steps": [{"title": "one", "cost": 1}, {"title": "two"}, "three"],
    }

    shown = Policy(metadata=tuple(allowed)).project(session(1, metadata=document))

    assert shown["metadata"] == expected


def test_tag_globs_select_tags() -> None:
    tags = ["user:1", "public:a", "Public:b", "public:"]

    shown = Policy(tags=("public:*", "user:?")).project(session(1, tags=tags))

    assert shown["tags"] == ["user:1", "public:a", "public:"]


@pytest.mark.parametrize(
    ("policy", "parameter"),
    [
        ({"fields": ("id",)}, "fields"),
        ({"fields": tuple(f for f in DEFAULT_FIELDS if f != "createdAt")}, "fields"),
        ({"fields": (*DEFAULT_FIELDS, "metadata")}, "fields"),
        ({"fields": (*DEFAULT_FIELDS, "tags")}, "fields"),
        ({"fields": (*DEFAULT_FIELDS, "triggerConfig.queue")}, "fields"),
        ({"metadata": ("a..b",)}, "metadata"),
        ({"metadata": (".",)}, "metadata"),
    ],
)
def test_policy_rejects_impossible_fields_and_paths(policy: dict[str, Any], parameter: str) -> None:
    with pytest.raises(PolicyError) as raised:
        Policy(**policy)

    assert raised.value.parameter == parameter


def test_fingerprint_differs_between_different_policies() -> None:
    policies = [
        Policy(),
        Policy(metadata=("a",)),
        Policy(tags=("a",)),
        Policy(fields=(*DEFAULT_FIELDS[:-1], "updatedAt", "x")),
    ]

    assert len({policy.fingerprint for policy in policies}) == 4
    assert Policy(metadata=("a", "b")).fingerprint == Policy(metadata=("b", "a")).fingerprint

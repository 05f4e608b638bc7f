"""Properties of pure functions: paths, request heads, scopes, documents under policies."""

import json
import re
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.world import World

from bff.demo.upstream import can_read, session
from bff.errors import Refused, UpstreamInvalid
from bff.gateway.pending import PendingLoad
from bff.request import RequestHead
from bff.sessions import ids
from bff.sessions.document import parse_document
from bff.sessions.policy import DEFAULT_FIELDS, Policy

MORE = settings(max_examples=200, deadline=None, derandomize=True)

# -- ids and paths

_BITS = ["..", ".", "%2e", "%2f", "/", "%5c", "%00", "%0d%0a", ";", "?", "#", "%", "%25", "ü", "a"]
_SEGMENTS = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from(_BITS), max_size=8).map(lambda bits: "".join(bits).encode()),
    st.text(max_size=40).map(lambda text: quote(text, safe="").encode()),
)


@MORE
@given(_SEGMENTS)
def test_segment_is_refused_or_reaches_upstream_unchanged(segment: bytes) -> None:
    try:
        id_ = ids.parse_id(segment)
    except Refused as refused:
        assert refused.refusal.code == "invalid_session_id"
        return
    path = ids.path(id_)
    prefix, last = path[: len(ids.ROUTE)], path[len(ids.ROUTE) :]
    assert prefix.encode() == ids.ROUTE
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", last)
    assert last not in (".", "..")
    assert unquote_to_bytes(last).decode() == id_
    assert unquote_to_bytes(segment) == id_.encode(), "decoded once, otherwise unchanged"


@MORE
@given(st.text(min_size=1, max_size=256))
def test_parse_id_accepts_every_id_that_the_sdk_encodes(id_: str) -> None:
    try:
        encoded = quote(id_, safe="!'()*-._~").encode()
    except UnicodeEncodeError:
        return
    valid = id_ not in (".", "..") and not any(
        (ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160 for c in id_
    )
    if valid:
        assert ids.parse_id(encoded) == id_
    else:
        with pytest.raises(Refused):
            ids.parse_id(encoded)


# -- heads

_NAMES = [b"authorization", b"origin", b"if-none-match", b"x-forwarded-for", b"cookie", b"host"]


@settings(MORE, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    method=st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PATCH", "TRACE", "", "gEt"]),
    path=st.one_of(st.binary(max_size=60), _SEGMENTS.map(lambda segment: ids.ROUTE + segment)),
    query=st.binary(max_size=60),
    headers=st.lists(st.tuples(st.sampled_from(_NAMES), st.binary(max_size=80)), max_size=8),
    peer=st.one_of(st.text(max_size=20), st.ip_addresses().map(str)),
)
async def test_decide_answers_any_head_without_a_5xx(
    world: World,
    method: str,
    path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    peer: str,
) -> None:
    gateway = world.service.gateway
    world.clock.advance(61)
    answer = gateway.decide(RequestHead.read(method, path, query, headers, peer), *world.clock())
    assert not isinstance(answer, PendingLoad), "without a valid token the gateway starts no load"
    assert answer.status in (200, 204, 400, 401, 404, 405, 410, 429)
    assert b"\r\n\r\n" not in answer.head
    for name, value in answer.headers():
        assert re.fullmatch(rb"[a-z-]+", name), name
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)


# -- scopes

_WORDS = st.sampled_from(
    [
        "read",
        "write",
        "*",
        "admin",
        "sessions",
        "all",
        "",
        "READ",
        "runs",
        "a",
        "a:b",
        ":",
        "session_1",
    ]
)


@MORE
@given(
    scopes=st.lists(
        st.one_of(st.lists(_WORDS, max_size=5).map(":".join), st.text(max_size=12)), max_size=5
    ),
    id_=st.sampled_from(["session_1", "session_2"]),
    external_id=st.sampled_from([None, "a", "a:b", "*", "sessions"]),
)
def test_scopes_grant_the_same_as_upstream(
    scopes: list[str], id_: str, external_id: str | None
) -> None:
    document = {"id": id_, "externalId": external_id}
    assert ids.grant(scopes).covers(id_, external_id) == can_read(tuple(scopes), document)


@given(
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.lists(st.text()), st.booleans()))
)
def test_scope_that_is_not_a_text_grants_nothing(scopes: list[object]) -> None:
    granted = ids.grant(scopes)
    assert not granted.every
    assert not granted.ids


# -- documents under policies

_KEYS = st.sampled_from(["a", "b", "c", "*", "plan", "0", "é", "a.b", ""])
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=20,
)
_PATHS = st.lists(st.sampled_from(["a", "b", "c", "*", "plan", "0"]), min_size=1, max_size=4)
_METADATA = st.lists(_PATHS.map(".".join), max_size=4)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every scalar with its path; the step of a list item is ``[]``."""
    if isinstance(value, dict) and value:
        return [leaf for k, inner in value.items() for leaf in _leaves(inner, (*path, k))]
    if isinstance(value, list) and value:
        return [leaf for inner in value for leaf in _leaves(inner, (*path, "[]"))]
    return [(path, json.dumps(value))]


def _named(path: tuple[str, ...], rules: list[str]) -> bool:
    """Whether a rule names *path* or a value above it; compares steps, without a tree."""
    for rule in rules:
        steps = rule.split(".")
        if len(steps) <= len(path) and all(
            step in (at, "*") for step, at in zip(steps, path, strict=False)
        ):
            return True
    return False


@MORE
@given(
    metadata=st.one_of(st.none(), st.dictionaries(_KEYS, _JSON, max_size=5)),
    extra=st.dictionaries(st.text(min_size=1, max_size=6), _JSON, max_size=4),
    rules=_METADATA,
    tags=st.lists(st.text(max_size=6), max_size=5),
    globs=st.lists(st.sampled_from(["public:*", "*", "a?", "[ab]", ""]), max_size=3),
    fields=st.sets(st.sampled_from(["triggerConfig", "newField"])),
)
def test_project_shows_exactly_the_named_values(
    metadata: dict[str, Any] | None,
    extra: dict[str, Any],
    rules: list[str],
    tags: list[str],
    globs: list[str],
    fields: set[str],
) -> None:
    document = {**extra, **session(1, "chat"), "metadata": metadata, "tags": tags}
    globs = [glob for glob in globs if glob]
    policy = Policy(fields=(*DEFAULT_FIELDS, *fields), metadata=tuple(rules), tags=tuple(globs))
    before = json.dumps(document)

    shown = policy.project(document)

    assert json.dumps(document) == before
    allowed = set(DEFAULT_FIELDS) | fields | {"metadata", "tags"}
    assert set(shown) <= allowed
    if "triggerConfig" in shown:
        assert shown["triggerConfig"] == {"basePayload": {}}
    leaves = [] if shown["metadata"] is None else _leaves(shown["metadata"])
    original = _leaves(metadata) if metadata else []
    assert all(_named(path, rules) for path, _ in leaves)
    expected = sorted(leaf for leaf in original if _named(leaf[0], rules))
    assert sorted(leaves) == expected
    assert set(shown["tags"]) <= set(tags)
    # The SDK's parser needs these.
    for name in ("id", "type", "taskIdentifier", "createdAt", "updatedAt"):
        assert isinstance(shown[name], str)
    for name in ("externalId", "metadata", "closedAt", "closedReason", "expiresAt"):
        assert name in shown
    assert shown["metadata"] is None or isinstance(shown["metadata"], dict)
    assert all(isinstance(tag, str) for tag in shown["tags"])


_NULLABLE = {"externalId", "metadata", "closedAt", "closedReason", "expiresAt", "currentRunId"}


@MORE
@given(
    name=st.sampled_from(sorted(session(1))),
    value=st.one_of(_JSON, st.just("2026-01-02T03:04:05.678Z"), st.just("session_x")),
    absent=st.booleans(),
)
def test_sdk_reads_every_document_that_parses(name: str, value: Any, absent: bool) -> None:
    document = session(1, "chat") | {name: value}
    if absent:
        del document[name]
    requested_id = document.get("id", "x")
    try:
        read = parse_document(json.dumps(document).encode(), requested_id=str(requested_id))
    except UpstreamInvalid:
        return
    for key in ("id", "type", "taskIdentifier", "createdAt", "updatedAt"):
        assert isinstance(read[key], str)
    for key in session(1):
        assert key in read or key in ("triggerConfig", "currentRunId")
        assert read.get(key) is not None or key in _NULLABLE or key not in read
    assert all(isinstance(tag, str) for tag in read["tags"])
    assert read["metadata"] is None or isinstance(read["metadata"], dict)


@MORE
@given(st.one_of(st.binary(max_size=200), _JSON.map(lambda value: json.dumps(value).encode())))
def test_parse_document_rejects_any_bytes_without_a_crash(body: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        parse_document(body, requested_id="chat")

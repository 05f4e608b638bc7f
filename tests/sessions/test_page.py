"""Pages of a chat list: their sessions, their order, and their cursors."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bff.errors import Refusal, Refused
from bff.sessions.copy import Copy
from bff.sessions.list_query import Query
from bff.sessions.page import Listing, Outcome, cursor, find_cursor

NAMES = [f"n{number}" for number in range(8)]


@settings(max_examples=300, deadline=None)
@given(
    named=st.lists(st.sampled_from([*NAMES, *(f"session_{n}" for n in NAMES)]), unique=True),
    states=st.lists(st.sampled_from(["present", "missing", "unavailable"]), min_size=8, max_size=8),
    cold=st.sets(st.sampled_from(NAMES)),
    size=st.integers(1, 5),
)
def test_pages_hold_each_session_once_and_in_order(
    named: list[str], states: list[str], cold: set[str], size: int
) -> None:
    state = dict(zip(NAMES, states, strict=True))
    copies = {
        name: Copy(
            environment="e", id=f"session_{name}", external_id=name, etag=name.encode(), head=b"",
            body=json.dumps({"externalId": name}).encode(), closed=False, loaded=0.0,
        )
        for name in NAMES
    }  # fmt: skip
    loaded: set[str] = set()

    def find(id_: str) -> Outcome | None:
        name = id_.removeprefix("session_")
        if name in cold and id_ not in loaded:
            loaded.add(id_)
            return None
        if state[name] == "present":
            return copies[name]
        return Refusal("not_found" if state[name] == "missing" else "over_budget")

    def page(**cursors: Any) -> dict[str, Any]:
        listing = Listing(Query(size, **cursors), named, b"caller", 0.0)
        while (made := listing.page(find)) is None:
            pass
        return json.loads(made.body)

    def entries(page: dict[str, Any]) -> int:
        return len(page["data"]) + len(page.get("unavailable", []))

    pages = [page()]
    while after := pages[-1]["pagination"].get("next"):
        pages.append(page(after=after))
        assert page(before=pages[-1]["pagination"]["previous"])["data"] == pages[-2]["data"]
    shown = [session["externalId"] for page in pages for session in page["data"]]
    unavailable = [session["id"] for page in pages for session in page.get("unavailable", [])]

    order = list(dict.fromkeys(id_.removeprefix("session_") for id_ in named))
    assert shown == [name for name in order if state[name] == "present"]
    assert unavailable == [
        id_ for id_ in named if state[id_.removeprefix("session_")] == "unavailable"
    ]
    assert all(entries(page) == size for page in pages[:-1])
    assert entries(pages[-1]) or len(pages) == 1, "only a single page may be empty"


@pytest.mark.parametrize("parameter", ["after", "before"])
@pytest.mark.parametrize("text", ["nonsense", cursor("a", b"another caller"), cursor("z", b"me")])
def test_cursor_error_names_the_parameter(parameter: str, text: str) -> None:
    cursors: Any = {parameter: text}
    with pytest.raises(Refused) as raised:
        Listing(Query(**cursors), ["a", "b"], b"me", 0.0)

    expected = f"page[{parameter}] must be a cursor from an answer to this caller"
    assert raised.value.refusal == Refusal("bad_request", expected)


def test_find_cursor_returns_the_position_of_its_id() -> None:
    named = ["a", "b", "c"]

    positions = [find_cursor(cursor(id_, b"me"), "page[after]", named, b"me") for id_ in named]

    assert positions == [0, 1, 2]

"""Pages of a chat list: their sessions, their order, and their cursors."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bff.errors import Refusal, Refused
from bff.sessions.copy import Copy
from bff.sessions.cursor import Cursor
from bff.sessions.list_answer import Listing, Outcome, Page
from bff.sessions.list_query import Query

NAMES = [f"n{number}" for number in range(8)]
COPIES = {
    name: Copy(
        environment="e", id=f"session_{name}", external_id=name,
        body=json.dumps({"externalId": name}).encode(), closed=False, loaded=0.0,
    )
    for name in NAMES
}  # fmt: skip


class Reader:
    """Reads pages of sessions that are present, missing, broken, or late for some time.

    Args:
        state: "present", "missing", "broken", or the number of tries in which it is late.
        cold: sessions that have to be waited for once.
    """

    def __init__(self, named: list[str], state: Mapping[str, str | int], cold: set[str]) -> None:
        self.named = named
        self.state = dict(state)
        self.cold = set(cold)
        self.tries: dict[str, int] = dict.fromkeys(named, 0)

    def page(self, size: int, **cursors: Any) -> tuple[Page, dict[str, Any]]:
        listing = Listing(Query(size, **cursors), self.named, b"caller", 0.0)
        outcomes: dict[str, Outcome] = listing.outcomes

        def find(id_: str) -> Outcome | None:
            if id_ in self.cold:
                self.cold.remove(id_)
                return None
            if id_ not in outcomes:
                outcomes[id_] = self._load(id_)
            return outcomes[id_]

        while (made := listing.page(find)) is None:
            pass
        return made, json.loads(made.body)

    def _load(self, id_: str) -> Outcome:
        self.tries[id_] += 1
        state = self.state[id_.removeprefix("session_")]
        if isinstance(state, int):
            if self.tries[id_] <= state:
                return Refusal("over_budget", retry_after=2.0)
            state = "present"
        if state == "present":
            return COPIES[id_.removeprefix("session_")]
        return Refusal("not_found" if state == "missing" else "upstream_unavailable")

    def walk(self, size: int) -> list[dict[str, Any]]:
        pages = [self.page(size)[1]]
        while after := pages[-1]["pagination"].get("next"):
            pages.append(self.page(size, after=after)[1])
            assert len(pages) < 60, "the cursor advances"
        return pages


def shown(page: dict[str, Any]) -> list[str]:
    return [session["externalId"] for session in page["data"]]


def unavailable(page: dict[str, Any]) -> list[str]:
    return [session["id"] for session in page.get("unavailable", [])]


NAMED = st.lists(st.sampled_from([*NAMES, *(f"session_{n}" for n in NAMES)]), unique=True)
COLD = st.sets(st.sampled_from(NAMES))


def states(*kinds: str | int) -> st.SearchStrategy[dict[str, str | int]]:
    return st.fixed_dictionaries({name: st.sampled_from(kinds) for name in NAMES})


@settings(max_examples=300, deadline=None)
@given(NAMED, states("present", "missing", "broken"), COLD, st.integers(1, 5))
def test_pages_hold_each_session_once_and_in_order(
    named: list[str], state: dict[str, str | int], cold: set[str], size: int
) -> None:
    reader = Reader(named, state, cold)

    pages = [reader.page(size)[1]]
    while after := pages[-1]["pagination"].get("next"):
        pages.append(reader.page(size, after=after)[1])
        before = pages[-1]["pagination"]["previous"]
        assert shown(reader.page(size, before=before)[1]) == shown(pages[-2])

    order = list(dict.fromkeys(id_.removeprefix("session_") for id_ in named))
    assert [one for page in pages for one in shown(page)] == [
        name for name in order if state[name] == "present"
    ]
    assert [one for page in pages for one in unavailable(page)] == [
        id_ for id_ in named if state[id_.removeprefix("session_")] == "broken"
    ]
    assert all(len(shown(page) + unavailable(page)) == size for page in pages[:-1])
    assert shown(pages[-1]) or unavailable(pages[-1]) or len(pages) == 1


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(NAMES), unique=True),
    states("present", "missing", "broken", 1, 2, 3, 4),
    COLD,
    st.integers(1, 5),
)
def test_following_next_silently_misses_nothing(
    named: list[str], state: dict[str, str | int], cold: set[str], size: int
) -> None:
    reader = Reader(named, state, cold)

    pages = reader.walk(size)

    seen = [one for page in pages for one in shown(page)]
    reported = {one for page in pages for one in unavailable(page)}
    assert len(seen) == len(set(seen)), "each is shown once"
    assert set(seen) >= {n for n in named if state[n] in ("present", 1, 2)}, "also if late twice"
    assert set(seen) | reported == {n for n in named if state[n] != "missing"}
    assert reported >= {n for n in named if state[n] == "broken"}
    # Three pages hold it at most, and each may look at the first one after its end.
    assert max(reader.tries.values(), default=0) <= 6
    assert all(len(shown(page) + unavailable(page)) <= size for page in pages)


def test_late_session_is_carried_on_the_way_back_too() -> None:
    reader = Reader(NAMES, dict.fromkeys(NAMES, "present") | {"n1": 2, "n3": 1}, set())
    first = reader.page(2)[1]
    second = reader.page(2, after=first["pagination"]["next"])[1]
    third = reader.page(2, after=second["pagination"]["next"])[1]

    back = reader.page(2, before=third["pagination"]["previous"])[1]
    after = back["pagination"]["next"]
    rest = []
    while after:
        page = reader.page(2, after=after)[1]
        rest += shown(page)
        after = page["pagination"].get("next")

    assert shown(back) == ["n2", "n3"], "it was shown there, so it is not late any more"
    assert rest == ["n4", "n5", "n6", "n7", "n1"]


def test_page_with_late_sessions_only_is_a_refusal_at_first() -> None:
    late = dict.fromkeys(NAMES, 1)
    first, _ = Reader(NAMES, late, set()).page(3)
    second, body = Reader(NAMES, late, set()).page(3, after=Cursor(3).write(NAMES, b"caller"))

    assert first.refusal == Refusal("over_budget", retry_after=2.0)
    assert second.refusal is None, "the cursor advances"
    assert unavailable(body) == NAMES[3:6]


def test_broken_session_is_passed_over_on_any_page() -> None:
    reader = Reader(NAMES[:2], dict.fromkeys(NAMES, "present") | {"n0": "broken"}, set())

    first, body = reader.page(1)
    last = Reader(NAMES[:1], {"n0": "broken"}, set()).page(1)[0]

    assert (first.refusal, unavailable(body)) == (None, ["n0"])
    assert shown(reader.page(1, after=body["pagination"]["next"])[1]) == ["n1"]
    assert last.refusal == Refusal("upstream_unavailable"), "an empty page would say: no sessions"


@pytest.mark.parametrize("parameter", ["after", "before"])
@pytest.mark.parametrize("text", ["nonsense", Cursor(1).write(["a"], b"another caller")])
def test_cursor_error_names_the_parameter(parameter: str, text: str) -> None:
    cursors: Any = {parameter: text}
    with pytest.raises(Refused) as raised:
        Listing(Query(**cursors), ["a", "b"], b"me", 0.0)

    expected = f"page[{parameter}] must be a cursor from an answer to this caller"
    assert raised.value.refusal == Refusal("bad_request", expected)


@pytest.mark.parametrize("parameter", ["after", "before"])
def test_cursor_of_another_list_leads_to_the_first_page(parameter: str) -> None:
    text = Cursor(4, (1,)).write(NAMES, b"caller")
    reader = Reader(NAMES[::-1], dict.fromkeys(NAMES, "present"), set())

    _, body = reader.page(3, **{parameter: text})

    assert shown(body) == NAMES[:-4:-1]
    assert [*body["pagination"]] == ["next"]

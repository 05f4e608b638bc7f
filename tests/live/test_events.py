"""The bytes of events, and ids that all replicas make alike."""

import json

from support.listening import parse

from bff.digests import etag
from bff.live import events

ONE, TWO = events.stamp(etag(b"one")), events.stamp(etag(b"two"))


def test_id_depends_on_what_is_shown_and_not_on_the_way_there() -> None:
    there = events.add(events.add(0, 0, ONE), 0, TWO)
    back = events.add(events.add(events.add(0, 0, TWO), 0, TWO), TWO, ONE)

    assert events.event_id(there) == events.event_id(back)
    assert len({events.event_id(total) for total in (0, ONE, TWO, there)}) == 4


def test_refusals_have_marks_of_their_own() -> None:
    stamps = {events.stamp_of_refusal(*pair) for pair in (("a", "x"), ("a", "y"), ("b", "x"))}

    assert len(stamps) == 3
    assert max(stamps) < 0
    total = events.add(events.add(0, 0, min(stamps)), min(stamps), ONE)
    assert total == events.add(0, 0, ONE)


def test_events_are_one_line_of_data_each() -> None:
    document = json.dumps({"text": "a\nb\r\nc\u2028"}, ensure_ascii=False).encode()
    text = b"".join(
        (
            events.sessions([document, document], [{"id": "a\nb"}], ONE),
            events.session(document, TWO),
            events.gone("a\n\nb", 0),
            events.end("expired"),
        )
    ).decode()

    first, changed, gone, end = parse(text)
    assert first.data == {"data": [json.loads(document)] * 2, "unavailable": [{"id": "a\nb"}]}
    assert changed.data == json.loads(document)
    assert gone.data == {"id": "a\n\nb"}
    assert (end.data, end.id) == ({"reason": "expired"}, None)
    assert [first.id, changed.id] == [events.event_id(t).decode() for t in (ONE, TWO)]


def test_browsers_come_back_at_different_times() -> None:
    times = {int(events.opening(b"%d" % n)[7:]) for n in range(200)}

    assert len(times) > 150
    assert min(times) >= 1000
    assert max(times) < 5000

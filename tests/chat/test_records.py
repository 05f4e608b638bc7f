"""The filter of a chat's stream, for every cut of its bytes."""

import json
import re
import time
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff import metrics
from bff.chat.records import ERROR, MAX_EVENT_BYTES, UNREADABLE, RecordFilter

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzY29wZXMiOlsicmVhZDpydW5zIl19.c2VudGluZWw"
DELTA = {"type": "text-delta", "id": "t", "delta": "hello"}


class Filtered:
    """A filter, and what it passed on."""

    def __init__(self, **options: Any) -> None:
        self.counts: defaultdict[tuple[str | int, ...], float] = defaultdict(int)
        self.filter = RecordFilter(self.counts, **options)
        self.written = b""

    def feed(self, *parts: bytes) -> "Filtered":
        for part in parts:
            self.written += self.filter.feed(part)
        return self

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for data in self.batches for record in data["records"]]

    @property
    def batches(self) -> list[dict[str, Any]]:
        found = re.findall(rb"event: batch\nid: \d+\ndata: (.*)\n\n", self.written)
        return [json.loads(data) for data in found]

    def dropped(self) -> dict[object, float]:
        names = metrics.STREAM_HEADERS_DROPPED
        return {key[1]: number for key, number in self.counts.items() if key[0] == names}


def record(number: int = 0, body: Any = None, **fields: Any) -> dict[str, Any]:
    text = json.dumps({"data": DELTA, "id": "p"} if body is None else body)
    return {"seq_num": number, "timestamp": 1795641839813, "headers": [], "body": text} | fields


def control(*headers: list[Any], body: str = "", number: int = 0) -> dict[str, Any]:
    return record(number, headers=[["trigger-control", "turn-complete"], *headers], body=body)


def batch(*records: Any, id_: str = "4,1,1", **others: Any) -> bytes:
    data = json.dumps({"records": list(records)} | others, separators=(",", ":"))
    return f"event: batch\nid: {id_}\ndata: {data}\n\n".encode()


def test_data_records_pass_with_equal_bodies() -> None:
    first, second = record(0), record(1, {"data": json.dumps(DELTA), "id": "q"})

    filtered = Filtered().feed(batch(first, second))

    assert filtered.records == [first, second]
    assert filtered.filter.cursor == 1
    assert filtered.filter.records == 2


def test_captured_stream_passes_without_its_token() -> None:
    assert b"<JWT>" in CAPTURED

    filtered = Filtered().feed(CAPTURED)

    assert b"<JWT>" not in filtered.written
    assert [one["seq_num"] for one in filtered.records] == [0, 1, 2, 3, 4]
    assert filtered.records[3]["headers"] == [
        ["trigger-control", "turn-complete"],
        ["session-in-event-id", "2"],
    ]
    assert filtered.records[4] == {
        "seq_num": 4, "timestamp": 1795641872622, "headers": [["", "trim"]], "body": "",
    }  # fmt: skip
    assert filtered.dropped() == {"public-access-token": 1}


CAPTURED = batch(
    record(0, body={"data": '{"type":"text"}', "id": "O1RtqkL"}),
    record(1, body={"data": '{"type":"text"}', "id": "yE58RaG"}),
    record(2),
    record(
        3, timestamp=1795641872622, body="",
        headers=[
            ["trigger-control", "turn-complete"], ["public-access-token", "<JWT>"],
            ["session-in-event-id", "2"],
        ],
    ),
    record(4, timestamp=1795641872622, headers=[["", "trim"]], body="AAAA"),
)  # fmt: skip


def test_other_events_are_pings_ends_and_our_own_text_of_errors() -> None:
    filtered = Filtered().feed(
        b"event: ping\ndata: {}\n\nevent: error\ndata: secret\n\ndata: [DONE]\n\n"
        b"event: news\ndata: secret\n\n: comment\n\nretry: 5\n\ndata: secret\n\nid: 1\n\n"
    )

    assert filtered.written == b"event: ping\ndata: {}\n\n" + ERROR + b"data: [DONE]\n\n"
    assert {key[1]: n for key, n in filtered.counts.items()} == {
        "ping": 1, "error": 1, "done": 1, "other": 2,
    }  # fmt: skip


LEGACY = {"type": "trigger:turn-complete", "publicAccessToken": TOKEN}
SENTINELS = {
    "control header": batch(control(["public-access-token", TOKEN])),
    "control header of another name": batch(control(["x", TOKEN], [TOKEN, "x"])),
    "value of an allowed header": batch(
        record(headers=[["trigger-control", TOKEN]]), control(["session-in-event-id", TOKEN]),
        control(["session-closed", TOKEN]), record(headers=[["", TOKEN]]),
    ),
    "reason": batch(control(["session-closed", "true"], ["session-closed-reason", TOKEN])),
    "third part of a header": batch(control(["session-closed", "true", TOKEN])),
    "header that is no pair": batch(control([TOKEN], TOKEN, {"a": TOKEN}, [[TOKEN], TOKEN])),  # type: ignore[arg-type]
    "body of a control record": batch(control(body=TOKEN), control(body=json.dumps(LEGACY))),
    "body of a command": batch(record(headers=[["", "fence"]], body=TOKEN)),
    "control behind another header": batch(
        record(headers=[["x", "y"], ["trigger-control", "turn-complete"]], body=TOKEN)
    ),
    "header of a data record": batch(record(headers=[["public-access-token", TOKEN]])),
    "headers that are no list": batch(record(headers={"0": [TOKEN]}), record(headers=TOKEN)),
    "body of a record whose headers are no list": batch(
        record(headers={"trigger-control": "turn-complete"}, body=TOKEN),
        record(headers="trigger-control", body={"publicAccessToken": TOKEN, "data": TOKEN}),
    ),
    "body of a record with a malformed header": batch(
        record(headers=[{"name": "trigger-control"}], body={"data": TOKEN}),
        record(headers=["trigger-control", "turn-complete"], body={"data": TOKEN}),
        record(headers=[["x", "y"], None], body={"data": TOKEN}),
    ),
    "control in other letters": batch(
        record(headers=[["Trigger-Control ", "turn-complete"]], body={"data": TOKEN}),
        record(headers=[["x", "y"], ["", "trim"]], body={"data": TOKEN}),
    ),
    "id of a legacy record": batch(record(body={"data": LEGACY, "id": TOKEN})),
    "legacy record in a list": batch(
        record(body={"data": [LEGACY]}), record(body=[[LEGACY]]), record(body=[json.dumps(LEGACY)])
    ),
    "legacy record in an envelope twice": batch(record(body={"data": {"data": LEGACY}, "id": "p"})),
    "envelope in an envelope with another key": batch(
        record(body={"data": {"data": LEGACY, "time": 1}, "id": "p"}),
        record(body={"data": [{"data": json.dumps(LEGACY), "time": 1}]}),
    ),
    "envelope in a string": batch(record(body=json.dumps({"data": LEGACY, "id": "p"}))),
    "type in other letters": batch(record(body={"data": LEGACY | {"type": " Trigger:Turn"}})),
    "id of the SDK's own control": batch(record(body={"data": {"type": "trigger:", "id": TOKEN}})),
    "legacy record": batch(record(body={"data": LEGACY, "id": "p"})),
    "legacy record in a string": batch(record(body={"data": json.dumps(LEGACY), "id": "p"})),
    "legacy record in a string in a string": batch(
        record(body={"data": json.dumps(json.dumps(LEGACY)), "id": "p"})
    ),
    "legacy record in many strings": batch(
        record(body={"data": json.dumps(json.dumps(json.dumps(json.dumps(json.dumps(LEGACY)))))})
    ),
    "legacy record without an envelope": batch(record(body=LEGACY)),
    "legacy record as a string": batch(record(body=json.dumps(LEGACY))),
    "escaped type": batch(record(body=None) | {"body": json.dumps({"data": LEGACY}).replace(
        "trigger:", "\\u0074rigger\\u003a")}),
    "type itself": batch(record(body={"data": {"type": f"trigger:{TOKEN}"}})),
    "repeated type": batch(
        record() | {"body": f'{{"data":{{"type":"trigger:x","t":"{TOKEN}","type":"text"}}}}'}
    ),
    "repeated data": batch(
        record() | {"body": json.dumps({"data": LEGACY})[:-1] + ',"data":{"type":"text"}}'}
    ),
    "repeated key in a string": batch(
        record(body={"data": f'{{"type":"trigger:x","t":"{TOKEN}","type":"text"}}'})
    ),
    "envelope": batch(record(body={"data": DELTA, "id": "p", "publicAccessToken": TOKEN})),
    "id of the app's record": batch(
        record(body={"data": DELTA, "id": TOKEN}), record(body={"data": DELTA, "id": LEGACY}),
        record(body={"data": DELTA, "id": [TOKEN]}), record(body={"id": json.dumps(LEGACY)}),
    ),
    "key of a record": batch(record() | {"publicAccessToken": TOKEN}),
    "timestamp": batch(record(timestamp=TOKEN)),
    "key of a batch": batch(record(), tail=TOKEN),
    "id of an event": batch(record(), id_=TOKEN),
    "comment": b": " + TOKEN.encode() + b"\n" + batch(record()),
    "unknown field": TOKEN.encode() + b": " + TOKEN.encode() + b"\n" + batch(record()),
    "unknown event": b"event: token\ndata: " + TOKEN.encode() + b"\n\n" + batch(record()),
    "name of an event": b"event: " + TOKEN.encode() + b"\ndata: {}\n\n" + batch(record()),
    "event without a name": b"data: " + TOKEN.encode() + b"\n\n" + batch(record()),
    "error": b"event: error\ndata: " + TOKEN.encode() + b"\n\n" + batch(record()),
    "ping": b"event: ping\ndata: " + TOKEN.encode() + b"\n\n" + batch(record()),
    "retry": b"retry: " + TOKEN.encode() + b"\n\n" + batch(record()),
    "event without an end": batch(record()) + b"data: " + TOKEN.encode(),
    "record after one that is not JSON": batch(record(body=None) | {"body": TOKEN}),
    "data that is not JSON": b"event: batch\ndata: " + TOKEN.encode() + b"\n\n",
}  # fmt: skip


@pytest.mark.parametrize("place", SENTINELS)
def test_tokens_of_upstream_never_pass(place: str) -> None:
    stream = SENTINELS[place]
    for step in (1, 7, len(stream)):
        filtered = Filtered().feed(*(stream[i : i + step] for i in range(0, len(stream), step)))

        assert TOKEN.encode() not in filtered.written
        assert filtered.written, "something passes in every case"


def test_same_text_within_a_delta_passes_unchanged() -> None:
    chunk = DELTA | {"delta": f"trigger:turn-complete publicAccessToken {TOKEN}"}
    one = record(body={"data": chunk, "id": "p"})

    assert Filtered().feed(batch(one)).records == [one]


def test_legacy_record_keeps_its_type_alone() -> None:
    filtered = Filtered().feed(
        batch(
            record(0, {"data": LEGACY, "id": "p"}), record(1, {"data": json.dumps(LEGACY)})
        )
    )  # fmt: skip

    first, second = (json.loads(one["body"]) for one in filtered.records)
    assert first == {"data": {"type": "trigger:turn-complete"}, "id": "p"}
    assert json.loads(second["data"]) == {"type": "trigger:turn-complete"}


def test_body_with_repeated_keys_becomes_an_empty_record() -> None:
    odd = record(1) | {"body": '{"data":1,"data":2}'}

    filtered = Filtered().feed(batch(record(0), odd, record(2)))

    assert [one["body"] for one in filtered.records] == [record()["body"], "", record()["body"]]
    assert filtered.filter.cursor == 2


@pytest.mark.parametrize(
    "body",
    [
        "", "1", "null", '"text"', '"\\"text\\""', "[]", '{"data":"plain text"}', '{"data":12}',
        '{"data":null}', '{"data":[{"type":"text"}]}', '{"data":{"data":{"n":1},"id":"p"}}',
        '{"id":"p"}', "{}", '{"data":1,"id":"f81d4fae-7dec-11d0-a765-00a0c91e6bf6"}', '{"id":7}',
        '{"data":{"n":' + "9" * 5000 + "}}", '{"data":{"n":1e999,"i":1.10}}', ' {"data" : 1 } ',
        '{"data":{"delta":"\\ud83d"}}', '{"data":{"delta":"\u2028\x7fü😀"}}',
    ],
)  # fmt: skip
def test_bodies_of_the_app_pass_unchanged(body: str) -> None:
    assert [one["body"] for one in Filtered().feed(batch(record() | {"body": body})).records] == [
        body
    ]


@pytest.mark.parametrize("element", ['""', '"x"', "{}", "[]", '{"a":1}', "1"])
def test_cost_of_a_large_body_is_bounded(element: str) -> None:
    body = f'{{"data":[{",".join([element] * (250_000 // len(element)))}]}}'
    stream = batch(record() | {"body": body})
    began = time.process_time()

    (passed,) = Filtered().feed(stream).records

    assert passed["body"] == body
    assert time.process_time() - began < 1.0, "Python objects, not a search for each of them"


def test_half_a_surrogate_pair_in_a_body_passes_unchanged() -> None:
    one = record() | {"body": '{"data":"\ud83d"}'}

    assert Filtered().feed(batch(one)).records == [one]


def test_body_that_is_written_anew_stays_json() -> None:
    odd = record(0) | {"body": '{"data":1e999,"extra":1}'}

    assert [one["body"] for one in Filtered().feed(batch(odd, record(1))).records] == [
        "",
        record()["body"],
    ]


def test_number_in_an_envelope_that_is_written_anew_stays_whole() -> None:
    filtered = Filtered().feed(batch(record(body={"data": {"n": 12345678901234567890}, "x": 1})))

    assert filtered.records[0]["body"] == '{"data":{"n":12345678901234567890}}'


@pytest.mark.parametrize(
    "data",
    [
        "", "not json", "[]", "{}", "1", '{"records":1}', '{"records":null}', '{"records":[1]}',
        '{"records":[null]}', '{"records":["x"]}', '{"records":[{}]}',
        *(json.dumps({"records": [record() | {"seq_num": n}]}) for n in (-1, "1", None, 1.5, True,
                                                                       10**16)),
        *(json.dumps({"records": [record() | {"body": b}]}) for b in ("{", "no", 1, {}, ["x"],
                                                                     "NaN", '{"data":}')),
        '{"records":[{"seq_num":' + "9" * 5000 + "}]}",
        "[" * 100_000,
    ],
)  # fmt: skip
def test_stream_ends_for_good_at_what_cannot_be_read(data: str) -> None:
    filtered = Filtered().feed(batch(record(7)), f"event: batch\ndata: {data}\n\n".encode())
    filtered.feed(batch(record(8)))

    assert filtered.written.endswith(UNREADABLE)
    assert [one["seq_num"] for one in filtered.records] == [7]
    assert filtered.filter.failed
    assert filtered.filter.buffered == 0


@pytest.mark.parametrize("size", [100, 101])
@pytest.mark.parametrize("step", [1, 50, 1000])
def test_event_beyond_the_bound_ends_the_stream_for_any_cut(size: int, step: int) -> None:
    stream = b":" * size + b"\n\n" + batch(record())[:0] + b"event: ping\ndata: {}\n\n"
    parts = [stream[i : i + step] for i in range(0, len(stream), step)]

    filtered = Filtered(max_event_bytes=100).feed(*parts)

    assert filtered.filter.failed is (size > 100)


def test_unfinished_event_is_bounded() -> None:
    filtered = Filtered()
    for _ in range(MAX_EVENT_BYTES // 65536 + 1):
        filtered.feed(b"x" * 65536)

    assert filtered.filter.failed


def test_reason_of_a_closed_session_passes_by_the_policy() -> None:
    stream = batch(control(["session-closed", "true"], ["session-closed-reason", "spam: ü"]))

    shown = Filtered(shows_reason=True).feed(stream)
    hidden = Filtered().feed(stream)

    assert ["session-closed-reason", "spam: ü"] in shown.records[0]["headers"]
    assert hidden.records[0]["headers"] == [
        ["trigger-control", "turn-complete"], ["session-closed", "true"]
    ]  # fmt: skip
    assert hidden.dropped() == {"session-closed-reason": 1}


def test_names_of_dropped_headers_come_from_a_fixed_list() -> None:
    filtered = Filtered().feed(batch(control(["odd", "x"], ["public-access-token", "x"], [None])))

    assert filtered.dropped() == {"other": 2, "public-access-token": 1}


ENDS = (b"\n", b"\r", b"\r\n")


@given(
    st.lists(
        st.sampled_from(
            [
                b"event: batch", b"event:ping", b"data: {}", b"data", b"data:", b"", b"", b": x",
                b"data: [DONE]", b"event", b"id: 1\0", b"\xff\xc3", "data: ü\u2028".encode(),
                b"\xef\xbb\xbfevent: ping", *batch(record(3)).split(b"\n")[::2],
                *(line for place in SENTINELS.values() for line in place.split(b"\n")),
            ]
        ).flatmap(lambda line: st.sampled_from(ENDS).map(lambda end: line + end)),
        max_size=12,
    ).map(b"".join),
    st.lists(st.integers(0, 2000), max_size=8),
    st.booleans(),
)  # fmt: skip
def test_any_cut_of_a_stream_gives_the_same_bytes(
    stream: bytes, cuts: list[int], bom: bool
) -> None:
    stream = b"\xef\xbb\xbf" * bom + stream
    places = sorted({min(cut, len(stream)) for cut in cuts})
    parts = [
        stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)
    ]  # also empty ones

    whole, cut = Filtered().feed(stream), Filtered().feed(*parts)

    assert cut.written == whole.written
    assert cut.counts == whole.counts
    assert TOKEN.encode() not in cut.written


@pytest.mark.parametrize("end", ENDS)
def test_each_kind_of_line_end_is_read(end: bytes) -> None:
    stream = batch(record(0), record(1)).replace(b"\n", end) * 2

    for cut in range(len(stream)):
        assert len(Filtered().feed(stream[:cut], stream[cut:]).batches) == 2


def test_data_of_several_lines_is_one_document() -> None:
    stream = b'event: batch\ndata: {"records":\ndata:[%b]}\n\n' % json.dumps(record(5)).encode()

    assert Filtered().feed(stream).records == [record(5)]


def test_id_is_the_number_that_a_browser_may_resume_from() -> None:
    assert (
        Filtered()
        .feed(batch(record(3), record(9)))
        .written.startswith(b"event: batch\nid: 9\ndata: ")
    )


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_give_events_of_known_kinds(parts: list[bytes]) -> None:
    written = Filtered().feed(*parts).written

    for event in written.split(b"\n\n")[:-1]:
        assert event.startswith((b"event: batch\n", b"event: ping\n", b"event: error\n", b"data: "))

"""Which requests prefer an event stream to JSON."""

import pytest
from support.cost import calls_of

from bff.live.accept import prefers_events


@pytest.mark.parametrize(
    "accept",
    [
        b"text/event-stream",
        b"TEXT/EVENT-STREAM",
        b" text/event-stream ; charset=utf-8 ",
        b"text/event-stream;q=0.001",
        b"text/event-stream, */*;q=0.1",
        b"application/json;q=0.5, text/event-stream;q=0.6",
        b"application/json;q=0, text/event-stream;q=0.1, */*",
        b"text/event-stream;q=0, text/event-stream;q=1",
        b"application/json;q=2, text/event-stream",
        b",,;, text/event-stream",
        b"text/event-stream;a=1;b=2;c=3;d=4;e=5;f=6;g=7;q=0.1",
    ],
)
def test_greater_weight_than_json_prefers_events(accept: bytes) -> None:
    assert prefers_events([accept])


@pytest.mark.parametrize(
    "accept",
    [
        b"",
        b"*/*",
        b"text/*",
        b"application/json",
        b"text/event-stream, application/json",
        b"application/json, text/event-stream",
        b"text/event-stream, */*",
        b"text/event-stream;q=0.5, application/*;q=0.5",
        b"text/event-stream;q=0",
        b"text/event-stream;q=0.000",
        b"text/event-stream;q=1.5",
        b"text/event-stream;q=-1",
        b"text/event-stream;q=nan",
        b"text/event-stream;q=1e0",
        b"text/event-stream;q=",
        b"x-text/event-stream",
        b"text/event-streams",
        b"\xff\x00text/event-stream",
        b"text/html," * 40 + b"text/event-stream",
        b"text/event-stream" + b";a" * 9,
        b"text/event-stream" + b";a" * 9 + b";q=1",
    ],
)
def test_everything_else_gets_json(accept: bytes) -> None:
    assert not prefers_events([accept])


def test_lines_count_together() -> None:
    assert prefers_events([b"text/html", b"text/event-stream"])
    assert not prefers_events([b"text/event-stream", b"*/*"])
    assert not prefers_events([])


@pytest.mark.parametrize("filling", [b";", b"; ", b",", b";,", b";q", b";q=0", b"a=b;", b"*/*;,"])
def test_no_filling_costs_much_before_a_limit(filling: bytes) -> None:
    for start in (b"", b"text/event-stream", b"text/event-stream;q=1,"):
        value = start + filling * (65_536 // len(filling))
        assert calls_of(lambda value=value: prefers_events([value])) < 2000

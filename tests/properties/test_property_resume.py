"""A stream that is cut again and again, at any byte of either side, loses and doubles nothing."""

import json
import random
from collections import defaultdict
from typing import Any

import pytest

from bff.chat.records import RecordFilter

RECONNECTS = 20
TOKEN = "eyJhbGciOiJIUzI1NiJ9.c2VudGluZWw.token-of-upstream"


def made_up(chance: random.Random, number: int) -> dict[str, Any]:
    """Make a record of any kind; its body tells its number."""
    text = f"{number} " + chance.choice(["", "ü😀\u2028", '"\\ \n\n', "data: x\r\n\r", TOKEN])
    chunk: Any = {"type": "text-delta", "id": "t", "delta": text}
    record = {"seq_num": number, "timestamp": number, "body": json.dumps({"data": chunk})}
    kind = chance.randrange(6)
    if kind == 0:
        headers = [["trigger-control", "turn-complete"], ["public-access-token", TOKEN]]
        return record | {"headers": headers, "body": ""}
    if kind == 1:
        return record | {"headers": [["", "trim"]], "body": "AAAA"}
    if kind == 2:  # a body within a body, which is longer than it
        return record | {"headers": [], "body": json.dumps({"data": json.dumps(chunk)})}
    return record | ({"headers": []} if kind == 3 else {})


def sent(chance: random.Random, records: list[dict[str, Any]]) -> bytes:
    """Write *records* as upstream does: in batches of any size, with pings between them."""
    events, rest = [], list(records)
    while rest:
        size = chance.randrange(1, 5)
        data = json.dumps({"records": rest[:size]}, ensure_ascii=chance.random() < 0.5)
        events.append(f"event: batch\nid: {rest[:size][-1]['seq_num']},1,1\ndata: {data}\n\n")
        events += ["event: ping\ndata: {}\n\n"] * chance.randrange(2)
        del rest[:size]
    return "".join(events).encode()


def parts(chance: random.Random, data: bytes) -> list[bytes]:
    """Cut *data* at random places."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Client:
    """Reads events as the official client does, and resumes after the last complete one."""

    def __init__(self) -> None:
        self.cursor = -1
        self.records: list[dict[str, Any]] = []

    def read(self, data: bytes) -> None:
        for event in data.decode(errors="replace").split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in event.split("\n"))
            if fields["event"] == "batch":
                self.cursor = int(fields["id"])
                self.records += json.loads(fields["data"])["records"]


@pytest.mark.parametrize("seed", range(40))
def test_twenty_reconnects_lose_and_double_nothing(seed: int) -> None:
    chance = random.Random(seed)
    records = [made_up(chance, number) for number in range(chance.randrange(60, 200))]
    client = Client()

    for reconnect in range(RECONNECTS + 1):
        stream = sent(chance, records[client.cursor + 1 :])
        if reconnect < RECONNECTS:
            stream = stream[: chance.randrange(len(stream) // 4 + 1)]  # upstream's side is cut
        filtered = RecordFilter(defaultdict(float), cursor=client.cursor)
        passed = b"".join(map(filtered.feed, parts(chance, stream)))
        if reconnect < RECONNECTS and chance.random() < 0.5:
            passed = passed[: chance.randrange(len(passed) + 1)]  # the browser's side is cut
        assert not filtered.failed
        client.read(passed)

    assert [record["seq_num"] for record in client.records] == list(range(len(records)))
    for passed_record, record in zip(client.records, records, strict=True):
        is_data = not record.get("headers")
        assert passed_record["body"] == (record["body"] if is_data else "")
    assert TOKEN not in str([r["headers"] for r in client.records])

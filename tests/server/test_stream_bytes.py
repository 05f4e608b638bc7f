"""A chat gets the same bytes with the fast path and without it."""

import json
import random

import pytest
from support.chats import BOTH, CHAT, ROUTE, message
from support.differential import authorization, both_sides, connect_both, feed_both, request
from support.world import ORIGIN, Clock

from bff.demo.chat_upstream import PretendChats

OUT, APPEND = f"{ROUTE}chat-1/out", f"{ROUTE}chat-1/in/append"
GRANTED = authorization(*BOTH)
LINES = [
    *(["last-event-id: 0"], ["last-event-id: x"], ["last-event-id: 1", "last-event-id: 1"]),
    *([f"origin: {ORIGIN}"], ["x-trigger-stream-start: latest"], ["connection: close"]),
    *(["timeout-seconds: 1"], ["timeout-seconds: x"], ["accept: text/event-stream"]),
]
BODIES = [
    *(json.dumps(message()), json.dumps(message(chatId="chat-2")), '{"kind":"stop"}', "", "[]"),
    *('{"kind":"stop","kind":"stop"}', "x" * 5000),
]


def made_up(chance: random.Random) -> bytes:
    """Make one request of either route: mostly valid, sometimes not."""
    lines = [chance.choice([*[GRANTED] * 6, authorization("read:sessions:chat-1"), "cookie: x"])]
    for more in chance.sample(LINES, chance.choice([0, 0, 1, 2])):
        lines += more
    version = chance.choice(["1.1"] * 6 + ["1.0"])
    if chance.random() < 0.6:
        method = chance.choice(["GET"] * 6 + ["HEAD", "PUT", "OPTIONS", "POST"])
        settled = ["x-peek-settled: 1"]  # the stream ends at once
        return request(*lines, *settled, method=method, target=OUT, version=version)
    body = chance.choice(BODIES)
    lines.append(f"content-length: {len(body)}")
    return request(*lines, method="POST", target=APPEND, version=version) + body.encode()


@pytest.mark.parametrize("seed", range(2))
async def test_chats_get_equal_bytes_on_both_paths(
    clock: Clock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretendChats, "_act", lambda *_: None)  # no agent writes meanwhile
    chance = random.Random(seed)
    settings = CHAT | {"BFF_MAX_MESSAGE_BYTES": "4096", "BFF_MESSAGE_LIMIT": "1/minute"}
    seen = set()
    async with both_sides(clock, **settings) as sides:
        for side in sides:
            channel = side.world.upstream.chats.channel(
                side.world.upstream.environments[0], "chat-1"
            )
            for number in range(3):
                body = json.dumps({"data": {"type": "text-delta", "delta": f"{number} ü"}})
                channel.write(timestamp=1, headers=[], body=body)
            headers = [["trigger-control", "turn-complete"], ["public-access-token", "secret"]]
            channel.write(timestamp=1, headers=headers, body="")
        transports = connect_both(sides)
        for _ in range(150):
            if transports[0].over:
                transports = connect_both(sides)
            answer = await feed_both(sides, made_up(chance), transports=transports)
            seen.add(answer[9:12])
            clock.advance(chance.choice([0, 0, 1, 5]))

    assert {b"200", b"400", b"403", b"429"} <= seen, seen

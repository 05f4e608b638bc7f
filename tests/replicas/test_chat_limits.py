"""Limits of messages are exact over replicas on a real store."""

from itertools import cycle

from support.chats import BOTH, CHAT, append, code, inputs
from support.replicas import Replicas


async def test_message_21_is_refused_by_any_of_four_replicas(replicas: Replicas) -> None:
    worlds = await replicas.several(4, **CHAT)
    one = worlds[0]

    def token(number: int) -> str:
        return one.token(*BOTH, f"read:sessions:x{number}", act={"sub": "ann"}, jti=str(number))

    answers = [
        await append(world, token=token(number))
        for number, world in zip(range(20), cycle(worlds), strict=False)
    ]
    refused = [await append(world, token=token(90 + n)) for n, world in enumerate(worlds)]
    stops = [await append(world, {"kind": "stop"}, token=token(0)) for world in worlds]
    other = await append(one, token=one.token(*BOTH, act={"sub": "bob"}))

    assert [answer.status_code for answer in answers] == [200] * 20
    assert [code(answer) for answer in refused] == [(429, "rate_limited")] * 4
    assert [answer.status_code for answer in [*stops, other]] == [200] * 5
    assert len(inputs(one)) == 25

"""A revocation at one replica ends the streams of all replicas at a store."""

from typing import Any

import pytest
from support.chats import BOTH, CHAT, Live, batch
from support.replicas import Replicas, until
from support.world import FRIENDLY

from bff import metrics
from bff.stream_registry import CHECK_SECONDS


@pytest.mark.parametrize(("id_", "has_pair"), [("chat-1", True), (FRIENDLY["chat-1"], False)])
async def test_revocations_end_the_streams_of_all_replicas(
    replicas: Replicas, id_: str, has_pair: bool
) -> None:
    worlds = await replicas.several(2, **CHAT)
    revocations: list[dict[str, Any]] = [{"jti": "j1"}, {"subject": "bob"}, {"session": id_}]
    streams = []
    for world in worlds:
        issued = int(world.clock.wall) - 5
        if has_pair:
            await world.get("chat-1")
        for claims in ({"jti": "j1"}, {"act": {"sub": "bob"}}, {"act": {"sub": "eve"}}):
            live = Live(world)
            await live.open(world.token(*BOTH, iat=issued, **claims))
            await live.send(batch({"type": "start"}))
            streams.append(live)

    for number, revocation in enumerate(revocations):
        answer = await worlds[0].ops.post("/revocations", json=revocation)
        assert answer.status_code == 200
        ending = [streams[number], streams[number + 3]]
        await until(lambda ending=ending: all(live.reading.done() for live in ending))
        assert all(live.closed for live in ending), "upstream's side too"
        assert sum(live.reading.done() for live in streams) == 2 * number + 2, "no other stream"

    assert all(b"start" in live.received and b"[DONE]" not in live.received for live in streams)
    for world in worlds:
        assert world.telemetry.counts[metrics.STREAM_ENDS, "revoked"] == 3
    assert CHECK_SECONDS <= 0.5, "what a replica has learned ends them within a second"

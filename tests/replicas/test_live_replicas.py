"""Listeners of several replicas at one store."""

from support.listening import change, listen, look
from support.replicas import Replicas, until
from support.world import read


async def test_listeners_of_two_replicas_share_the_loads(replicas: Replicas) -> None:
    one, two = await replicas.several(2)
    pages = [await listen(world, "chat-1") for world in (one, two, one, two)]
    for _ in range(4):
        await look(one, 2.1)
        await look(two)
    change(one, "chat-1", taskIdentifier="another")
    await look(one, 2.1)
    await look(two)

    await until(lambda: all(page.received.count(b"event: session\n") for page in pages))

    assert len(replicas.upstream.seen) <= 7, "one for each TTL, whoever asks"
    ids = {page.received.rpartition(b"id: ")[2].partition(b"\n")[0] for page in pages}
    assert len(ids) == 1, "replicas make equal ids"


async def test_new_token_at_one_replica_ends_a_list_at_another(replicas: Replicas) -> None:
    one, two = await replicas.several(2)
    ann = {"act": {"sub": "ann"}, "iat": int(one.service._clock()[1])}
    page = await listen(one, token=one.token(*read("chat-1"), **ann))
    await two.get("chat-2", token=two.token(*read("chat-1", "chat-2"), **ann))

    await until(lambda: page.finished)
    assert page.received.endswith(b'event: end\ndata: {"reason":"outdated"}\n\n')

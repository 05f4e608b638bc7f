"""The store key: replicas that share any secret key agree on it, and the store cannot tell it."""

import os

from support.replicas import Replicas, contents, heartbeat, until
from support.world import SECRET_KEY

from bff.replicas.store_key import StoreKey


async def agreed(replicas: Replicas, *secrets: bytes) -> bytes:
    """Agree as a replica that starts with these secret keys."""
    world = await replicas.add()
    key = StoreKey(world.service.sharing.store.connection, os.urandom)
    key.secrets = secrets
    await key.agree()
    assert key.value is not None
    assert len(key.value) == 32
    return key.value


async def test_replicas_agree_in_every_step_of_a_rotation(replicas: Replicas) -> None:
    steps = [(b"old",), (b"new", b"old"), (b"old",), (b"new",), (b"newer", b"new"), (b"newer",)]

    values = {await agreed(replicas, *secrets) for secrets in steps}

    assert len(values) == 1
    assert await agreed(replicas, b"a stranger's") not in values


async def test_store_does_not_tell_the_key(replicas: Replicas) -> None:
    value = await agreed(replicas, b"secret")

    text = b"".join(contents(replicas.engine).values())
    assert value not in text
    assert value.hex().encode() not in text


async def test_foreign_value_is_replaced(replicas: Replicas) -> None:
    value = await agreed(replicas, b"one", b"two")
    with replicas.engine.client() as client:
        for number, name in enumerate(sorted(client.keys("bff1:{told}:sealed:*"))):
            client.set(name, b"\xff" if number else b"foreign")

    again = await agreed(replicas, b"one", b"two")

    assert again != value
    assert await agreed(replicas, b"two") == await agreed(replicas, b"one") == again


async def test_replica_takes_the_key_of_a_store_that_lost_its_own(replicas: Replicas) -> None:
    world = await replicas.add()
    key = world.service.sharing.store.key
    before = key.value
    replicas.engine.empty()
    await key.agree()
    assert key.value == before, "the first one stores its own"
    replicas.engine.empty()

    other = await agreed(replicas, *key.secrets)
    await key.agree()

    assert key.value == other


async def test_heartbeat_seals_the_key_with_reloaded_secret_keys(replicas: Replicas) -> None:
    (world,) = await replicas.several(1)
    store = world.service.sharing.store
    world.reload(TRIGGER_SECRET_KEY=f"tr_dev_sk_NEXTsentinel00000000001,{SECRET_KEY}")
    await heartbeat(world)

    await until(lambda: len(store.key.sealed) == 2 and None not in store.key.sealed)

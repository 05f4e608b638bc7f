"""The parts that the composition root connects."""

import asyncio
import re
from pathlib import Path

from support.replicas import Replicas, until
from support.world import NEW_KEY, OWN_KEY, World

from bff import background, metrics

BFF = Path(background.__file__).parent


async def test_gauge_shows_when_each_key_was_used(world: World) -> None:
    await world.start(BFF_SIGNING_KEYS=f"{NEW_KEY},{OWN_KEY}")
    await world.get("chat-1", token=world.signed_with(OWN_KEY, "chat-1"))
    world.clock.advance(5)
    token = world.signed_with(NEW_KEY, "chat-1")
    await world.get("chat-1", token=token)
    world.clock.advance(60)
    await world.get("chat-1", token=token)  # remembered as verified, and used all the same

    def used() -> dict[int, float]:
        return {use.number: use.last for use in world.service.gateway.config.verifier.uses}

    assert used() == {1: 1_800_000_065.0, 2: 1_800_000_000.0}

    world.reload(BFF_SIGNING_KEYS=f"another-{OWN_KEY},{NEW_KEY},{OWN_KEY}")
    assert used() == {1: 0.0, 2: 1_800_000_065.0, 3: 1_800_000_000.0}


async def test_every_loop_runs_again_when_it_is_killed(replicas: Replicas) -> None:
    """All loops of a gateway with a store, by their names in the code."""
    started = {
        name
        for file in BFF.rglob("*.py")
        for name in re.findall(r'background\.start\(\s*"(\w+)"', file.read_text())
    }
    (world,) = await replicas.several(1)
    owner, counts = world.service.background, world.service.gateway.telemetry.counts
    owner._restart_seconds = 0.01
    # Every key and id is known, so nothing is refreshed.
    await until(lambda: {loop.task for loop in owner._loops} == started - {"key_refresh"})
    killed = [loop for loop in owner._loops if not loop.done and loop.running is not None]

    for loop in killed:
        assert loop.running is not None
        loop.running.cancel()
    await asyncio.sleep(0)

    await until(
        lambda: all(counts[metrics.BACKGROUND_RESTARTS, loop.task] or loop.done for loop in killed)
    )
    await until(lambda: all(owner.up.values()))
    assert (await world.get("chat-1")).status_code == 200

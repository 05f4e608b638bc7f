"""Gauges, and counters that start at 0."""

from support.world import World

from bff import metrics
from bff.ops.gauges import read_gauges


async def test_counters_of_each_environment_start_at_zero(world: World) -> None:
    gauges = read_gauges(world.service)

    assert gauges[metrics.LOADS]["default", "upstream_rejected_credentials"] == 0
    assert gauges[metrics.CACHE]["default", "hit"] == 0
    assert gauges[metrics.SECRET_KEY_IN_USE] == {("default",): 1}
    assert gauges[metrics.UPSTREAM_UP] == {}, "nothing is known before the first question"


async def test_requests_lookups_and_loads_name_the_environment(world: World) -> None:
    await world.get("chat-1")
    await world.get("chat-1")
    await world.get("chat-2", token=world.token("read:sessions:chat-1"))
    await world.browser.get("/api/v1/sessions/chat-1")

    text = (await world.ops.get("/metrics")).text

    for sample in (
        'bff_cache_total{environment="default",result="hit"} 1.0',
        'bff_loads_total{environment="default",outcome="ok"} 1.0',
        'route="session",served_by="asgi",status="200"} 2.0',
        'code="unauthorized",environment="default"',
        'code="token_missing",environment=""',
    ):
        assert sample in text, sample


async def test_answers_are_counted_by_their_time(world: World) -> None:
    for _ in range(4):
        await world.get("chat-1")  # the first waits for a load
    waits = world.telemetry.observed[metrics.ANSWER_SECONDS][1]

    text = (await world.ops.get("/metrics")).text

    assert sum(waits) == 1
    assert "bff_answer_seconds_count 4.0" in text

"""Readiness: what decides it, and what the gateway knows about upstream."""

import asyncio

import pytest
from support.world import OWN_KEY, PATH, ROOT_KEY, World

from bff.copies import readiness

PROBE = PATH + "session_readiness_probe"


def probes(world: World) -> list[str]:
    return [seen.raw_path for seen in world.upstream.seen if seen.raw_path == PROBE]


async def reason(world: World) -> str:
    return (await world.ops.get("/readyz")).json()["environments"]["default"]["reason"]


async def verbose(world: World) -> str:
    return (await world.ops.get("/readyz?verbose")).text


async def test_readiness_check_calls_upstream_once(world: World) -> None:
    for _ in range(3):
        text = await verbose(world)

    assert "[+] upstream of default: the upstream answers and accepts the key" in text
    assert probes(world) == [PROBE]


async def test_probe_asks_upstream_without_waiting_for_it(world: World) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: object) -> None:
        asked.set()
        await go_on.wait()

    world.upstream.override = slow
    first = await world.ops.get("/readyz")
    await asked.wait()
    go_on.set()

    assert first.status_code == 200
    assert "was not checked yet" in first.text


@pytest.mark.parametrize("status", [401, 403, 500, 429, 404, 200])
async def test_nothing_that_upstream_answers_makes_a_gateway_unready(
    world: World, status: int
) -> None:
    world.answer(status, {"error": "x"})
    await verbose(world)

    assert (await world.ops.get("/readyz")).status_code == 200
    assert (await world.ops.get("/readyz?verbose")).status_code == 200


async def test_rejected_secret_key_is_reported(world: World) -> None:
    world.answer(401, {"error": "Invalid API key"})

    text = await verbose(world)

    assert "[-] upstream of default: the upstream rejects the secret key" in text
    assert "TRIGGER_SECRET_KEY" in text
    events = [line["event"] for line in world.logged() if line["level"] == "error"]
    assert events == ["upstream_rejects_our_key"]
    assert 'bff_upstream_up{environment="default"} 0.0' in (await world.ops.get("/metrics")).text
    world.answer(0)
    world.clock.advance(2)
    assert "[+] upstream of default" in await verbose(world)
    assert 'bff_upstream_up{environment="default"} 1.0' in (await world.ops.get("/metrics")).text
    assert "upstream_recovered" in [line["event"] for line in world.logged()]


async def test_browsers_ids_do_not_move_health(world: World) -> None:
    await verbose(world)
    world.answer(403, {"error": "Unauthorized"})
    for id_ in ("chat-1", "chat-2"):
        assert (await world.get(id_)).status_code == 502
    world.answer(0)

    assert "the upstream answers" in await reason(world)
    assert 'bff_upstream_up{environment="default"} 1.0' in (await world.ops.get("/metrics")).text


async def test_idle_gateway_does_not_say_that_upstream_answers(world: World) -> None:
    assert "the upstream answers" in await verbose(world)
    answers = asyncio.Event()

    async def slow(_: object) -> None:
        await answers.wait()

    world.upstream.override = slow
    world.clock.advance(80)

    assert "last answer is 80 s old" in await reason(world)
    answers.set()
    assert "the upstream answers" in await verbose(world)
    world.answer(500, {})
    world.clock.advance(80)
    assert "the upstream fails (upstream_unavailable)" in await verbose(world)


async def test_idle_gateway_notices_an_outage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "TROUBLE_SECONDS", 0.01)
    await world.start()
    await verbose(world)
    world.answer(500, {})
    world.clock.advance(80)
    for _ in range(300):
        if "fails" in world.service.gateway.readiness.upstream(
            world.service.gateway.config.environments["default"]
        ):
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("no question of the gateway's own")


async def test_copies_that_are_served_meanwhile_are_reported(world: World) -> None:
    await world.get("chat-1")
    world.answer(500, {})
    world.clock.advance(10)

    assert "copies are served meanwhile" in await verbose(world)
    world.clock.advance(60)
    assert "there is no copy to serve" in await verbose(world)


async def test_question_is_spent_from_the_budget(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="1/minute")
    await world.get("chat-1")

    await verbose(world)

    assert probes(world) == []


async def test_gateway_that_shuts_down_is_not_ready(world: World) -> None:
    world.service.gateway.readiness.is_stopping = True

    response = await world.ops.get("/readyz")

    assert response.status_code == 503
    assert "shuts down" in response.text
    assert (await world.ops.get("/readyz?verbose")).text.endswith("not ready\n")


async def test_gateway_without_the_environments_id_is_not_ready(world: World) -> None:
    world.answer(500, {})
    await world.start(BFF_ENVIRONMENT_ID=None, BFF_SIGNING_KEYS=ROOT_KEY)

    assert (await world.ops.get("/readyz")).status_code == 503
    assert "set BFF_ENVIRONMENT_ID" in await reason(world)


async def test_one_environment_that_can_be_decided_is_enough(world: World, tmp_path) -> None:
    file = tmp_path / "bff.toml"
    file.write_text(
        f'[[environments]]\nname = "two"\nTRIGGER_SECRET_KEY = "{ROOT_KEY}x"\n'
        f'BFF_SIGNING_KEYS = "{OWN_KEY}2"\n'
    )
    await world.start(BFF_CONFIG=str(file))

    response = await world.ops.get("/readyz")

    assert response.status_code == 200
    states = {n: e["ready"] for n, e in response.json()["environments"].items()}
    assert states == {"default": True, "two": False}


async def test_second_key_in_use_is_reported(world: World) -> None:
    next_key = "tr_dev_sk_NEXTsentinel0000000000001"
    world.upstream.environments[0].additional_keys = {next_key: ("read:sessions",)}
    await world.start(TRIGGER_SECRET_KEY=f"tr_dev_sk_OLDsentinel00000000001,{next_key}")

    text = await verbose(world)

    assert "[-] secret keys of default: number 2 is used: upstream rejected the first" in text
    assert "[+] upstream of default" in text


def test_watch_is_shorter_than_an_operator_waits() -> None:
    assert readiness.CHECK_SECONDS < readiness.TROUBLE_SECONDS < readiness.WATCH_SECONDS <= 60

"""What the operator is told: metrics equal to their documentation, and lines worth reading."""

import asyncio
import io
import json
import logging
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.world import OFF, OWN_KEY, PATH, Gateway, World, http, read, running_upstream

from bff.demo.upstream import Seen
from bff.errors import REFUSALS
from bff.gateway.answers import SAMPLE
from bff.telemetry import LINES_PER_SECOND, ServerLog, Telemetry

OPERATIONS = Path(__file__).parent.parent / "docs" / "OPERATIONS.md"


def test_why_upstream_fails_is_told_and_what_to_do_when_it_rejects_the_key(
    upstream: running_upstream,
) -> None:
    with Gateway(1) as gateway:  # nobody listens there
        http.get(gateway.ops_url + "/readyz")
    assert '"why": "Connection refused"' in gateway.output

    with Gateway(upstream.port, TRIGGER_SECRET_KEY="tr_dev_sk_WRONG") as gateway:
        http.get(gateway.ops_url + "/readyz")
    assert '"remedy": "check TRIGGER_SECRET_KEY' in gateway.output


def test_a_line_is_one_write_for_workers_share_the_stream() -> None:
    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    writes: list[str] = []
    Telemetry(Stream()).log.info("listening")

    (line,) = writes
    assert line.endswith("}\n")


def test_of_a_traceback_that_the_server_logs_only_its_kind_is_told() -> None:
    log = io.StringIO()
    handler = ServerLog(Telemetry(log))
    for message in (
        "Traceback (most recent call last):\n  File x\nValueError: what no log may hold\n",
        "one line: as it is",
    ):
        handler.emit(logging.LogRecord("uvicorn", logging.ERROR, "", 0, message, None, None))

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["ValueError", "one line: as it is"]


async def metrics(world: World) -> dict[str, float]:
    text = (await world.ops.get("/metrics")).text
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_documentation_names_every_error_code_and_no_other() -> None:
    section = OPERATIONS.read_text().partition("## Error codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", section, re.MULTILINE)

    assert rows == [(code, str(kind.status)) for code, kind in REFUSALS.items()]


def test_the_documentation_names_every_event_that_is_logged() -> None:
    section = OPERATIONS.read_text().partition("## Logs")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section)) - {"request_id", "worker"}
    sources = [path.read_text() for path in (OPERATIONS.parents[1] / "bff").rglob("*.py")]
    logged = r"(?:log\.(?:info|warning|error)|\.often|\.exception)\(\s*\"(\w+)\""

    found = {event for source in sources for event in re.findall(logged, source)}
    found |= {"slow_answer", "answer_sampled"}  # one of the two, by how long it took
    found |= {"server"}  # at the level that it comes with
    assert found == documented


async def test_histograms_are_cumulative_and_add_up(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(1.5)
    await world.get("chat-1")

    found = await metrics(world)

    served = {k: v for k, v in found.items() if k.startswith("bff_age_served_seconds")}
    assert served == {
        'bff_age_served_seconds_bucket{"le": "0.1"}': 1.0,
        'bff_age_served_seconds_bucket{"le": "1.0"}': 1.0,
        'bff_age_served_seconds_bucket{"le": "2.0"}': 2.0,
        'bff_age_served_seconds_bucket{"le": "5.0"}': 2.0,
        'bff_age_served_seconds_bucket{"le": "30.0"}': 2.0,
        'bff_age_served_seconds_bucket{"le": "60.0"}': 2.0,
        'bff_age_served_seconds_bucket{"le": "+Inf"}': 2.0,
        "bff_age_served_seconds_count{}": 2.0,
        "bff_age_served_seconds_sum{}": 1.5,
    }
    assert found["bff_load_seconds_count{}"] == 1.0


async def test_bad_tokens_are_counted_by_reason(world: World) -> None:
    expired = world.token(*read("chat-1"), exp=1)
    for token in ("", "bad", "tr_dev_abc", expired, expired):
        await world.browser.get(PATH + "chat-1", headers={"authorization": f"Bearer {token}"})
    await world.browser.get(PATH + "chat-1")

    found = await metrics(world)

    reasons = {k.split('"')[3]: v for k, v in found.items() if k.startswith("bff_bad_tokens")}
    assert reasons == {
        "token_missing": 2.0,
        "token_invalid": 1.0,
        "token_revoked": 0.0,
        "secret_key_sent": 1.0,
        "token_expired": 2.0,
    }


async def test_what_an_alert_waits_for_is_there_before_it_happens(world: World) -> None:
    """Of a series that begins with 1 Prometheus sees no increase, and the first one is the one."""
    found = await metrics(world)

    for sample in (
        'bff_bad_tokens_total{"reason": "secret_key_sent"}',
        'bff_loads_total{"outcome": "upstream_rejected_credentials"}',
        'bff_closed_connections_total{"reason": "too_many"}',
        'bff_limited_total{"limit": "address"}',
        'bff_reloads_total{"outcome": "failed"}',
    ):
        assert found[sample] == 0.0


async def test_the_process_itself_is_measured(world: World) -> None:
    assert (await metrics(world))["process_resident_memory_bytes{}"] > 1e6


# -- logs


def events(world: World, name: str) -> list[dict[str, object]]:
    return [line for line in world.logged() if line["event"] == name]


async def test_a_refusal_is_a_line_with_the_request_id_of_its_answer(world: World) -> None:
    response = await world.get("chat-1", "read:sessions:chat-2")

    (line,) = events(world, "request_refused")
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["level"], line["status"], line["code"]) == ("info", 403, "unauthorized")


async def test_our_own_and_upstreams_troubles_are_warnings(world: World) -> None:
    world.answer(500, {})
    await world.get("chat-1")

    (line,) = events(world, "request_refused")
    assert (line["level"], line["status"]) == ("warning", 502)


async def test_who_floods_fills_no_log(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="2/minute")
    for _ in range(50):
        await world.get("chat-1")

    assert len(events(world, "request_refused")) == 1
    assert (await metrics(world))['bff_limited_total{"limit": "caller"}'] == 48.0


async def test_of_the_hits_one_in_a_thousand_is_logged(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off")
    token = world.token(*read("chat-1"))
    for _ in range(SAMPLE + 5):
        await world.get("chat-1", token=token)

    (line,) = events(world, "answer_sampled")
    assert (line["result"], line["level"], line["of"]) == ("hit", "info", SAMPLE)
    assert token not in world.log.getvalue()


async def test_a_slow_answer_is_a_line_and_the_browser_learns_how_slow(world: World) -> None:
    async def slow(_: Seen) -> None:
        world.clock.advance(1.25)

    world.upstream.override = slow
    response = await world.get("chat-1")

    (line,) = events(world, "slow_answer")
    assert line["waited"] == 1.25
    assert line["request_id"] == response.headers["x-request-id"]
    assert response.headers["server-timing"] == "bff;dur=1250.0"
    assert "server-timing" not in (await world.get("chat-1")).headers


async def test_thousands_who_waited_for_one_slow_load_fill_no_log(world: World) -> None:
    await world.start(**OFF)

    async def slow(_: Seen) -> None:
        world.clock.advance(1.25)

    world.upstream.override = slow
    await asyncio.gather(*(world.get("chat-1") for _ in range(LINES_PER_SECOND + 30)))

    assert len(events(world, "slow_answer")) == LINES_PER_SECOND
    dropped = 'bff_log_lines_dropped_total{"event": "slow_answer"}'
    assert (await metrics(world))[dropped] == 30


async def test_a_slow_list_is_a_line_too(world: World) -> None:
    async def slow(_: Seen) -> None:
        world.clock.advance(1.25)

    world.upstream.override = slow
    headers = {"authorization": f"Bearer {world.token(*read('chat-1'))}"}
    response = await world.browser.get("/api/v1/sessions", headers=headers)

    (line,) = events(world, "slow_answer")
    assert (line["result"], line["request_id"]) == ("list", response.headers["x-request-id"])


async def test_a_key_that_is_rejected_is_an_error_once_and_then_counted(world: World) -> None:
    world.answer(401, {"error": "Invalid API key"})
    for _ in range(3):
        await world.get("chat-1")
    assert len(events(world, "upstream_rejects_our_key")) == 1
    assert events(world, "upstream_rejects_our_key")[0]["level"] == "error"
    rejected = 'bff_loads_total{"outcome": "upstream_rejected_credentials"}'
    assert (await metrics(world))[rejected] == 3.0

    world.answer(0)
    await world.get("chat-1")
    assert len(events(world, "upstream_recovered")) == 1


async def test_the_loops_lag_is_measured(world: World) -> None:
    task = asyncio.create_task(world.service._measure_lag())
    await asyncio.sleep(0)
    world.clock.advance(3.0)
    while not sum(world.telemetry.observed["bff_loop_lag_seconds"][1]):
        await asyncio.sleep(0.05)
    task.cancel()

    found = await metrics(world)
    assert found["bff_loop_lag_seconds_sum{}"] > 1.0


def test_nothing_counted_is_shown_as_zero_not_absent() -> None:
    assert b"bff_purges_total 0.0" in Telemetry().metrics()
    assert OWN_KEY.encode() not in Telemetry().metrics()

"""Telemetry: metrics in the Prometheus format, and log lines."""

import asyncio
import io
import json
import logging
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.world import OFF, OWN_KEY, PATH, Gateway, World, http, read, running_upstream

from bff.app import measure_lag
from bff.demo.upstream import Seen
from bff.errors import REFUSALS
from bff.gateway.answers import SAMPLE
from bff.metrics import LOG_LINES_DROPPED
from bff.telemetry import LINES_PER_SECOND, ServerLog, Telemetry

OPERATIONS = Path(__file__).parent.parent / "docs" / "OPERATIONS.md"


def test_log_says_why_upstream_fails_and_the_remedy(
    upstream: running_upstream,
) -> None:
    with Gateway(1) as gateway:  # no process listens on port 1
        http.get(gateway.ops_url + "/readyz?verbose")
    assert '"why": "Connection refused"' in gateway.output

    with Gateway(upstream.port, TRIGGER_SECRET_KEY="tr_dev_sk_WRONG") as gateway:
        http.get(gateway.ops_url + "/readyz?verbose")
    assert '"remedy": "check TRIGGER_SECRET_KEY' in gateway.output


def test_log_line_is_one_write() -> None:
    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    writes: list[str] = []
    Telemetry(Stream()).log.info("listening")

    (line,) = writes
    assert line.endswith("}\n")


def test_server_log_keeps_only_the_type_of_a_traceback() -> None:
    log = io.StringIO()
    handler = ServerLog(Telemetry(log))
    for message in (
        "Traceback (most recent call last):\n  File x\nValueError: a secret\n",
        "one line: as it is",
    ):
        handler.emit(logging.LogRecord("uvicorn", logging.ERROR, "", 0, message, None, None))

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["ValueError", "one line: as it is"]


def test_message_of_a_library_is_written_once_a_minute() -> None:
    log = io.StringIO()
    telemetry = Telemetry(log)
    handler = ServerLog(telemetry)
    for second in (0, 1, 30, 59, 61, 62):
        for name in ("opentelemetry.exporter", "uvicorn.error"):
            record = logging.LogRecord(name, logging.ERROR, "", 0, "failed %s", ("now",), None)
            record.relativeCreated = second * 1000.0
            handler.emit(record)
    for number in range(1000):
        handler.emit(logging.LogRecord("other", logging.ERROR, "", 0, str(number), None, None))

    messages = [json.loads(line)["message"] for line in log.getvalue().splitlines()]
    assert messages.count("opentelemetry.exporter: failed %s") == 2
    assert messages.count("failed now") == 6
    assert telemetry.counts[LOG_LINES_DROPPED, "server"] >= 4
    assert len(handler._written) <= 100


async def metrics(world: World) -> dict[str, float]:
    text = (await world.ops.get("/metrics")).text
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_documentation_lists_every_error_code() -> None:
    section = OPERATIONS.read_text().partition("## Error codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", section, re.MULTILINE)

    assert rows == [(code, str(kind.status)) for code, kind in REFUSALS.items()]


def test_documentation_lists_every_log_event() -> None:
    section = OPERATIONS.read_text().partition("## Logs")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section)) - {"request_id", "worker"}
    sources = [path.read_text() for path in (OPERATIONS.parents[1] / "bff").rglob("*.py")]
    call = (
        r"(?:log\.(?:info|warning|error)\(|\.often\(|\.exception\(|log\.log\(\s*level,)\s*\"(\w+)\""
    )

    logged = {event for source in sources for event in re.findall(call, source)}
    logged |= {"slow_answer", "answer_sampled", "server"}  # their names or levels are computed
    assert logged == documented


async def test_histogram_buckets_are_cumulative(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(1.5)
    await world.get("chat-1")

    samples = await metrics(world)

    served = {k: v for k, v in samples.items() if k.startswith("bff_age_served_seconds")}
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
    assert samples["bff_load_seconds_count{}"] == 1.0


async def test_bad_tokens_are_counted_by_reason(world: World) -> None:
    expired = world.token(*read("chat-1"), exp=1)
    for token in ("", "bad", "tr_dev_abc", expired, expired):
        await world.browser.get(PATH + "chat-1", headers={"authorization": f"Bearer {token}"})
    await world.browser.get(PATH + "chat-1")

    samples = await metrics(world)

    reasons = {k.split('"')[3]: v for k, v in samples.items() if k.startswith("bff_bad_tokens")}
    assert reasons == {
        "token_missing": 2.0,
        "token_invalid": 1.0,
        "token_revoked": 0.0,
        "secret_key_sent": 1.0,
        "token_expired": 2.0,
    }


async def test_counters_of_alerts_start_at_zero(world: World) -> None:
    """Prometheus sees no increase in a counter whose first sample is 1."""
    samples = await metrics(world)

    for sample in (
        'bff_bad_tokens_total{"reason": "secret_key_sent"}',
        'bff_loads_total{"environment": "default", "outcome": "upstream_rejected_credentials"}',
        'bff_closed_connections_total{"reason": "too_many"}',
        'bff_limited_total{"limit": "address"}',
        'bff_reloads_total{"outcome": "failed"}',
    ):
        assert samples[sample] == 0.0


async def test_metrics_of_the_process_are_exported(world: World) -> None:
    assert (await metrics(world))["process_resident_memory_bytes{}"] > 1e6


# -- logs


def events(world: World, name: str) -> list[dict[str, object]]:
    return [line for line in world.logged() if line["event"] == name]


async def test_refusal_is_logged_with_its_request_id(world: World) -> None:
    response = await world.get("chat-1", "read:sessions:chat-2")

    (line,) = events(world, "request_refused")
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["level"], line["status"], line["code"]) == ("info", 403, "unauthorized")


async def test_server_errors_are_warnings(world: World) -> None:
    world.answer(500, {})
    await world.get("chat-1")

    (line,) = events(world, "request_refused")
    assert (line["level"], line["status"]) == ("warning", 502)


async def test_one_refusal_of_a_limited_caller_is_logged(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="2/minute")
    for _ in range(50):
        await world.get("chat-1")

    assert len(events(world, "request_refused")) == 1
    assert (await metrics(world))['bff_limited_total{"limit": "caller"}'] == 48.0


async def test_one_hit_in_a_thousand_is_logged(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off")
    token = world.token(*read("chat-1"))
    for _ in range(SAMPLE + 5):
        await world.get("chat-1", token=token)

    (line,) = events(world, "answer_sampled")
    assert (line["result"], line["level"], line["answers"]) == ("hit", "info", SAMPLE)
    assert token not in world.log.getvalue()


async def test_slow_answer_is_logged_and_has_server_timing(world: World) -> None:
    async def slow(_: Seen) -> None:
        world.clock.advance(1.25)

    world.upstream.override = slow
    response = await world.get("chat-1")

    (line,) = events(world, "slow_answer")
    assert line["waited"] == 1.25
    assert line["request_id"] == response.headers["x-request-id"]
    assert response.headers["server-timing"] == "bff;dur=1250.0"
    assert "server-timing" not in (await world.get("chat-1")).headers


async def test_lines_of_one_event_are_bounded_per_second(world: World) -> None:
    await world.start(**OFF)

    async def slow(_: Seen) -> None:
        world.clock.advance(1.25)

    world.upstream.override = slow
    await asyncio.gather(*(world.get("chat-1") for _ in range(LINES_PER_SECOND + 30)))

    assert len(events(world, "slow_answer")) == LINES_PER_SECOND
    dropped = 'bff_log_lines_dropped_total{"event": "slow_answer"}'
    assert (await metrics(world))[dropped] == 30


async def test_slow_list_is_logged(world: World) -> None:
    async def slow(_: Seen) -> None:
        world.clock.advance(1.25)

    world.upstream.override = slow
    headers = {"authorization": f"Bearer {world.token(*read('chat-1'))}"}
    response = await world.browser.get("/api/v1/sessions", headers=headers)

    (line,) = events(world, "slow_answer")
    assert (line["result"], line["request_id"]) == ("list", response.headers["x-request-id"])


async def test_rejected_key_is_logged_once_and_counted(world: World) -> None:
    world.answer(401, {"error": "Invalid API key"})
    for _ in range(3):
        await world.get("chat-1")
    assert len(events(world, "upstream_rejects_our_key")) == 1
    assert events(world, "upstream_rejects_our_key")[0]["level"] == "error"
    rejected = (
        'bff_loads_total{"environment": "default", "outcome": "upstream_rejected_credentials"}'
    )
    assert (await metrics(world))[rejected] == 3.0

    world.answer(0)
    await world.get("chat-1")
    assert len(events(world, "upstream_recovered")) == 1


async def test_loop_lag_is_observed(world: World) -> None:
    task = asyncio.create_task(measure_lag(world.telemetry, world.clock, lambda: None))
    await asyncio.sleep(0)
    world.clock.advance(3.0)
    while not sum(world.telemetry.observed["bff_loop_lag_seconds"][1]):
        await asyncio.sleep(0.05)
    task.cancel()

    samples = await metrics(world)
    assert samples["bff_loop_lag_seconds_sum{}"] > 1.0


def test_counters_without_labels_start_at_zero() -> None:
    assert b"bff_purges_total 0.0" in Telemetry(io.StringIO()).metrics()
    assert OWN_KEY.encode() not in Telemetry(io.StringIO()).metrics()

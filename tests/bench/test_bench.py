"""The benchmark runs, and its figures are complete. No test depends on a timing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chart
import inside
import listeners
import load
import streams

BENCH = Path(__file__).parent


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed: apt-get install wrk")
def test_benchmark_runs_briefly() -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH), "--seconds", "1", "--rounds", "1", "--workload", "hits"),
            *("--sessions", "10", "--callers", "3", "--only", "bff", "--only", "bff, Valkey"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("bff", "bff, Valkey"):
        assert f"| hits | {name} |" in done.stdout


def test_chat_streams_are_measured_briefly() -> None:
    load = ("--busy", "3", "--quiet", "3", "--seconds", "0.2", "--rounds", "1")
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH), "--workload", "streams", *load),
            *("--only", "bff", "--only", "bare loop"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| bff |" in done.stdout
    assert "| bare loop |" in done.stdout


def test_table_and_drawing_of_chat_streams_have_all_servers() -> None:
    row = {"cpu": 40.0, "rate": 2000.0, "first": 1.5, "first99": 4.0, "kib": 9.0}
    rows = {"bff": row | {"hits": 0.85}, "nginx": row | {"cpu": 20.0}}

    table, drawn = "\n".join(streams.table(rows)), chart.stream_svg(rows)

    assert "| bff | 40.0 | 2,000 | 1.5 | 4.0 | 9.0 | 85% |" in table
    assert table.index("| nginx | 20.0") < table.index("| bff |")
    assert drawn.count(">nginx<") == 2, "it answers no hits"
    assert drawn.count(">bff<") == 3


async def test_listeners_are_measured_briefly() -> None:
    measured = await listeners.measure(60, quiet=0.1)

    assert measured.kib < 60, "a listener needs no task; few of them also pay for what all share"
    assert measured.spread > 0


def test_load_is_measured_beside_the_bare_call() -> None:
    took = load.measure(rounds=1, row=1000)
    assert {"bare client call", "load"} < set(took)
    assert {one.partition(",")[0] for one in took} == {"bare client call", "load"}
    assert all(times["least"] > 0 for times in took.values())
    assert "| load |" in "\n".join(load.table(took))


def test_each_kind_of_answer_is_measured() -> None:
    took = inside.measure(rounds=1)
    assert len(took) > 8, "each run asserts the status that it measures"
    assert all(one > 0 for one in took.values())
    assert "| a 304 |" in "\n".join(inside.table(took))


def test_memory_does_not_grow_under_a_flood_of_hits() -> None:
    numbers = ["--copies", "500", "--tokens", "200", "--connections", "50"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "memory.py"), *numbers, "--requests", "100000"],
        capture_output=True,
        text=True,
        check=True,
    )
    for what in ("copy", "verified token", "idle connection"):
        assert what in done.stdout
    growth = re.search(r"decisions: ([+-][\d,]+) KiB", done.stdout)
    assert growth
    assert int(growth[1].replace(",", "")) < 4096, "100,000 decisions that kept 42 bytes each"

"""Log lines reach their reader, or are counted; the writer never waits."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.world import until

from bff.log_writer import LogWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = LogWriter(writer)
    for number in range(100):
        log.write(f"line {number}\n")
    log.close()

    assert os.read(reader, 65536).decode().splitlines() == [f"line {n}" for n in range(100)]
    assert log.lost == {"full": 0, "failed": 0}


def test_lines_beyond_the_queue_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, bytes(65536))  # all that a pipe holds
    log = LogWriter(writer, max_bytes=10_000)
    for _ in range(200):
        log.write("x" * 999 + "\n")
    began = time.monotonic()
    log.close(timeout=0.1)
    assert time.monotonic() - began < 20
    assert log.lost == {"full": 190, "failed": 0}

    received = 0
    while received < 65536 + 10_000:
        received += len(os.read(reader, 65536))
    log.write("after\n")
    assert os.read(reader, 65536) == b"after\n"


def test_lines_without_a_reader_are_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    log = LogWriter(writer)
    log.write("one\n")
    log.write("two\n")
    log.close()

    assert log.lost == {"full": 0, "failed": 2}


def test_lines_are_written_again_when_the_disk_has_space() -> None:
    """A line that was written in part does not run into the next."""
    reader, writer = os.pipe()
    log = LogWriter(writer)
    written: list[bytes] = []
    results: Iterator[int | OSError] = iter([3, OSError(28, "no space"), 0, 0])

    def write(_: int, data: memoryview) -> int:
        result = next(results)
        if isinstance(result, OSError):
            raise result
        size = result or len(data)
        written.append(bytes(data[:size]))
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bff.log_writer.os.write", write)
        assert not log._write(b"first\n")
        assert log._write(b"second\n")
    assert b"".join(written) == b"fir\nsecond\n"
    os.close(reader)
    os.close(writer)


def test_descriptor_that_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = LogWriter(writer)
    for _ in range(100):
        log.write("x" * 999 + "\n")
    received = 0
    while received < 100_000:
        received += len(os.read(reader, 65536))

    assert log.lost == {"full": 0, "failed": 0}


FORK = """
import os, sys
from bff.log_writer import LogWriter
log = LogWriter(1)
log.write("parent\\n")
if os.fork() == 0:
    log.write("child\\n")
    sys.exit(0)
os.wait()
"""


def test_child_of_a_fork_writes_its_own_lines() -> None:
    """The end of each process waits for its lines."""
    run = subprocess.run([sys.executable, "-c", FORK], stdout=subprocess.PIPE, check=True)

    assert sorted(run.stdout.decode().splitlines()) == ["child", "parent"]


def test_thread_that_ended_is_started_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    reader, writer = pipe
    log = LogWriter(writer)
    write, log._write = log._write, lambda _: bool(1 / 0)
    log.write("lost\n")
    until(lambda: log._thread is not None and not log._thread.is_alive())
    log._write = write
    log.write("kept\n")

    assert os.read(reader, 100) == b"kept\n"
    log.close()
    assert (log._bytes, log.lost) == (0, {"full": 0, "failed": 1})

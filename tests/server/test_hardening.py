"""`harden` hides the memory of the process, and raises its limit of open files."""

import json
import subprocess
import sys
import threading
from unittest import mock

import pytest
from support.world import KEPT, PATIENCE, environ

from bff.commands import check_limits
from bff.server import hardening
from bff.server.hardening import least_files

SHOW = """
import ctypes, json, resource
from bff.server.hardening import harden

harden()
limits = [resource.getrlimit(n) for n in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
print(json.dumps([ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *limits]))  # PR_GET_DUMPABLE
"""


def test_harden_hides_memory_and_raises_the_limit_of_files() -> None:
    run = subprocess.run([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, check=True)

    dumpable, core, (soft, hard) = json.loads(run.stdout)
    assert dumpable == 0
    assert core == [0, 0]
    assert soft == hard


@pytest.mark.parametrize("workers", [1, 4])
def test_start_is_refused_with_too_few_files(workers: int) -> None:
    """The workers would end and start for ever."""
    serve = [sys.executable, "-m", "bff", "serve", "--workers", str(workers)]
    files = least_files(workers) - 1
    done = subprocess.run(
        ["bash", "-c", f'ulimit -n {files}; exec "$@"', "-", *serve],
        env=KEPT | environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert f"The limit of open files is {files}" in done.stderr
    assert f"--workers {workers} needs at least {files + 1}" in done.stderr


def test_start_is_refused_with_too_few_threads(capsys: pytest.CaptureFixture[str]) -> None:
    """libuv would abort at the first name that it looks up."""
    allowed = hardening.least_threads(2) - 1
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        started.append(thread)
        if sum(one.is_alive() for one in started) >= allowed:
            raise RuntimeError("can't start new thread")
        start(thread)

    with mock.patch.object(threading.Thread, "start", limited):
        check_limits(1)
        with pytest.raises(SystemExit):
            check_limits(2)

    assert "--workers 2 needs 14 threads" in capsys.readouterr().err
    assert not any(thread.is_alive() for thread in started)

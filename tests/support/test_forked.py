"""Forked processes differ from `python -m bff` in nothing that tests of a gateway look at."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from support.forked import Forked
from support.world import KEPT, environ, until

import bff


def ended(process: Forked) -> tuple[int, str]:
    with process.stdout as output:
        return process.wait(60), output.read()


def test_process_has_its_own_arguments_and_environment() -> None:
    assert ended(Forked(["--version"], KEPT)) == (0, f"bff, version {bff.__version__}\n")

    code, output = ended(Forked(["check"], KEPT | environ(BFF_PORT="sentinel")))
    assert code == 2
    assert "BFF_PORT" in output

    code, output = ended(Forked(["check"], KEPT | environ()))
    assert code == 0, output


def test_processes_of_threads_are_not_mixed_up() -> None:
    def check(number: int) -> None:
        code, output = ended(Forked(["check"], KEPT | environ(BFF_CACHE_TTL=f"{number}.5")))
        assert code == 0
        assert f"{number}.5" in output

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, range(10, 18)))


def test_signal_ends_a_process_and_is_its_code() -> None:
    process = Forked(["demo", "--upstream-only", "--port", "0"], KEPT)
    with process.stdout as output:
        assert output.readline()
        assert process.poll() is None
        process.kill()
        until(lambda: process.poll() == -signal.SIGKILL)
    process.terminate()  # the process has ended: this does nothing


KILLED = """
import os, resource
from support.forked import Forked
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # more than `select` takes
process = Forked(["demo", "--upstream-only", "--port", "0"], dict(os.environ))
assert process.stdout.readline()
print(process.pid, flush=True)
os._exit(1)
"""


def test_process_ends_when_its_tests_are_killed() -> None:
    """As when a test hangs, and the process of the tests is ended."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        env=KEPT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=False,
    )
    pid = int(killed.stdout)

    until(lambda: not exists(pid))


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

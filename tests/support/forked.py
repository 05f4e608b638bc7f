"""Processes of `bff`, forked from one that has imported the code.

Hundreds of tests start a gateway, and the imports are half of the CPU time of a start. Each test
process has one such parent. It ends with the test process, and ends what that has left running. A
child differs from `python -m bff` in what `/proc` shows as its command and first environment; a
test of these starts `Executed`.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import IO

_LONGEST = 1 << 18
"""Bytes of a request, at most: the arguments and the environment of one process."""
_asking = threading.Lock()
"""Held from a request to its answer: threads may start gateways at the same time."""


class Forked:
    """Behaves as `subprocess.Popen` does, for a process that another one forked."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        read, written = os.pipe()
        ended, report = os.pipe()
        self.returncode: int | None = None
        self.stdout: IO[str] = os.fdopen(read, encoding="utf-8")
        self._ended = os.fdopen(ended, "rb", buffering=0)
        request = [arguments, environment, str(Path.cwd())]
        with _asking:
            parent = _parent()
            socket.send_fds(parent, [json.dumps(request).encode()], [written, report])
            answer = parent.recv(16)
        assert answer, "the process that forks has ended"
        self.pid = int(answer)
        os.close(written)
        os.close(report)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ended = select.poll()  # a test may have more files than `select` takes
            ended.register(self._ended, select.POLLIN)
            if not ended.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired("bff", timeout or 0)
            self.returncode = int(self._ended.read())
            self._ended.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _parent() -> socket.socket:
    """Start the process that forks; its socket takes requests."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE_")}
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its.fileno())],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1]), **kept},
            pass_fds=[its.fileno()],
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _fork_on_request(requests: socket.socket) -> list[str]:
    """Fork for each request, and report each end; in a child, return its arguments."""
    ends: dict[int, tuple[int, int]] = {}
    events = select.poll()  # the test process may have had more files than `select` takes
    events.register(requests, select.POLLIN)
    arguments: list[str]
    while True:
        for file, _ in events.poll():
            if file in ends:
                events.unregister(file)
                pid, report = ends.pop(file)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # the test does not wait for it
                    os.write(report, str(code).encode())
                os.close(report)
                os.close(file)
                continue
            data, files, *_ = socket.recv_fds(requests, _LONGEST, 2)
            if not data:  # the tests have ended, or their process was killed
                for end, (pid, _) in ends.items():
                    signal.pidfd_send_signal(end, signal.SIGKILL)
                    os.waitpid(pid, 0)
                sys.exit()
            output, report = files
            arguments, environment, folder = json.loads(data)
            if pid := os.fork():
                os.close(output)
                end = os.pidfd_open(pid)
                ends[end] = pid, report
                events.register(end, select.POLLIN)
                requests.send(str(pid).encode())
                continue
            requests.close()
            for inherited in (report, *ends, *(report for _, report in ends.values())):
                os.close(inherited)
            for standard in (1, 2):
                os.dup2(output, standard)
            os.close(output)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            return arguments


if __name__ == "__main__":
    importlib.import_module("bff.cli")
    sys.argv[1:] = _fork_on_request(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("bff", run_name="__main__", alter_sys=True)

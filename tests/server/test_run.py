"""The process: sockets that systemd opened outlive it."""

import json
import os
import socket
import subprocess
import sys

from support.world import KEPT, environ, http

# What systemd does: sockets at 3 and 4, and the process's own id in LISTEN_PID.
ACTIVATE = """
import os, sys
for fd, target in ((int(sys.argv[1]), 3), (int(sys.argv[2]), 4)):
    os.dup2(fd, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="browser:ops")
os.execv(sys.executable, [sys.executable, "-m", "bff", "serve"])
"""


def started(*sockets: socket.socket) -> subprocess.Popen[str]:
    # Away from 3 and 4 first, or one would be put over the other.
    numbers = [os.dup2(sock.fileno(), 20 + n) for n, sock in enumerate(sockets)]
    process = subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, *map(str, numbers)],
        env=KEPT | environ(),
        pass_fds=numbers,
        stdout=subprocess.PIPE,
        text=True,
    )
    for number in numbers:
        os.close(number)
    return process


def test_a_restart_behind_an_inherited_socket_refuses_nobody() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as browser,
        socket.create_server(("127.0.0.1", 0)) as ops,
    ):
        url = f"http://127.0.0.1:{browser.getsockname()[1]}/healthz"
        for _ in range(2):
            process = started(browser, ops)
            # Asked at once: the socket is open, so this waits for the process instead of failing.
            assert http.get(url, timeout=20).status_code == 200
            address = f"http://127.0.0.1:{ops.getsockname()[1]}"
            assert "bff_requests" in http.get(address + "/metrics").text
            process.terminate()
            output, _ = process.communicate(timeout=20)
            listening = json.loads(output.splitlines()[0])
            assert listening["browser"].endswith(str(browser.getsockname()[1]))


def test_sockets_meant_for_another_process_are_not_taken() -> None:
    from bff.server import run  # noqa: PLC0415

    assert run.inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "ops"}) == {}

"""``bff demo`` as a process, however it is started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def running_demo(*command: str | Path, cwd: Path, environ: dict[str, str]) -> Iterator[str]:
    """Run *command*, which runs a demo; yield what it prints, and end it with Ctrl-C."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        yield printed_by(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            # A terminal sends the signal to the whole group, which make, uvx and bff form.
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            process.stdout.close()


def printed_by(process: subprocess.Popen[str]) -> str:
    """Wait until a demo serves; return what it printed."""
    assert process.stdout is not None
    printed = ""
    while "Ctrl-C" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    return printed

"""A command of `bff` in this process: a process of its own takes a second of CPU to start."""

import os
import subprocess
from unittest import mock

from click.testing import CliRunner
from support.world import KEPT

from bff.cli import main


def bff(
    *arguments: str, environ: dict[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends soon, with these variables alone."""
    with mock.patch.dict(os.environ, KEPT | environ, clear=True):
        done = CliRunner().invoke(main, arguments, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

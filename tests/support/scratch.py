"""Copies of the code for programs that change it: `make faults` and `make mutants`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules", "soak", "bench")


def copy_code(directory: Path) -> None:
    """Copy the code, its tests and the documentation that they read to *directory*."""
    for name in ("bff", "tests", "docs"):
        shutil.copytree(ROOT / name, directory / name, ignore=_LEFT_OUT)
    shutil.copy(ROOT / "pyproject.toml", directory)


def run_tests(
    copy: Path, *tests: str, timeout: float, python: str = sys.executable
) -> "subprocess.CompletedProcess[str] | None":
    """Run *tests* of a copy up to the first that fails; return None after *timeout* seconds."""
    # Python looks for modules in the copy before the installed package, and so do the gateways
    # that tests start there.
    try:
        return subprocess.run(
            [python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env=os.environ | {"EXAMPLES": "120"},  # generated tests in their long form
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None

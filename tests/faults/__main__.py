"""Takes out each protection in turn, in a copy of the code, and sees its test fail.

    python tests/faults [INCIDENT]...

Prints a line for each fault; ends with 1 if a test passed though its protection was gone.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from table import FAULTS, Fault

ROOT = Path(__file__).parent.parent.parent
SECONDS = 120


def main(incidents: list[str]) -> int:
    chosen = [f for f in FAULTS if not incidents or str(f.incident) in incidents]
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fault, verdict in zip(chosen, pool.map(_try, chosen), strict=True):
            where = f"{fault.file}: {fault.test.rpartition('/')[2]}"
            print(f"{fault.incident:3} {verdict:40} {where}", flush=True)
            failed += "caught" in verdict
    print(f"{failed} of {len(chosen)} faults were caught.")
    return 0 if failed == len(chosen) else 1


def _try(fault: Fault) -> str:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        ignore = shutil.ignore_patterns("__pycache__", "node_modules")
        for name in ("bff", "tests", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / fault.file
        text = file.read_text()
        if text.count(fault.old) != 1:
            return "NOT APPLICABLE: its line has changed"
        file.write_text(text.replace(fault.old, fault.new))
        # The copy stands before the installed package: `python -m` looks in its directory first,
        # and so do the gateways that tests start from there.
        try:
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", fault.test],
                cwd=copy,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "caught: the test did not end"
    if run.returncode == 0:
        return "MISSED: the test passed"
    reason = re.search(r"^E +(\w*(?:Error|Failed|Exception)?)\b", run.stdout, re.MULTILINE)
    if run.returncode != 1 or "no tests ran" in run.stdout:
        return f"BROKEN: {run.stdout.strip().splitlines()[-1][:60]}"
    return f"caught: {reason[1] if reason and reason[1] else 'failed'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

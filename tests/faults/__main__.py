"""Removes each protection in turn, in a copy of the code, and expects its test to fail.

    python tests/faults [INCIDENT]...

Prints a line for each fault when its test has ended. Exits with 1 if a test passed without its
protection, and lists those tests. `JOBS` sets how many run at a time; the default is one a core.
"""

import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.scratch import copy_code, run_tests
from table import FAULTS, Fault

SECONDS = 240


def main(incidents: list[str]) -> int:
    chosen = [f for f in FAULTS if not incidents or str(f.incident) in incidents]
    began, missed = time.monotonic(), []
    jobs = int(os.environ.get("JOBS", "0")) or os.cpu_count()
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_try, fault): fault for fault in chosen}
        for number, done in enumerate(as_completed(running), start=1):
            fault, outcome = running[done], done.result()
            line = f"{fault.incident:3} {outcome:32} {fault.file}: {fault.test.rpartition('/')[2]}"
            print(f"{number:3}/{len(chosen)} {line}", flush=True)
            if not outcome.startswith("caught"):
                missed.append(line)
    seconds = time.monotonic() - began
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults were caught in {seconds:.0f} s.")
    if missed:
        print("Not caught:", *missed, sep="\n")
    return 1 if missed else 0


def _try(fault: Fault) -> str:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        copy_code(copy)
        file = copy / fault.file
        text = file.read_text()
        if text.count(fault.old) != 1:
            return "NOT APPLICABLE: its line has changed"
        file.write_text(text.replace(fault.old, fault.new))
        run = run_tests(copy, fault.test, timeout=SECONDS)
    if run is None:
        return "TOO SLOW: no verdict"
    if run.returncode == 0:
        return "MISSED: the test passed"
    reason = re.search(r"^E +(\w*(?:Error|Failed|Exception)?)\b", run.stdout, re.MULTILINE)
    if run.returncode != 1 or "no tests ran" in run.stdout:
        last = (run.stdout.strip() or f"status {run.returncode}").splitlines()[-1]
        return f"BROKEN: {last[:60]}"
    return f"caught: {reason[1] if reason and reason[1] else 'failed'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

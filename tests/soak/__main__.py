"""Lets everything around the gateway fail, and prints which promises held.

    python tests/soak [SECONDS [calm]]
    python tests/soak faults [WORD]

The second form plants a fault for each promise in a copy of the code, and shows that a short run
notices it. `calm` lets nothing else fail.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[0] = str(HERE.parent)

from soak import weather as soak  # noqa: E402
from soak.planted import PLANTED, Planted  # noqa: E402


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["faults"]:
        return faults("".join(arguments[1:]))
    findings = soak.run(float(arguments[0]) if arguments else 300.0, calm="calm" in arguments)
    print(findings.lines())
    for promise in findings.broken():
        print("BROKEN:", promise)
    return 1 if findings.broken() else 0


def faults(word: str) -> int:
    missed = 0
    for planted in [planted for planted in PLANTED if word in planted.promise]:
        noticed = _noticed(planted)
        missed += planted.promise not in noticed
        print(f"{'missed' if planted.promise not in noticed else 'noticed':8} {planted.promise}")
        print(f"         (all that was: {noticed})", flush=True)
    return 1 if missed else 0


def _noticed(planted: Planted) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        ignore = shutil.ignore_patterns("__pycache__", "node_modules")
        for name in ("bff", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        file = copy / planted.file
        text = file.read_text()
        assert text.count(planted.old) == 1, planted
        file.write_text(text.replace(planted.old, planted.new))
        run = subprocess.run(
            [sys.executable, "tests/soak", str(planted.seconds), *["calm"] * planted.calm],
            cwd=copy,
            env={"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = run.stdout.splitlines()
        findings = [line.removeprefix("BROKEN: ") for line in lines if line.startswith("BROKEN: ")]
        return findings or [run.stderr.strip().rpartition("\n")[2]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

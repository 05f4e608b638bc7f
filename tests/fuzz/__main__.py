"""Runs each target for SECONDS with bytes that a coverage-guided fuzzer chooses.

    python tests/fuzz [SECONDS [TARGET]...]

Prints the fuzzer's progress. Exits with 1 at the first input that breaks a promise, and saves that
input below `build/fuzz/`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
FOUND = HERE.parent.parent / "build/fuzz"


def main(arguments: list[str]) -> int:
    if os.environ.get("FUZZ_TARGET"):
        one(os.environ["FUZZ_TARGET"], arguments)
    from targets import SEEDS, TARGETS  # noqa: PLC0415  instrumented, in the process of a target

    seconds, *names = arguments or ["60"]
    FOUND.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names or TARGETS:
        print(f"== {name}, {seconds} s", flush=True)
        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(SEEDS[name]):
                (Path(corpus) / str(number)).write_bytes(seed)
            run = subprocess.run(
                [
                    sys.executable,
                    str(HERE),
                    f"-max_total_time={seconds}",
                    "-max_len=4096",
                    "-print_final_stats=1",
                    f"-artifact_prefix={FOUND}/{name}-",
                    corpus,
                ],
                env=os.environ | {"FUZZ_TARGET": name},
                check=False,
            )
        failed += [name] * (run.returncode != 0)
    print(f"Failed: {', '.join(failed)}" if failed else "Everything held.")
    return 1 if failed else 0


def one(name: str, arguments: list[str]) -> None:
    import atheris  # noqa: PLC0415  only this command needs it: a set of packages of its own

    with atheris.instrument_imports(include=["bff"]):
        from targets import TARGETS  # noqa: PLC0415

        target = TARGETS[name]()
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

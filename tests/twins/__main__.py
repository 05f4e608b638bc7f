"""Lives through histories of twin worlds, and prints what observers could see.

    python tests/twins [HISTORIES]
    SEED=17 python tests/twins

The first form prints its progress, the first seed of each kind of difference, and at the end one
shortened history for each kind. The second form shows one history with all its steps. `JOBS` sets
how many processes run; the default is one a core. Exits with 1 if an observer could see a
difference, or if the histories did not have every pair of settings.
"""

import os
import sys
import time
from multiprocessing import Pool
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from twins import combinations  # noqa: E402
from twins.compare import differences, shorten  # noqa: E402
from twins.history import history  # noqa: E402

_EVERY = 5.0
"""Seconds between two lines about the progress."""
_SHOWN = 3
"""Seeds that are listed for each kind of difference."""


def main(arguments: list[str]) -> int:
    if seed := os.environ.get("SEED"):
        return show(int(seed))
    number = int(arguments[0]) if arguments else 1000
    found: dict[str, list[int]] = {}
    failed = 0
    began = printed = time.monotonic()
    with Pool(int(os.environ.get("JOBS", "0")) or None) as pool:
        for done, (seed_, kinds) in enumerate(pool.imap_unordered(_run, range(number), 4), start=1):
            failed += bool(kinds)
            for kind in kinds:
                if kind not in found:
                    print(f"SEED={seed_}: {kind}", flush=True)
                found.setdefault(kind, []).append(seed_)
            if time.monotonic() - printed >= _EVERY or done == number:
                printed = time.monotonic()
                print(
                    f"{done:6} of {number} histories, {failed} with a difference, "
                    f"{len(found)} kinds, {printed - began:.0f} s",
                    flush=True,
                )
    for kind, seeds in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(seeds)} x {kind}: SEED={', '.join(map(str, sorted(seeds)[:_SHOWN]))}")
        _print_shortened(min(seeds), kind)
    missing = combinations.all_pairs().difference(
        *(combinations.pairs(history(seed_).combination) for seed_ in range(number))
    )
    pairs = len(combinations.all_pairs())
    print(f"\n{pairs - len(missing)} of {pairs} pairs of settings occurred.")
    print("Observers saw a difference." if found else "No observer saw a difference.")
    return 1 if found or missing else 0


def show(seed: int) -> int:
    """Print one history, and its shortened form if the worlds differ."""
    whole = history(seed)
    print(*whole.lines(), sep="\n")
    found = differences(whole)
    for one in found:
        print(f"\n{one.kind}\n    {one.text}\n\nShortened:")
        _print_shortened(seed, one.kind)
    if not found:
        print("No observer sees a difference.")
    return 1 if found else 0


def _run(seed: int) -> tuple[int, list[str]]:
    try:
        return seed, [found.kind for found in differences(history(seed))]
    except Exception as exc:
        raise RuntimeError(f"SEED={seed}") from exc


def _print_shortened(seed: int, kind: str) -> None:
    short = shorten(history(seed), kind)
    print(*short.lines(), sep="\n")
    for found in differences(short):
        if found.kind == kind:
            print(f"  → {found.text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

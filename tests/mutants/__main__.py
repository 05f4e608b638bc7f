"""Changes one operator or number of the core at a time, and prints the changes no test notices.

    make mutants SAMPLE=20 SEED=1

cosmic-ray makes the mutants: it is maintained, and it changes the text, so that constants and
decorated functions have mutants too (mutmut wraps functions, and leaves both out).
The tests of the mutant's own package run first, then those of the whole core. Ends with 1 if a
mutant survives: write the test that fails with it, unless the change makes no difference.
"""

import argparse
import difflib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

sys.path.append(str(Path(__file__).parents[1]))
from support.scratch import ROOT, copy_code, run_tests

CORE = ("gateway", "tokens", "sessions", "copies", "limits", "replicas", "upstream")
TESTS = [*CORE, "config", "incidents", "properties", "ops", "server"]
SECONDS = 900
"""Bound on one run of tests; a mutant that makes them hang is noticed."""

# One change for each kind of place: others of the same place are noticed by the same tests.
OPERATORS = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul")),
    *("ReplaceBinaryOperator_FloorDiv_Mul", "ReplaceBinaryOperator_Mod_Mul"),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_Gt", "Gt_Lt", "LtE_GtE", "GtE_LtE")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_LtE", "Eq_GtE", "Is_IsNot", "IsNot_Is")),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not", "AddNot"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    *("NumberReplacer", "ExceptionReplacer"),
]


@dataclass(frozen=True)
class Mutant:
    file: str
    operator: str
    occurrence: int

    def text(self) -> str:
        source = (ROOT / self.file).read_text()
        mutated: str = mutate_code(source, _operator(self.operator), self.occurrence)
        return mutated

    def diff(self) -> str:
        lines = (ROOT / self.file).read_text().splitlines(), self.text().splitlines()
        return "\n".join(list(difflib.unified_diff(*lines, self.file, n=1, lineterm=""))[2:])


def _operator(name: str):
    return get_operator(f"core/{name}")()


def mutants(file: str) -> Iterator[Mutant]:
    """Yield every mutant of *file*."""
    nodes = list(ast_nodes(get_ast((ROOT / file).read_text())))
    for name in OPERATORS:
        operator = _operator(name)
        places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        yield from (Mutant(file, name, occurrence) for occurrence in range(places))


def survives(mutant: Mutant, python: str) -> bool:
    """Whether every test of the core passes with *mutant*."""
    package = Path(mutant.file).parts[1]
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        copy_code(copy)
        (copy / mutant.file).write_text(mutant.text())
        for tests in ([package], [name for name in TESTS if name != package]):
            run = run_tests(copy, *(f"tests/{n}" for n in tests), timeout=SECONDS, python=python)
            if run is None or run.returncode:
                return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=20, help="number of mutants")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--python", default=sys.executable, help="runs the tests")
    parser.add_argument("files", nargs="*", help="as bff/tokens/jwks.py; default: the core")
    options = parser.parse_args()
    files = options.files or [
        str(path.relative_to(ROOT))
        for package in CORE
        for path in sorted((ROOT / "bff" / package).glob("*.py"))
    ]
    everything = [mutant for file in files for mutant in mutants(file)]
    chosen = random.Random(options.seed).sample(everything, min(options.sample, len(everything)))
    print(f"{len(chosen)} of {len(everything)} mutants; again with SEED={options.seed}", flush=True)

    began, survivors = time.monotonic(), []
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "0")) or os.cpu_count()) as pool:
        outcomes = pool.map(lambda mutant: survives(mutant, options.python), chosen)
        for number, (mutant, survived) in enumerate(zip(chosen, outcomes, strict=True), start=1):
            word = "SURVIVED" if survived else "noticed"
            print(f"{number:3}/{len(chosen)} {word:8} {mutant.file} {mutant.operator}", flush=True)
            if survived:
                survivors.append(mutant)
                print(mutant.diff(), flush=True)
    seconds = time.monotonic() - began
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} were noticed in {seconds:.0f} s.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

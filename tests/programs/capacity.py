"""`make simulate`: compare the formulae of docs/FLEET.md with a simulation of every poll.

The simulation goes through the polls in the order of time, evenly spread over the sessions. Each
poll is decided by the age of the copy, the budget, and whether the replica has the copy. A second
one uses the gateway's own limiter: how much of a limit replicas leave unused.
"""

import argparse
import json
from array import array
from dataclasses import asdict, dataclass
from math import ceil, log10
from pathlib import Path
from typing import Any

from bff.limits.rate import LeasePending, Limiter, Window

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "capacity.json"
REPLICAS = 4


@dataclass(frozen=True)
class Case:
    sessions: int
    spacing: float
    """Seconds between two polls of one session, by any browser."""
    ttl: float
    stale: float
    budget: float
    """Loads a second."""


@dataclass(frozen=True)
class Figures:
    loads: float
    """Loads a second, of all sessions."""
    age: float
    """Seconds: mean age of the copies that browsers get."""
    oldest: float
    """Seconds: greatest age."""
    reads: float
    """Copies a second that a replica reads from the store, because another one loaded them."""


def formulae(case: Case) -> Figures:
    fresh = max(case.ttl, case.sessions / case.budget)
    polls = ceil(fresh / case.spacing)  # from one load to the next
    cycle = polls * case.spacing
    ages = [n * case.spacing for n in range(1, polls)]
    # The poll that starts a load gets the stale copy, or waits for the new one.
    ages.append(cycle if cycle - fresh < case.stale - 1e-6 else 0.0)
    # Each poll reaches a random replica: this many replicas get at least one in a cycle.
    reached = REPLICAS * (1 - (1 - 1 / REPLICAS) ** polls)
    return Figures(
        loads=case.sessions / cycle,
        age=sum(ages) / polls,
        oldest=max(ages),
        reads=case.sessions / cycle * (reached - 1),
    )


def simulate(case: Case) -> Figures:
    n, spacing, stale = case.sessions, case.spacing, case.stale
    fresh = max(case.ttl, n / case.budget)
    loaded = array("d", [-1e9]) * n
    holders = array("B", [0]) * n
    rounds = 2 + 3 * ceil(fresh / spacing)
    warm = rounds // 3 + 1
    loads = reads = polls = 0
    total = oldest = 0.0
    second, spent, chance = 0, 0.0, 12345
    for turn in range(rounds):
        counting = turn >= warm
        start, step = turn * spacing, spacing / n
        for session in range(n):
            now = start + session * step
            chance = (chance * 1103515245 + 12345) & 0x7FFFFFFF
            replica = 1 << (chance >> 16) % REPLICAS
            age = now - loaded[session]
            if age >= fresh - 1e-6:
                if int(now) != second:
                    second, spent = int(now), 0.0
                if spent < case.budget:
                    spent += 1
                    loaded[session], holders[session] = now, replica
                    age = age if age - fresh < stale - 1e-6 else 0.0
                    loads += counting
            elif not holders[session] & replica:
                holders[session] |= replica
                reads += counting
            if counting:
                polls += 1
                total += age
                oldest = max(oldest, age)
    took = (rounds - warm) * spacing
    return Figures(loads / took, total / polls, oldest, reads / took)


def cases(most: int) -> list[Case]:
    """Make the rows of the page: polls every 15 s and every second, with a budget to match."""
    sizes = [10**n for n in range(2, 8) if 10**n <= most]
    return [Case(n, 15.0, 2.0, 5.0, max(10.0, n / 60)) for n in sizes] + [
        Case(n, 1.0, 2.0, 5.0, max(10.0, n / 10)) for n in sizes if n <= 10**5
    ]


def differences(formula: Figures, run: Figures) -> dict[str, float]:
    """Give the relative difference of each figure."""
    names = ("loads", "age", "reads")
    pairs = {name: (getattr(formula, name), getattr(run, name)) for name in names}
    return {name: abs(a - b) / max(a, b, 1e-3) for name, (a, b) in pairs.items()}


def published() -> list[tuple[Case, Figures, Figures]]:
    """Return the cases of the last full run, each with its formula and what was simulated."""
    rows = [
        (Case(**row["case"]), Figures(**row["simulated"]))
        for row in json.loads(RESULTS.read_text())
    ]
    return [(case, formulae(case), simulated) for case, simulated in rows]


def table(rows: list[tuple[Case, Figures, Figures]]) -> str:
    lines = [
        (
            "| sessions | polled every | budget/s | loads/s: formula | simulated | "
            "mean age: formula | simulated | oldest | store reads/s: formula | simulated |"
        ),
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {c.sessions:,} | {c.spacing:g} s | {c.budget:,.0f} | {f.loads:,.1f} | {s.loads:,.1f} | "
        f"{f.age:.1f} s | {s.age:.1f} s | {s.oldest:.1f} s | {f.reads:,.1f} | {s.reads:,.1f} |"
        for c, f, s in rows
    ]
    return "\n".join(lines)


LIMITS = ((1, 300), (2, 60), (2, 300), (4, 60), (4, 300), (8, 300), (8, 3000))
"""Rows of the table: replicas, limit."""


class Provider:
    """Leases a window to one replica; the replicas share *taken*."""

    up = True

    def __init__(self, limit: int, replicas: int, taken: list[int]) -> None:
        self.replicas = replicas
        self._limit = limit
        self._taken = taken
        self._pending: list[tuple[Window, int]] = []

    def lease(self, window: Window, want: int) -> Any:
        self._pending.append((window, want))
        return object()

    def answer(self) -> None:
        for window, want in self._pending:
            granted = min(want, self._limit - sum(self._taken))
            self._taken.append(granted)
            window.grant(self, want, granted, self._limit - sum(self._taken), 60.0)
        self._pending.clear()


def unused(replicas: int, limit: int, *, in_turn: bool) -> tuple[int, int]:
    """Simulate a caller that uses all replicas in turn, or each once and then only the first.

    Returns:
        How much of the limit is left unused, and how many leases were taken.
    """
    taken: list[int] = []
    providers = [Provider(limit, replicas, taken) for _ in range(replicas)]
    limiters = [Limiter("caller", limit, 60, provider=provider) for provider in providers]
    allowed = 0
    for n in range(limit + 100):
        limiter = limiters[n % replicas if in_turn or n < replicas else 0]
        while True:
            try:
                allowed += not limiter.charge("caller", 0.0).exceeded
                break
            except LeasePending:
                for provider in providers:
                    provider.answer()
    return limit - allowed, len(taken)


def leases_table() -> str:
    lines = [
        "| replicas | limit | unused, in turn | leases | unused, mostly one | leases |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for replicas, limit in LIMITS:
        figures = [*unused(replicas, limit, in_turn=True), *unused(replicas, limit, in_turn=False)]
        lines.append("| " + " | ".join(map(str, (replicas, limit, *figures))) + " |")
    return "\n".join(lines)


def drawing(rows: list[tuple[Case, Figures, Figures]]) -> str:
    """Draw loads a second by sessions, on logarithmic axes: formula as line, simulation as dots."""

    def at(sessions: float, loads: float) -> tuple[float, float]:
        return 60 + (log10(sessions) - 2) * 100, 340 - (log10(loads) + 1) * 45

    shown = [
        f'<text x="{60 + n * 100}" y="362" text-anchor="middle">10^{n + 2}</text>'
        f'<line x1="{60 + n * 100}" y1="25" x2="{60 + n * 100}" y2="340" stroke="#e7e5e4"/>'
        for n in range(6)
    ]
    shown += [
        f'<text x="52" y="{344 - n * 45}" text-anchor="end">10^{n - 1}</text>'
        f'<line x1="60" y1="{340 - n * 45}" x2="560" y2="{340 - n * 45}" stroke="#e7e5e4"/>'
        for n in range(8)
    ]
    for spacing, colour in ((15.0, "#2563eb"), (1.0, "#c2410c")):
        chosen = [row for row in rows if row[0].spacing == spacing]
        line = " ".join("{:.1f},{:.1f}".format(*at(c.sessions, f.loads)) for c, f, _ in chosen)
        shown.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for c, _, s in chosen:
            x, y = at(c.sessions, s.loads)
            shown.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        x, y = at(chosen[-1][0].sessions, chosen[-1][1].loads)
        shown.append(f'<text x="{x + 8:.0f}" y="{y - 8:.0f}" fill="{colour}">{spacing:g} s</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" width="640" height="380" '
        'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Upstream calls '
        'a second by sessions"><rect width="640" height="380" fill="#fff"/><text x="60" y="16" '
        'font-weight="bold">Upstream calls a second by sessions: formula (line), simulated (dots)'
        f"</text>{''.join(shown)}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10_000_000, help="sessions")
    options = parser.parse_args()
    rows = []
    for case in cases(options.most):
        formula, run = formulae(case), simulate(case)
        rows.append({"case": asdict(case), "simulated": asdict(run)})
        print(case, formula, run, flush=True)
        wrong = {name: part for name, part in differences(formula, run).items() if part > 0.05}
        if wrong:
            raise SystemExit(f"the formulae differ from the simulation: {wrong}")
    if options.most >= 10_000_000:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""`make simulate`: the formulae of docs/FLEET.md against a run of every single poll.

Events are polls, in their order in time; sessions are polled evenly, each by as many browsers as
the interval says. What decides is what the gateway decides by: the age a copy may have, the budget,
and which replica has a copy already.
"""

import argparse
import json
from array import array
from dataclasses import asdict, dataclass
from math import ceil, log10
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "capacity.json"
REPLICAS = 4


@dataclass(frozen=True)
class Case:
    sessions: int
    spacing: float
    """Seconds between two polls of one session, whoever polls."""
    ttl: float
    stale: float
    budget: float
    """Loads a second."""


@dataclass(frozen=True)
class Figures:
    loads: float
    """A second, of all sessions."""
    age: float
    """Seconds, mean of what browsers get."""
    oldest: float
    reads: float
    """Of the store, a second: copies that one replica loaded and another then asked for."""


def formulae(case: Case) -> Figures:
    fresh = max(case.ttl, case.sessions / case.budget)
    polls = ceil(fresh / case.spacing)  # from one load to the next
    cycle = polls * case.spacing
    ages = [n * case.spacing for n in range(1, polls)]
    # The poll that finds the copy too old gets it all the same, or waits for the new one.
    ages.append(cycle if cycle - fresh < case.stale - 1e-6 else 0.0)
    # Each poll goes to any replica: how many see the session at least once in a cycle?
    seen = REPLICAS * (1 - (1 - 1 / REPLICAS) ** polls)
    return Figures(
        loads=case.sessions / cycle,
        age=sum(ages) / polls,
        oldest=max(ages),
        reads=case.sessions / cycle * (seen - 1),
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
    """A browser for each session that polls every fifteen seconds; a budget to match."""
    sizes = [10**n for n in range(2, 8) if 10**n <= most]
    return [Case(n, 15.0, 2.0, 5.0, max(10.0, n / 60)) for n in sizes] + [
        Case(n, 1.0, 2.0, 5.0, max(10.0, n / 10)) for n in sizes if n <= 10**5
    ]


def differences(said: Figures, seen: Figures) -> dict[str, float]:
    pairs = {name: (getattr(said, name), getattr(seen, name)) for name in ("loads", "age", "reads")}
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


def drawing(rows: list[tuple[Case, Figures, Figures]]) -> str:
    """Loads a second by sessions, both as powers of ten: a line is the formula, a dot a run."""

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
        mine = [row for row in rows if row[0].spacing == spacing]
        line = " ".join("{:.1f},{:.1f}".format(*at(c.sessions, f.loads)) for c, f, _ in mine)
        shown.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for c, _, s in mine:
            x, y = at(c.sessions, s.loads)
            shown.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        x, y = at(mine[-1][0].sessions, mine[-1][1].loads)
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
    told = parser.parse_args()
    rows = []
    for case in cases(told.most):
        said, seen = formulae(case), simulate(case)
        rows.append({"case": asdict(case), "simulated": asdict(seen)})
        print(case, said, seen, flush=True)
        off = {name: part for name, part in differences(said, seen).items() if part > 0.05}
        if off:
            raise SystemExit(f"the formulae are off: {off}")
    if told.most >= 10_000_000:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

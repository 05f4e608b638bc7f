"""A short soak. `make soak` runs a long one; `make soak-faults` shows that it notices faults."""

from pathlib import Path

from soak import weather as soak
from soak.planted import PLANTED

ROOT = Path(__file__).parent.parent.parent


def test_promises_hold_during_a_short_soak() -> None:
    findings = soak.run(10)

    print(findings.lines())
    assert findings.broken() == [], findings.lines()
    assert {"kill store", "kill upstream", "kill replica", "jump"} <= set(findings.done)


def test_every_planted_fault_still_applies() -> None:
    for planted in PLANTED:
        assert (ROOT / planted.file).read_text().count(planted.old) == 1, planted
        assert planted.promise in soak.PROMISES, planted
    assert {planted.promise for planted in PLANTED} == set(soak.PROMISES)

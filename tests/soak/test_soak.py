"""A short soak; `make soak` runs a long one, and `make soak-faults` shows that it would notice."""

from pathlib import Path

from soak import weather as soak
from soak.planted import PLANTED

ROOT = Path(__file__).parent.parent.parent


def test_the_promises_hold_for_a_while() -> None:
    found = soak.run(10)

    print(found.lines())
    assert found.broken() == [], found.lines()
    assert {"kill store", "kill upstream", "kill replica", "jump"} <= set(found.done)


def test_what_is_planted_for_the_soak_to_notice_still_applies() -> None:
    for planted in PLANTED:
        assert (ROOT / planted.file).read_text().count(planted.old) == 1, planted
        assert planted.promise in soak.PROMISES, planted
    assert {planted.promise for planted in PLANTED} == set(soak.PROMISES)

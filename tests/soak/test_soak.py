"""A short soak; `make soak` runs a long one."""

import soak


def test_the_promises_hold_for_a_while() -> None:
    found = soak.run(10)

    print(found.lines())
    assert found.broken() == [], found.lines()
    assert found.kills >= 1

"""Runs each fuzz target briefly; `make fuzz` gives each minutes and a coverage-guided fuzzer."""

import pytest
from fuzz.targets import SEEDS, TARGETS, WORDS
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", TARGETS)
def test_targets_hold_for_random_bytes(request: pytest.FixtureRequest, name: str) -> None:
    target = TARGETS[name]()
    if hasattr(target, "close"):
        request.addfinalizer(target.close)
    for seed in SEEDS[name]:
        target(seed)
    piece = st.one_of(st.sampled_from([*WORDS, *SEEDS[name]]), st.binary(max_size=8))
    cut = st.tuples(st.sampled_from(SEEDS[name]), st.integers(0, 200), piece, st.integers(0, 9))
    mixed = cut.map(lambda c: c[0][: c[1]] + c[2] + c[0][c[1] + c[3] :])

    @settings(max_examples=150, derandomize=True)
    @given(st.one_of(mixed, st.lists(piece, max_size=8).map(b"".join)))
    def fuzz(data: bytes) -> None:
        target(data)

    fuzz()

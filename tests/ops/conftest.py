"""Fixtures of the tests of `bff.ops`."""

import pytest
from support.world import environ, running_upstream


@pytest.fixture
def live(upstream: running_upstream) -> dict[str, str]:
    """Settings of a gateway whose upstream runs in this process."""
    return environ(TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}")

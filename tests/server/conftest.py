from collections.abc import Iterator

import pytest
from support.workers import running_workers
from support.world import Gateway, running_upstream


@pytest.fixture(scope="module")
def pair(upstream: running_upstream) -> Iterator[Gateway]:
    """A gateway with two workers, for tests that leave it with two workers."""
    with running_workers(upstream, BFF_CACHE_TTL="60") as gateway:
        yield gateway

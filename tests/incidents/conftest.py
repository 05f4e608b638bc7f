from collections.abc import Iterator

import pytest
from hostile import LANES, WIDE_OPEN
from world import Gateway, running_upstream


@pytest.fixture(scope="module", params=LANES)
def lane(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose one way from a socket to the decision."""
    return LANES[request.param]


@pytest.fixture(scope="module")
def edge(upstream: "running_upstream", lane: dict[str, str]) -> Iterator[Gateway]:
    """`bff serve`, no limit but those of the wire, nothing fresh for longer than a moment."""
    with Gateway(
        upstream.port, BFF_CACHE_TTL="0", BFF_CACHE_NEGATIVE_TTL="0", **WIDE_OPEN, **lane
    ) as gateway:
        yield gateway

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hostile import LANES, WIDE_OPEN
from support.kinds import KINDS, Kind
from support.world import Gateway, World, running_upstream


@pytest.fixture(scope="module", params=LANES)
def lane(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose one path from the socket to the decision."""
    return LANES[request.param]


@pytest.fixture(scope="module")
def edge(upstream: "running_upstream", lane: dict[str, str]) -> Iterator[Gateway]:
    """`bff serve` with bounds on connections only, and with copies that expire at once."""
    with Gateway(
        upstream.port, BFF_CACHE_TTL="0", BFF_CACHE_NEGATIVE_TTL="0", **WIDE_OPEN, **lane
    ) as gateway:
        yield gateway


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """The verifier of a test's tokens: the gateway's key, upstream, or another issuer's key."""
    return Kind(request.param, tmp_path)


@pytest.fixture
async def of_kind(world: World, kind: Kind) -> World:
    """A gateway that accepts tokens of that kind."""
    await world.start(**kind.settings)
    return world

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import hypothesis
import pytest
from playwright.sync_api import Browser
from support.clients import chromium as launch_chromium
from support.engines import ENGINES, Engine
from support.patient_loop import PatientLoop
from support.replicas import Replicas
from support.world import OFF, PATIENCE, Clock, Gateway, World, running_upstream

from bff.copies import readiness
from bff.replicas import connection, shared_loads, valkey

# How long an example takes says something of the machine, and nothing of the code.
hypothesis.settings.register_profile(
    "bff", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bff")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": PatientLoop}


@pytest.fixture(autouse=True)
def no_questions_of_its_own(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let no gateway of this process ask upstream while it is idle: a slow test would count it."""
    if inspect.iscoroutinefunction(request.function):
        monkeypatch.setattr(readiness, "TROUBLE_SECONDS", 100.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def world(clock: Clock) -> AsyncIterator[World]:
    """The whole service in this process, with a clock to move and a pretend upstream behind it."""
    async with World(clock) as world:
        yield world


@pytest.fixture(scope="module")
def upstream() -> Iterator["running_upstream"]:
    """A pretend upstream on a socket."""
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: "running_upstream") -> Iterator[Gateway]:
    """`bff serve` as a process of its own, in front of `upstream`, limits wide open."""
    with Gateway(upstream.port, **OFF, BFF_CACHE_NEGATIVE_TTL="0") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for the tests of a module; all of them synchronous, for it runs a loop."""
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(params=ENGINES, scope="module")
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """A store, of each kind in turn."""
    with Engine(request.param, tmp_path_factory.mktemp("store")) as engine:
        yield engine


@pytest.fixture
def patient_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no pause of a busy machine end a claim, so that loads can be counted, or a connection."""
    monkeypatch.setattr(shared_loads, "CLAIM_SECONDS", PATIENCE)
    monkeypatch.setattr(connection, "_OPEN_SECONDS", PATIENCE)
    monkeypatch.setattr(valkey, "SOCKET_SECONDS", PATIENCE)


@pytest.fixture
async def replicas(
    engine: Engine,
    patient_store: None,  # noqa: ARG001  it stays while the test runs
) -> AsyncIterator[Replicas]:
    """Replicas at a store that is empty to begin with."""
    engine.empty()
    async with AsyncExitStack() as stack:
        yield Replicas(engine, stack)


@pytest.fixture(params=ENGINES)
def own_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A store that a test may hurt."""
    with Engine(request.param, tmp_path) as engine:
        yield engine


@pytest.fixture
async def own_replicas(
    own_engine: Engine,
    patient_store: None,  # noqa: ARG001  as above
) -> AsyncIterator[Replicas]:
    """Replicas at a store that a test may hurt."""
    async with AsyncExitStack() as stack:
        yield Replicas(own_engine, stack)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why a test that passed at its second run failed at its first."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"first run of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)

"""Each number of docs/FLEET.md is a constant of the code, or is measured or simulated again."""

import re
import time
from pathlib import Path

import pytest
from programs import capacity
from support.engines import Engine
from support.replicas import Replicas, copy_key, until, written
from support.world import FRIENDLY, OFF, ROOT_KEY, World, claims, environ, read, sign

from bff.config import reader
from bff.limits import rate
from bff.replicas import connection, keys, scripts, shared_limits, shared_loads
from bff.replicas.announcements import STREAMS
from bff.replicas.exchanges import Commands
from bff.server import supervisor
from bff.tokens import introspected

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "FLEET.md").read_text()
SENTENCES = " ".join(PAGE.split())

FACTS = (
    f"a key that lasts {shared_loads.CLAIM_SECONDS:g} second and is renewed",
    f"for the others by at most {shared_loads.CLAIM_SECONDS:g} second.",
    f"divided by {rate.LEASE_DIVISOR} and by the number of replicas",
    f" 1) ÷ {rate.LEASE_DIVISOR}R",
    f"all replicas, for at most {rate.MAX_RESET:g} seconds",
    f"reports at most every {shared_limits._REPORT_SECONDS:g} seconds",
    f"each answer that leaves fewer than {shared_limits._FEW_LOADS} loads",
    f"reads the last {STREAMS['revocations']:,} before it serves",
    f"the store keeps the last {STREAMS['purges']:,}",
    f"An acceptance holds for {introspected.ACCEPTED_SECONDS:g} seconds from upstream's answer",
    f"A refusal holds for {introspected.REFUSED_SECONDS:g} seconds",
    f"`BFF_STORE_TIMEOUT` ({reader.load(environ()).store_timeout:g} seconds). Half of it",
    f"by {connection.UNKNOWN_REPLICAS} if it never was",
    f"again within {connection.STABLE_HEARTBEATS} heartbeats",
    f"down to every {connection.MAX_RETRY_SECONDS:g} seconds",
    f"with {('no', 'one', 'two', 'three', 'four')[capacity.REPLICAS]} replicas:",
)
NAMED = {
    "It is sent every second, and four times a second while the store is down": (
        connection.HEARTBEAT_SECONDS == 1.0 and connection.RETRY_SECONDS == 1 / 4
    ),
    "the gateway tries again every second": supervisor._RESTART_SECONDS == 1.0,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Valkey alone: the numbers of the page are its."""
    with Engine("valkey", tmp_path_factory.mktemp("store")) as engine:
        yield engine


def test_page_names_the_constants_of_the_code() -> None:
    assert [fact for fact in FACTS if fact not in SENTENCES] == []
    assert [fact for fact, holds in NAMED.items() if not holds or fact not in SENTENCES] == []


def test_unused_limits_are_within_the_bound() -> None:
    bounds = [
        (capacity.unused(replicas, limit, in_turn=False)[0], limit * (replicas - 1) / 4 / replicas)
        for replicas, limit in capacity.LIMITS
    ]
    assert all(unused <= bound for unused, bound in bounds)


async def test_simulated_leases_are_those_of_replicas(replicas: Replicas) -> None:
    worlds = await replicas.several(2, **OFF | {"BFF_RATE_LIMIT": "60/minute"}, BFF_CACHE_TTL="60")
    token = worlds[0].token(*read("chat-1"), act={"sub": "someone"})
    other = worlds[0].token(*read("chat-1"), act={"sub": "other"})
    for world in worlds:
        await world.get("chat-1", token=other)

    statuses = [
        (await worlds[n if n < 2 else 0].get("chat-1", token=token)).status_code for n in range(160)
    ]

    assert (60 - statuses.count(200), 28) == capacity.unused(2, 60, in_turn=False)


def test_published_simulation_agrees_with_the_formulae() -> None:
    rows = capacity.published()

    assert [case for case, _, _ in rows] == capacity.cases(10**7)
    for case, formula, run in rows:
        assert all(part < 0.05 for part in capacity.differences(formula, run).values()), case


def test_measured_times_are_those_of_the_benchmark() -> None:
    bench = (ROOT / "docs" / "bench" / "bench.md").read_text()

    def milliseconds(workload: str, server: str) -> str:
        (cells,) = re.findall(rf"^\| {workload} \| {server} \|(.*)\|$", bench, re.MULTILINE)
        return f"{float(cells.split('|')[6]) / 1000:.1f}"

    times = [
        milliseconds(workload, server)
        for workload in ("one miss at a time", "cold, 1,000 at once")
        for server in ("bff", "bff, Valkey")
    ]
    assert (
        "one miss at a time takes {} ms of CPU without a store and {} ms with one. "
        "With 1,000 at once, each takes {} and {} ms".format(*times)
    ) in SENTENCES


# -- commands and memory


class Recorder:
    """Records the commands of a replica, without its heartbeats and leases."""

    def __init__(self, world: World) -> None:
        self._connection = world.service.sharing.store.connection
        self._enqueue = self._connection._enqueue
        self._connection._enqueue = self.enqueue
        self.exchanges: list[Commands] = []

    def enqueue(self, commands, *wait, now):
        self.exchanges.append(commands)
        self._enqueue(commands, *wait, now=now)

    def counts(self) -> tuple[int, int]:
        """Count all commands, and the scripts among them; forget them."""
        ignored = (scripts.HEARTBEAT, scripts.TAKE)
        own = ("GET", keys.MARKER)  # that of `written`
        sent = [command for commands in self.exchanges for command in commands]
        commands = [c for c in sent if c[1] not in ignored and c != own]
        self.exchanges = []
        return len(commands), sum(command[0] == "EVAL" for command in commands)


async def test_commands_of_loads_copies_and_introspections(replicas: Replicas) -> None:
    changes = {"BFF_CACHE_TTL": "60", "BFF_VERIFY": "local,upstream"}
    one, two = await replicas.several(2, **changes)
    first, second = Recorder(one), Recorder(two)

    await one.get("chat-1")
    await until(lambda: stored(one, "bff_shared_copies"))
    await two.get("chat-1")
    await written(one, two)
    load, copy = first.counts(), second.counts()

    token = sign(claims(time.time(), *read("chat-1")), ROOT_KEY)
    await one.get("chat-1", token=token)
    await until(lambda: stored(one, "bff_shared_verdicts"))
    await two.get("chat-1", token=token)
    await written(one, two)
    introspection, used = first.counts(), second.counts()

    assert (
        f"{copy[0]} for each copy read; {load[0]} for each load ({load[1]} of them scripts); "
        f"{introspection[0]} for each token introspected ({introspection[1]} of them scripts), "
        f"{used[0]} for each other replica that uses the result"
    ) in SENTENCES


def stored(world: World, metric: str) -> float:
    return world.telemetry.counts[metric, "kept"]


async def test_memory_of_copies_windows_and_introspections(replicas: Replicas) -> None:
    """To a quarter: MEMORY USAGE leaves out the share of the server's own tables."""
    changes = {"BFF_CACHE_TTL": "60", "BFF_VERIFY": "local,upstream"}
    (one,) = await replicas.several(1, **changes)
    await one.get("chat-1")
    await until(lambda: stored(one, "bff_shared_copies"))
    token = sign(claims(time.time(), *read("chat-2")), ROOT_KEY)
    await one.get("chat-2", token=token)
    await until(lambda: stored(one, "bff_shared_verdicts"))

    with replicas.engine.client() as client:

        def kib(pattern: str) -> list[float]:
            return [client.memory_usage(key) / 1024 for key in client.keys(pattern)]

        copies = kib(copy_key(one, FRIENDLY["chat-1"])) + kib(copy_key(one, "chat-1"))
        windows = kib("bff1:w:*")
        introspections = kib("bff1:*:verdicts:*")

    numbers = re.search(
        r"([\d.]+) KiB for each session .*?, ([\d.]+) to ([\d.]+) KiB for each caller .*?, "
        r"([\d.]+) KiB for each token",
        PAGE,
    )
    assert numbers is not None
    copy, least, most, introspection = map(float, numbers.groups())
    assert copy == pytest.approx(sum(copies), rel=0.25)
    assert all(0.8 * least <= window <= most for window in windows)
    assert introspection == pytest.approx(sum(introspections), rel=0.25)
    assert (len(copies), len(introspections)) == (2, 2)

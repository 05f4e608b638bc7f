"""Days of trouble in minutes: thousands of callers while everything around the gateway fails.

Three replicas, a store and an upstream run as processes, which the soak kills, freezes and starts
again. Upstream also answers badly, keys rotate by file, clocks jump, and sessions are purged.
Callers on real sockets request entitled and foreign sessions, some faster than their limit.
At the end the soak prints a figure for each promise, and whether the promise held.

One replica survives all of it, to show what grows.
"""

import asyncio
import json
import mmap
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import httpx2
from soak.upstream import SECRET_KEYS, WEATHER
from support.engines import Engine, free_port
from support.hostile import descriptors, metric, resident
from support.world import ENVIRONMENT_ID, PATH, Executed, claims, sign, until

from bff.demo.upstream import session
from bff.limits.hot_sessions import EPOCH
from bff.upstream.pool import IDLE_SECONDS

HERE = Path(__file__).parent
SIGNING_KEYS = [f"soak-signing-key-0123456789abcdef-{number}" for number in range(3)]
REPLICAS, CALLERS, SESSIONS, TABS, HURRIED = 3, 3000, 1000, 40, 3
BUDGET, RATE = 50, 5
"""Calls upstream a second, and requests a second of one caller."""
TTL, STALE_WHILE_REVALIDATE, STALE_IF_ERROR = 1.0, 1.0, 10.0
MAX_STRETCH = 30.0
"""Seconds. Callers with more sessions than others get copies as old as this."""
NOTICED = 4.0
"""Seconds until every replica has loaded a changed file, however often another file changes."""
WINDOW = 5.0
"""Seconds of the sliding window in which calls and answers are counted."""


@dataclass
class Findings:
    """The figures of a run. For a promise, 0 means that it held."""

    seconds: float = 0.0
    answers: Counter = field(default_factory=Counter)
    done: Counter = field(default_factory=Counter)
    """The number of each kind of trouble."""
    callers: int = 0
    sessions: int = 0
    unentitled: int = 0
    """Answers with a session to a caller who may not read it, or with another session."""
    wrong_refusals: int = 0
    """401 or 403 to a caller who may read the session."""
    avoidable_errors: int = 0
    """5xx from a replica that had a usable copy."""
    too_old: int = 0
    oldest: float = 0.0
    lost: int = 0
    """Requests without an answer, apart from those that a kill cut off."""
    calls: int = 0
    budget_used: float = 0.0
    """The most calls upstream in `WINDOW` seconds, divided by the bound; over 1 breaks it."""
    most_calls_in_calm: int = 0
    """The most calls in a window in which every replica had the store."""
    limit_used: float = 0.0
    most_answers_in_calm: int = 0
    grown_bytes: int = 0
    grown_descriptors: int = 0
    grown_tasks: float = 0.0
    connections_left: float = 0.0
    loads_left: float = 0.0

    def broken(self) -> list[str]:
        """Return the promises that did not hold."""
        return [promise for promise, broken in PROMISES.items() if broken(self)]

    def lines(self) -> str:
        """Format the figures, one a line."""
        figures = {n: dict(v) if isinstance(v, Counter) else v for n, v in vars(self).items()}
        return "\n".join(f"{name:24} {value}" for name, value in figures.items())


PROMISES: dict[str, Callable[[Findings], object]] = {
    "an unentitled caller was answered": lambda findings: findings.unentitled,
    "an entitled caller was refused as if it were not": lambda findings: findings.wrong_refusals,
    "a 5xx while a usable copy existed": lambda findings: findings.avoidable_errors,
    "an answer beyond the age bounds": lambda findings: findings.too_old,
    "an answer was lost": lambda findings: findings.lost,
    "the budget was exceeded": lambda findings: findings.budget_used > 1,
    "a limit was exceeded": lambda findings: findings.limit_used > 1,
    "memory grew": lambda findings: findings.grown_bytes > 24 * 1024 * 1024,
    "descriptors grew": lambda findings: findings.grown_descriptors > 15,
    "tasks grew": lambda findings: findings.grown_tasks > 15,
    "connections were left open": lambda findings: findings.connections_left > 2,
    "loads were left in flight": lambda findings: findings.loads_left > 0,
    "nothing was answered": lambda findings: not findings.answers[200],
}
"""For each promise, the figures that break it."""


class Replica(Executed):
    """`bff serve` with a clock that the soak moves."""

    def __init__(self, number: int, upstream_port: int, folder: Path, store: str) -> None:
        super().__init__(
            upstream_port,
            TRIGGER_API_URL=f"http://localhost:{upstream_port}",
            TRIGGER_SECRET_KEY=None,
            TRIGGER_SECRET_KEY_FILE=str(folder / "secret_keys"),
            BFF_SIGNING_KEYS=None,
            BFF_SIGNING_KEYS_FILE=str(folder / "signing_keys"),
            BFF_STORE_URL=store,
            BFF_STORE_OPTIONAL="true",
            BFF_STORE_TIMEOUT="0.5",
            BFF_UPSTREAM_BUDGET=f"{BUDGET}/second",
            BFF_RATE_LIMIT=f"{RATE}/second",
            BFF_IP_RATE_LIMIT="off",
            BFF_BAD_TOKEN_LIMIT="off",
            BFF_UPSTREAM_TIMEOUT="1",
            BFF_CACHE_TTL=str(TTL),
            BFF_CACHE_MAX_STRETCH=str(MAX_STRETCH),
            BFF_CACHE_STALE_WHILE_REVALIDATE=str(STALE_WHILE_REVALIDATE),
            BFF_CACHE_STALE_IF_ERROR=str(STALE_IF_ERROR),
            PYTHONPATH=f"{HERE.parent.parent}:{HERE.parent}",
        )
        for name in ("TRIGGER_SECRET_KEY", "BFF_SIGNING_KEYS"):
            self._environ.pop(name, None)
        self.number = number
        self.up = False
        self.lives = 0
        self.loaded: dict[int, float] = {}
        """By session: when the newest copy that the replica answered with was loaded."""
        self.alone: list[list[float]] = []
        """Intervals without the store: begin and end."""
        self.lock = asyncio.Lock()
        self.disk = asyncio.Lock()
        """Held while the disk of the log is full, and during a start, which the log tells."""
        self.reads = threading.Event()
        """Set while the log is read."""
        self.reads.set()
        file = folder / f"replica-{number}"
        file.write_bytes(bytes(17))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), 17)
        # Children that are not the gateway's own end beside it, as a container's orphans do.
        foreign = 'for s in 1 3 9; do sleep $s >/dev/null 2>&1 & done; exec "$@"'
        program = [sys.executable, str(HERE / "replica.py"), str(file)]
        self.command = ["/bin/sh", "-c", foreign, "sh", *program]

    def begin(self) -> None:
        self.lives += 1
        self.loaded.clear()
        self.alone.append([time.monotonic(), float("inf")])
        self.__enter__()
        self.up = True

    def end(self) -> None:
        self.up = False
        self.process.kill()
        self.reads.set()  # a reader of the log that stalls would never see the end
        self.__exit__()
        self.alone[-1][1] = min(self.alone[-1][1], time.monotonic())

    def read_log(self, line: str) -> None:
        """Follow the events of the store. No line is kept, as a run may take days."""
        if '"store_there"' in line:
            self.alone[-1][1] = time.monotonic()
        elif '"store_away"' in line and self.alone[-1][1] < float("inf"):
            self.alone.append([time.monotonic(), float("inf")])

    def _read(self) -> None:
        for line in self.process.stdout:
            self.reads.wait()
            self.read_log(line)

    def jump(self, seconds: float) -> None:
        struct.pack_into("d", self._shared, 0, seconds)

    @contextmanager
    def full_disk(self):
        """Let the system refuse each line of the log, as a full disk does."""
        self._shared[16] = 1
        try:
            yield
        finally:
            self._shared[16] = 0

    @property
    def tasks(self) -> float:
        return struct.unpack_from("d", self._shared, 8)[0]


HOSTS = ("127.0.0.1", "127.0.0.2")
"""The addresses of upstream, in turns."""


def _reserve(host: str, port: int) -> socket.socket:
    """Keep other programs from a port, also while nothing listens there."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((host, port))
    return reserved


class Upstream:
    """The process of the pretend upstream, and its controls."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._reserved = [_reserve(host, self.port) for host in HOSTS]
        self.lock = asyncio.Lock()
        self._folder = folder
        (folder / "upstream").write_bytes(bytes(3))
        with (folder / "upstream").open("r+b") as opened:
            self._control = mmap.mmap(opened.fileno(), 3)
        self.keys({0})
        self._address = 0

    def begin(self) -> None:
        host, program = HOSTS[self._address], HERE / "upstream.py"
        self.process = subprocess.Popen(
            [sys.executable, program, host, str(self.port), str(SESSIONS), self._folder],
            env=os.environ | {"PYTHONPATH": f"{HERE.parent.parent}:{HERE.parent}"},
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.end()
        for reserved in self._reserved:
            reserved.close()

    async def move(self, seconds: float) -> None:
        """Start at another address, let names lead there, and end the old one *seconds* later."""
        old = self.process
        self._address = 1 - self._address
        self.begin()
        await asyncio.to_thread(_listens, HOSTS[self._address], self.port)
        self._control[2] = self._address
        await asyncio.sleep(seconds)
        old.kill()
        old.wait()

    def weather(self, kind: str) -> None:
        self._control[0] = WEATHER.index(kind)

    def keys(self, numbers: set[int]) -> None:
        self._control[1] = sum(1 << number for number in numbers)

    def calls(self) -> list[float]:
        data = (self._folder / "calls").read_bytes()
        return [moment for (moment,) in struct.iter_unpack("d", data)]


class Connection:
    """A browser's connection, for one request at a time, with as little HTTP as that needs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, id_: str, token: str) -> tuple[int, dict[bytes, bytes], bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = PATH + quote(id_, safe="")
        head = f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._writer.write(head.encode())
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        headers = {name: value for name, _, value in (line.partition(b": ") for line in lines)}
        body = await self._reader.readexactly(int(headers.get(b"content-length", b"0")))
        return int(first.split()[1]), headers, body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


def _listens(host: str, port: int) -> None:
    """Wait until a server listens there."""

    def connects() -> bool:
        with socket.socket() as one:
            return one.connect_ex((host, port)) == 0

    until(connects)


@dataclass
class Keys:
    """The signing keys that are valid, and the time since which they are."""

    good: set[int]
    changed: float = float("-inf")
    before: set[int] = field(default_factory=set)

    def is_good(self, key: int, now: float) -> bool | None:
        """Whether *key* is valid; None while some replica may not have loaded the change."""
        if now - self.changed < NOTICED and (key in self.good) != (key in self.before):
            return None
        return key in self.good


class Soak:
    """One run; *seed* determines everything except the timing."""

    def __init__(
        self, seconds: float, seed: int, report: Callable[[str], None], *, calm: bool
    ) -> None:
        self.calm = calm
        self.seconds = seconds
        self.latest: deque[str] = deque(maxlen=6)
        """The last troubles that began."""
        self.dice = random.Random(seed)
        self.findings = Findings()
        self.report = report
        self.keys = Keys({0})
        self.answered: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        """For each hurried caller: the times of its requests and of their answers."""
        self.emptied: list[float] = []
        """Times at which the store restarted empty."""
        self.late: list[tuple[float, float]] = []
        """Times at which upstream thawed, and the seconds of calls that it recorded then."""
        self.seen: tuple[set[int], set[int]] = (set(), set())
        self.tokens: dict[tuple[int, int], str] = {}
        self.purged: dict[int, float] = {}
        """By session: when it was purged last. A frozen replica learns of it later."""
        self.samples: list[tuple[float, int]] = []
        """Seconds since the start, and bytes of resident memory."""

    async def run(self) -> Findings:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory()))
            self.write("signing_keys", SIGNING_KEYS[:1])
            self.write("secret_keys", SECRET_KEYS[:1])
            self.store = stack.enter_context(Engine("valkey", self.folder))
            self.store_lock = asyncio.Lock()
            self.secret_keys, self.descriptors = asyncio.Lock(), asyncio.Lock()
            self.upstream = Upstream(self.folder)
            self.upstream.begin()
            stack.callback(self.upstream.close)
            self.replicas = [
                Replica(number, self.upstream.port, self.folder, self.store.url)
                for number in range(REPLICAS)
            ]
            for replica in self.replicas:
                stack.callback(lambda replica=replica: replica.up and replica.end())
            await asyncio.gather(*(asyncio.to_thread(r.begin) for r in self.replicas))
            self.at_first = self.measured()
            self.began = time.monotonic()
            self.until = self.began + self.seconds
            async with asyncio.TaskGroup() as group:
                for number in range(TABS):
                    group.create_task(self.tab(number))
                for number in range(HURRIED):
                    group.create_task(self.hurried(number))
                for number in range(0 if self.calm else 2):
                    group.create_task(self.storm(number))
                group.create_task(self.watch())
            self.findings.seconds = round(time.monotonic() - self.began, 1)
            await self.calm_down()
            self.conclude()
        return self.findings

    def write(self, name: str, keys: list[str]) -> None:
        (self.folder / f"{name}.new").write_text("\n".join(keys))
        (self.folder / f"{name}.new").replace(self.folder / name)

    # -- trouble

    async def storm(self, number: int) -> None:
        """Cause every kind of trouble once, in random order, again and again."""
        # A short run on a busy machine must see these, so each storm begins with two of them.
        deck: list[Callable[[], Awaitable[None]]] = [
            [self.kill_upstream, self.kill_store],
            [self.kill_replica, self.jump],  # the last comes first: it takes no time
        ][number]
        troubles = [
            *(self.kill_upstream, self.freeze_upstream, self.turn_weather, self.turn_weather),
            self.move_upstream,
            *(self.kill_store, self.freeze_store, self.kill_replica, self.freeze_replica),
            *(self.jump, self.jump, self.purge, self.rotate_signing, self.rotate_secret),
            *(self.stall_log, self.fill_disk, self.take_descriptors),
        ]
        await asyncio.sleep(0.3 * number)
        while time.monotonic() < self.until - 1:
            if not deck:
                deck = troubles.copy()
                self.dice.shuffle(deck)
            trouble = deck.pop()
            self.latest.append(f"{trouble.__name__} at {time.monotonic() - self.began:.0f} s")
            await trouble()
            self.findings.done[trouble.__name__.replace("_", " ")] += 1
            await self.pause()

    async def pause(self, most: float = 3.0) -> None:
        await asyncio.sleep(min(most, self.seconds / 60) * (0.5 + self.dice.random()))

    async def turn_weather(self) -> None:
        self.upstream.weather(self.dice.choice(WEATHER))
        await self.pause()
        self.upstream.weather("fine")

    async def move_upstream(self) -> None:
        async with self.upstream.lock:
            await self.upstream.move(self.dice.random() * min(3.0, self.seconds / 60))

    async def kill_upstream(self) -> None:
        async with self.upstream.lock:
            self.upstream.end()
            await self.pause(8)
            self.upstream.begin()

    async def freeze_upstream(self) -> None:
        async with self.upstream.lock:
            began = time.monotonic()
            with frozen(self.upstream.process):
                await self.pause(2)
            self.late.append((time.monotonic(), time.monotonic() - began))

    async def kill_store(self) -> None:
        async with self.store_lock:
            self.store.kill()
            await self.pause(8)
            self.emptied.append(time.monotonic())
            await asyncio.to_thread(self.store.start)

    async def freeze_store(self) -> None:
        async with self.store_lock:
            self.store.freeze()
            await self.pause(2)
            self.store.thaw()

    async def kill_replica(self) -> None:
        replica = self.dice.choice(self.replicas[1:])
        async with replica.lock, replica.disk:
            replica.end()
            await self.pause()
            await asyncio.to_thread(replica.begin)

    async def freeze_replica(self) -> None:
        replica = self.dice.choice(self.replicas)
        async with replica.lock:
            with frozen(replica.process):
                await self.pause(2)

    async def stall_log(self) -> None:
        """Read the log of one replica no further for a while: its pipe fills, as at a slow disk."""
        replica = self.dice.choice(self.replicas)
        with self.unheard(replica):
            replica.reads.clear()
            try:
                await self.pause(8)
            finally:
                replica.reads.set()
                await asyncio.sleep(0.2)

    async def fill_disk(self) -> None:
        """Lose the log of one replica for a while."""
        replica = self.dice.choice(self.replicas)
        async with replica.disk:
            with self.unheard(replica), replica.full_disk():
                await self.pause(8)

    @contextmanager
    def unheard(self, replica: Replica):
        """Count *replica* as alone: its lines about the store come late, or never."""
        replica.alone.insert(-1, [time.monotonic(), float("inf")])
        interval = replica.alone[-2]
        try:
            yield
        finally:
            interval[1] = time.monotonic()

    async def take_descriptors(self) -> None:
        """Leave one replica hardly a descriptor: for browsers, upstream, the store and its files.

        It cannot read a changed file of keys meanwhile, so no key rotates.
        """
        replica = self.dice.choice(self.replicas)
        async with replica.lock, self.secret_keys, self.descriptors:
            await asyncio.sleep(max(0.0, self.keys.changed + NOTICED - time.monotonic()))
            pid = replica.process.pid
            usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            short = descriptors(pid) + 3, usual[1]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, short)
            try:
                await self.pause(2)
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
                await asyncio.sleep(1)

    async def jump(self) -> None:
        """Move each replica's wall clock separately, some of them back to the real time."""
        for replica in self.replicas:
            replica.jump(self.dice.choice([0.0, 0.5, -0.5, 7.0, -7.0, 60.0, 600.0, -600.0]))

    async def purge(self) -> None:
        number, replica = self.dice.randrange(SESSIONS), self.dice.choice(self.replicas)
        if replica.up:
            self.purged[number] = time.monotonic()
            for one in self.replicas:
                one.loaded.pop(number, None)
            url = f"{replica.ops_url}/cache/sessions/chat-{number}"
            try:
                async with httpx2.AsyncClient(trust_env=False, timeout=5) as operator:
                    await operator.delete(url)
            except httpx2.TransportError:
                pass  # the replica was killed meanwhile
            for one in self.replicas:
                one.loaded.pop(number, None)

    async def rotate_signing(self) -> None:
        """Write one or two of the three keys into the file."""
        now = time.monotonic()
        if now - self.keys.changed > NOTICED + 1 and not self.descriptors.locked():
            good = set(self.dice.sample(range(3), self.dice.choice([1, 2])))
            self.keys = Keys(good, now, self.keys.good)
            self.write("signing_keys", [SIGNING_KEYS[number] for number in sorted(good)])

    async def rotate_secret(self) -> None:
        """Rotate as SECURITY.md says: put the new key first, revoke the old, remove it."""
        old = self.findings.done["secret keys rotated"] % 3
        new = (old + 1) % 3
        if time.monotonic() > self.until - NOTICED - 2:
            return
        async with self.secret_keys:
            self.findings.done["secret keys rotated"] += 1
            self.upstream.keys({old, new})
            self.write("secret_keys", [SECRET_KEYS[new], SECRET_KEYS[old]])
            await asyncio.sleep(NOTICED / 2 if self.seconds < 60 else NOTICED)
            self.upstream.keys({new})
            await self.pause()
            self.write("secret_keys", [SECRET_KEYS[new]])
            await asyncio.sleep(1)

    # -- browsers

    async def tab(self, number: int) -> None:
        """Act as one browser tab after another, each of a random caller at a random replica."""
        dice = random.Random(number)
        connections: dict[tuple[int, int], Connection] = {}
        while time.monotonic() < self.until:
            caller = dice.randrange(CALLERS)
            entitled = [caller % SESSIONS, caller * 7 % SESSIONS]
            target = dice.choice([*entitled, *entitled, dice.randrange(SESSIONS)])
            replica = dice.choice(self.replicas)
            if replica.up:
                await self.visit(dice, connections, replica, caller, entitled, target)
            await asyncio.sleep(dice.random() * 0.1)
        for connection in connections.values():
            connection.close()

    async def visit(
        self,
        dice: random.Random,
        connections: dict[tuple[int, int], Connection],
        replica: Replica,
        caller: int,
        entitled: list[int],
        target: int,
    ) -> None:
        key = dice.choice([*sorted(self.keys.good) * 3, 0, 1, 2])
        expired = dice.random() < 0.02
        token = self.token(caller, entitled, key, expired=expired)
        friendly = dice.random() < 0.3
        id_ = session(target)["id"] if friendly else f"chat-{target}"
        life = replica.number, replica.lives
        connection = connections.setdefault(life, Connection(replica.port))
        if dice.random() < 0.01:  # some browsers leave before the answer
            asyncio.get_running_loop().call_later(0.001, connection.close)
        sent, held = time.monotonic(), replica.loaded.get(target)
        try:
            async with asyncio.timeout(10):
                status, headers, body = await connection.get(id_, token)
        except (OSError, EOFError, AttributeError, TimeoutError) as exc:
            left = connection._writer is None
            connection.close()
            connections.pop(life, None)
            await asyncio.sleep(0.5)  # only a kill may cut a request off
            alive = replica.up and life == (replica.number, replica.lives)
            if alive and not left:
                self.findings.lost += 1
                self.report(
                    f"lost: {exc!r}, replica {replica.number}, asked at {sent - self.began:.0f} s;"
                    f" the last troubles: {', '.join(self.latest)}"
                )
            return
        if life == (replica.number, replica.lives):
            self.seen[0].add(caller)
            good = False if expired else self.is_good(key, sent)
            self.record(replica, status, headers, body, entitled, target, held, good, friendly)

    def is_good(self, key: int, sent: float) -> bool | None:
        """Whether *key* was valid during the whole request."""
        return self.keys.is_good(key, max(sent, self.keys.changed))

    def token(self, caller: int, entitled: list[int], key: int, *, expired: bool = False) -> str:
        scopes = [f"read:sessions:chat-{number}" for number in entitled]
        now = time.time()
        actor = {"sub": f"caller-{caller}"}
        if expired:  # by the clock of every replica
            return sign(self._claims(now - 9000, scopes, actor), SIGNING_KEYS[key])
        token = self.tokens.get((caller, key))
        if (
            token is None or self.dice.random() < 0.01
        ):  # apps mint a new token before the old one ends
            token = sign(self._claims(now, scopes, actor), SIGNING_KEYS[key])
            self.tokens[caller, key] = token
        return token

    def _claims(self, now: float, scopes: list[str], actor: dict[str, str]) -> dict[str, object]:
        lives = self.seconds + 3600
        exp = now + (lives if now > time.time() - 60 else 100)
        return claims(now - 700, *scopes, sub=ENVIRONMENT_ID, act=actor, exp=int(exp))

    def record(
        self,
        replica: Replica,
        status: int,
        headers: dict[bytes, bytes],
        body: bytes,
        entitled: list[int],
        target: int,
        held: float | None,
        good: bool | None,
        friendly: bool,
    ) -> None:
        findings, now = self.findings, time.monotonic()
        findings.answers[status] += 1
        named = target in entitled
        if status == 200:
            age = float(headers[b"age"])
            self.seen[1].add(target)
            findings.unentitled += not named or good is False
            findings.unentitled += json.loads(body)["externalId"] != f"chat-{target}"
            findings.oldest = max(findings.oldest, age)
            if age > MAX_STRETCH + STALE_IF_ERROR + 1:
                findings.too_old += 1
                self.report(f"replica {replica.number}: {headers[b'cache-status']!r}, {age:.0f} s")
            loaded = now - age - 1
            kept = loaded > self.purged.get(target, -NOTICED) + NOTICED
            if named and kept and loaded > replica.loaded.get(target, 0.0):
                replica.loaded[target] = loaded
        elif status == 401:
            findings.wrong_refusals += good is True
        elif status == 500:
            findings.avoidable_errors += 1
            self.report(f"replica {replica.number}: {body!r}")
        elif status == 403:
            findings.wrong_refusals += named and not friendly
        elif status >= 500 and named and held is not None and target in replica.loaded:
            age = now - held
            if age < STALE_IF_ERROR - 2:
                findings.avoidable_errors += 1
                self.report(f"replica {replica.number}, with a copy {age:.0f} s old: {body!r}")

    async def hurried(self, number: int) -> None:
        """Act as one caller who sends requests to each replica in turn, as fast as they answer."""
        caller = CALLERS + number
        times = self.answered[number]
        connections: dict[tuple[int, int], Connection] = {}
        turn = number
        while time.monotonic() < self.until:
            turn += 1
            replica = self.replicas[turn % REPLICAS]
            if not replica.up:
                await asyncio.sleep(0.01)
                continue
            life = replica.number, replica.lives
            connection = connections.setdefault(life, Connection(replica.port))
            token = self.token(caller, [number], min(self.keys.good))
            sent = time.monotonic()
            try:
                async with asyncio.timeout(10):
                    status, _, _ = await connection.get(f"chat-{number}", token)
            except (OSError, EOFError, TimeoutError):
                connection.close()
                connections.pop(life, None)
                await asyncio.sleep(0.05)
                continue
            self.findings.answers[status] += 1
            if status in (200, 502, 503, 504):  # counted by the limit, and allowed
                times.append((sent, time.monotonic()))
            await asyncio.sleep(0.005)
        for connection in connections.values():
            connection.close()

    # -- figures

    async def watch(self) -> None:
        """Measure the replica that is never killed, and report progress."""
        every, reported = max(0.5, min(5.0, self.seconds / 30)), self.began
        while time.monotonic() < self.until:
            await asyncio.sleep(every)
            self.samples.append((time.monotonic() - self.began, self.measured()[0]))
            if time.monotonic() - reported > max(5.0, self.seconds / 60):
                reported = time.monotonic()
                findings = self.findings
                self.report(
                    f"{reported - self.began:7.0f} s  {findings.answers.total()} answers, "
                    f"{findings.done.total()} troubles, broken: {findings.broken() or 'nothing'}"
                )

    def measured(self) -> tuple[int, int, float]:
        replica = self.replicas[0]
        pid = replica.process.pid
        return resident(pid), descriptors(pid), replica.tasks

    async def calm_down(self) -> None:
        """Let everything end, and measure what remains."""
        self.upstream.weather("fine")
        for replica in self.replicas:
            replica.jump(0.0)
        await asyncio.sleep(2.5)
        # Loads of refused browsers have their turns, and idle connections are kept for a while.
        ends = time.monotonic() + IDLE_SECONDS + EPOCH + 30
        while (
            self.measured()[1] > self.at_first[1] + 5
            or any(metric(replica, "bff_loads_in_flight") for replica in self.replicas)
        ) and time.monotonic() < ends:
            await asyncio.sleep(0.2)
        for replica in self.replicas:
            self.findings.loads_left += metric(replica, "bff_loads_in_flight")
            left = metric(replica, "bff_connections")
            self.findings.connections_left = max(self.findings.connections_left, left)
        for name, column in (("grown_descriptors", 1), ("grown_tasks", 2)):
            setattr(self.findings, name, self.measured()[column] - self.at_first[column])

    def conclude(self) -> None:
        findings = self.findings
        findings.callers, findings.sessions = len(self.seen[0]), len(self.seen[1])
        # By then the caches are nearly full.
        warm = [sample for sample in self.samples if sample[0] > self.seconds / 3]
        quarter = max(1, len(warm) // 4)
        first, last = (
            sorted(size for _, size in some)[len(some) // 2]
            for some in (warm[:quarter], warm[-quarter:])
        )
        findings.grown_bytes = last - first
        calls = self.upstream.calls()
        findings.calls = len(calls)
        used = self.most([(call, call) for call in calls], BUDGET, self.noted_late)
        findings.budget_used, findings.most_calls_in_calm = used
        for times in self.answered.values():
            share, most = self.most(times, RATE, lambda *_: 0.0)
            findings.limit_used = max(findings.limit_used, share)
            findings.most_answers_in_calm = max(findings.most_answers_in_calm, most)

    def most(
        self,
        times: list[tuple[float, float]],
        limit: int,
        late: Callable[[float, float], float],
    ) -> tuple[float, int]:
        """The most requests within a window: as a share of the bound, and as a number in calm."""
        times = sorted(times, key=lambda pair: pair[1])
        share, calm = 0.0, 0
        ends = [end for _, end in times]
        for begin in sorted(begin for begin, _ in times):
            lo, hi = bisect_left(ends, begin), bisect_left(ends, begin + WINDOW)
            number = sum(1 for began, _ in times[lo:hi] if began >= begin)
            window = begin, begin + WINDOW
            more = self.without_store(*window) + late(*window)
            share = max(share, round(number / (limit * (WINDOW + 1 + more)), 3))
            if not more:
                calm = max(calm, number)
        return share, calm

    def without_store(self, begin: float, end: float) -> float:
        """Seconds of a window without the store, plus one for each restart of the store.

        In these seconds the replicas may spend as much again: each one alone spends its share, and
        a restarted store has lost its counts.
        """
        alone = sorted(
            (since - 1, ended + 1)
            for replica in self.replicas
            for since, ended in replica.alone
            if since - 1 < end and ended + 1 > begin
        )
        total, reached = 0.0, begin
        for since, ended in alone:
            since, ended = max(since, reached), min(ended, end)  # noqa: PLW2901
            total += max(0.0, ended - since)
            reached = max(reached, ended)
        return total + sum(begin - 1 < moment < end for moment in self.emptied)

    def noted_late(self, begin: float, end: float) -> float:
        """Seconds of calls that upstream recorded in a window, though they came before it."""
        return sum(seconds for thaw, seconds in self.late if begin - 1 < thaw < end)


@contextmanager
def frozen(process: subprocess.Popen):
    """Stop a process without a notice to anyone."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def run(seconds: float, *, calm: bool = False, seed: int = 1) -> Findings:
    """Soak for *seconds* and report progress; *calm* causes no trouble."""
    report = partial(print, flush=True)
    return asyncio.run(Soak(seconds, seed, report, calm=calm).run())

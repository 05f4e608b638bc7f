"""Days of bad weather, in minutes: thousands of callers while everything around them fails.

Three replicas, a store and an upstream, each a process of its own and each killed, frozen and
started again; upstream also answers badly, signing and secret keys are rotated by file, clocks
jump, sessions are purged. Callers on real sockets ask for what is theirs and for what is not, some
faster than they may. At the end there is a figure for each promise, and whether it held.

One replica lives through all of it: what grows, grows there.
"""

import asyncio
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter, defaultdict
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
from support.world import ENVIRONMENT_ID, PATH, Gateway, claims, sign

from bff.demo.upstream import session

HERE = Path(__file__).parent
SIGNING_KEYS = [f"soak-signing-key-0123456789abcdef-{number}" for number in range(3)]
REPLICAS, CALLERS, SESSIONS, TABS, HURRIED = 3, 3000, 1000, 40, 3
BUDGET, RATE = 50, 5
"""A second, both."""
TTL, STALE_WHILE_REVALIDATE, STALE_IF_ERROR = 1.0, 1.0, 10.0
STRETCH = SESSIONS / BUDGET
NOTICED = 4.0
"""Seconds until every replica goes by a file that changed."""
WINDOW = 5.0
"""Seconds over which calls and answers are counted."""


@dataclass
class Findings:
    """What was seen. Of a promise, 0 is kept."""

    seconds: float = 0.0
    answers: Counter = field(default_factory=Counter)
    done: Counter = field(default_factory=Counter)
    """What was done to whom."""
    callers: int = 0
    sessions: int = 0
    unentitled: int = 0
    """Answers with a session for who may not read it, or of another session."""
    wrong_refusals: int = 0
    """401 or 403 for who may."""
    avoidable_errors: int = 0
    """5xx by a replica that had a copy which could have been served."""
    too_old: int = 0
    oldest: float = 0.0
    lost: int = 0
    """Requests without an answer, but for those that a kill cut off."""
    calls: int = 0
    budget_used: float = 0.0
    """The most calls upstream in `WINDOW` seconds, over what may be: beyond 1 it was exceeded."""
    most_calls_in_calm: int = 0
    """The same as a number, where all replicas had the store."""
    limit_used: float = 0.0
    most_answers_in_calm: int = 0
    grown_bytes: int = 0
    grown_descriptors: int = 0
    grown_tasks: float = 0.0
    connections_left: float = 0.0
    loads_left: float = 0.0

    def broken(self) -> list[str]:
        """The promises that did not hold."""
        return [promise for promise, broken in PROMISES.items() if broken(self)]

    def lines(self) -> str:
        """One figure a line."""
        told = {n: dict(v) if isinstance(v, Counter) else v for n, v in vars(self).items()}
        return "\n".join(f"{name:24} {value}" for name, value in told.items())


PROMISES: dict[str, Callable[[Findings], object]] = {
    "an unentitled caller was answered": lambda found: found.unentitled,
    "an entitled caller was refused as if it were not": lambda found: found.wrong_refusals,
    "a 5xx while a usable copy existed": lambda found: found.avoidable_errors,
    "an answer beyond the age bounds": lambda found: found.too_old,
    "an answer was lost": lambda found: found.lost,
    "the budget was exceeded": lambda found: found.budget_used > 1,
    "a limit was exceeded": lambda found: found.limit_used > 1,
    "memory grew": lambda found: found.grown_bytes > 24 * 1024 * 1024,
    "descriptors grew": lambda found: found.grown_descriptors > 15,
    "tasks grew": lambda found: found.grown_tasks > 15,
    "connections were left open": lambda found: found.connections_left > 2,
    "loads were left in flight": lambda found: found.loads_left > 0,
    "nothing was answered": lambda found: not found.answers[200],
}
"""How each would be broken."""


class Replica(Gateway):
    """`bff serve` with a clock that jumps."""

    def __init__(self, number: int, upstream_port: int, folder: Path, store: str) -> None:
        super().__init__(
            upstream_port,
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
        """When the newest copy that it answered with was loaded, by session."""
        self.alone: list[list[float]] = []
        """When it was without the store: since, until."""
        self.lock = asyncio.Lock()
        file = folder / f"replica-{number}"
        file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), 16)
        self._command = [sys.executable, str(HERE / "replica.py"), str(file)]

    def begin(self) -> None:
        self.lives += 1
        self.loaded.clear()
        self.alone.append([time.monotonic(), float("inf")])
        self.__enter__()
        self.up = True

    def end(self) -> None:
        self.up = False
        self.process.kill()
        self.__exit__()
        self.alone[-1][1] = min(self.alone[-1][1], time.monotonic())

    def heard(self, line: str) -> None:
        """Follow what it says of the store; nothing is kept, for a run may take days."""
        if '"store_there"' in line:
            self.alone[-1][1] = time.monotonic()
        elif '"store_away"' in line and self.alone[-1][1] < float("inf"):
            self.alone.append([time.monotonic(), float("inf")])

    def _read(self) -> None:
        for line in self.process.stdout:
            self.heard(line)

    def jump(self, seconds: float) -> None:
        struct.pack_into("d", self._shared, 0, seconds)

    @property
    def tasks(self) -> float:
        return struct.unpack_from("d", self._shared, 8)[0]


class Upstream:
    """The process, and what it is told."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.lock = asyncio.Lock()
        self._folder = folder
        (folder / "upstream").write_bytes(bytes(2))
        with (folder / "upstream").open("r+b") as opened:
            self._told = mmap.mmap(opened.fileno(), 2)
        self.keys({0})

    def begin(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "upstream.py", str(self.port), str(SESSIONS), self._folder],
            env=os.environ | {"PYTHONPATH": f"{HERE.parent.parent}:{HERE.parent}"},
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def weather(self, kind: str) -> None:
        self._told[0] = WEATHER.index(kind)

    def keys(self, numbers: set[int]) -> None:
        self._told[1] = sum(1 << number for number in numbers)

    def calls(self) -> list[float]:
        data = (self._folder / "calls").read_bytes()
        return [moment for (moment,) in struct.iter_unpack("d", data)]


class Connection:
    """A browser's kept connection: one request at a time, and no more of HTTP than that takes."""

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


@dataclass
class Keys:
    """Which signing keys are good, and since when it has been so."""

    good: set[int]
    changed: float = float("-inf")
    before: set[int] = field(default_factory=set)

    def verdict(self, key: int, now: float) -> bool | None:
        """Whether *key* is good; None while not every replica may know."""
        if now - self.changed < NOTICED and (key in self.good) != (key in self.before):
            return None
        return key in self.good


class Soak:
    """One run; *seed* decides everything but the timing."""

    def __init__(
        self, seconds: float, seed: int, tell: Callable[[str], None], *, calm: bool
    ) -> None:
        self.calm = calm
        self.seconds = seconds
        self.dice = random.Random(seed)
        self.found = Findings()
        self.tell = tell
        self.keys = Keys({0})
        self.answered: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        """Of those in a hurry: when they asked and when they were answered."""
        self.emptied: list[float] = []
        """When the store began anew."""
        self.late: list[tuple[float, float]] = []
        """When upstream thawed, and how many seconds of calls it noted then."""
        self.seen: tuple[set[int], set[int]] = (set(), set())
        self.tokens: dict[tuple[int, int], str] = {}
        self.samples: list[tuple[float, int]] = []
        """Seconds, and bytes of memory."""

    async def run(self) -> Findings:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory()))
            self.write("signing_keys", SIGNING_KEYS[:1])
            self.write("secret_keys", SECRET_KEYS[:1])
            self.store = stack.enter_context(Engine("valkey", self.folder))
            self.store_lock = asyncio.Lock()
            self.upstream = Upstream(self.folder)
            self.upstream.begin()
            stack.callback(self.upstream.end)
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
            self.found.seconds = round(time.monotonic() - self.began, 1)
            await self.calm_down()
            self.conclude()
        return self.found

    def write(self, name: str, keys: list[str]) -> None:
        (self.folder / f"{name}.new").write_text("\n".join(keys))
        (self.folder / f"{name}.new").replace(self.folder / name)

    # -- the weather

    async def storm(self, number: int) -> None:
        """Deal out every trouble, one after another, and then all of them again."""
        deck: list[Callable[[], Awaitable[None]]] = []
        troubles = [
            *(self.kill_upstream, self.freeze_upstream, self.turn_weather, self.turn_weather),
            *(self.kill_store, self.freeze_store, self.kill_replica, self.freeze_replica),
            *(self.jump, self.jump, self.purge, self.rotate_signing, self.rotate_secret),
        ]
        await asyncio.sleep(0.3 * number)
        while time.monotonic() < self.until - 1:
            if not deck:
                deck = troubles.copy()
                self.dice.shuffle(deck)
            trouble = deck.pop()
            await trouble()
            self.found.done[trouble.__name__.replace("_", " ")] += 1
            await self.pause()

    async def pause(self, most: float = 3.0) -> None:
        await asyncio.sleep(min(most, self.seconds / 60) * (0.5 + self.dice.random()))

    async def turn_weather(self) -> None:
        self.upstream.weather(self.dice.choice(WEATHER))
        await self.pause()
        self.upstream.weather("fine")

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
        async with replica.lock:
            replica.end()
            await self.pause()
            await asyncio.to_thread(replica.begin)

    async def freeze_replica(self) -> None:
        replica = self.dice.choice(self.replicas)
        async with replica.lock:
            with frozen(replica.process):
                await self.pause(2)

    async def jump(self) -> None:
        """Each replica's wall clock for itself, and some of them back to the truth."""
        for replica in self.replicas:
            replica.jump(self.dice.choice([0.0, 0.5, -0.5, 7.0, -7.0, 60.0, 600.0, -600.0]))

    async def purge(self) -> None:
        number, replica = self.dice.randrange(SESSIONS), self.dice.choice(self.replicas)
        if replica.up:
            for one in self.replicas:
                one.loaded.pop(number, None)
            url = f"{replica.ops_url}/cache/sessions/chat-{number}"
            try:
                async with httpx2.AsyncClient(trust_env=False, timeout=5) as operator:
                    await operator.delete(url)
            except httpx2.TransportError:
                pass  # killed meanwhile
            for one in self.replicas:
                one.loaded.pop(number, None)

    async def rotate_signing(self) -> None:
        """Write other keys into the file: of all there are, one or two."""
        now = time.monotonic()
        if now - self.keys.changed > NOTICED + 1:
            good = set(self.dice.sample(range(3), self.dice.choice([1, 2])))
            self.keys = Keys(good, now, self.keys.good)
            self.write("signing_keys", [SIGNING_KEYS[number] for number in sorted(good)])

    async def rotate_secret(self) -> None:
        """As SECURITY.md says: the new one before the old, revoke the old, leave it out."""
        old = self.found.done["secret keys rotated"] % 3
        new = (old + 1) % 3
        if time.monotonic() > self.until - NOTICED - 2:
            return
        self.found.done["secret keys rotated"] += 1
        self.upstream.keys({old, new})
        self.write("secret_keys", [SECRET_KEYS[new], SECRET_KEYS[old]])
        await asyncio.sleep(NOTICED / 2 if self.seconds < 60 else NOTICED)
        self.upstream.keys({new})
        await self.pause()
        self.write("secret_keys", [SECRET_KEYS[new]])
        await asyncio.sleep(1)

    # -- browsers

    async def tab(self, number: int) -> None:
        """One browser tab after another, each of some caller and at some replica."""
        dice = random.Random(number)
        connections: dict[tuple[int, int], Connection] = {}
        while time.monotonic() < self.until:
            caller = dice.randrange(CALLERS)
            theirs = [caller % SESSIONS, caller * 7 % SESSIONS]
            wanted = dice.choice([*theirs, *theirs, dice.randrange(SESSIONS)])
            replica = dice.choice(self.replicas)
            if replica.up:
                await self.visit(dice, connections, replica, caller, theirs, wanted)
            await asyncio.sleep(dice.random() * 0.1)
        for connection in connections.values():
            connection.close()

    async def visit(
        self,
        dice: random.Random,
        connections: dict[tuple[int, int], Connection],
        replica: Replica,
        caller: int,
        theirs: list[int],
        wanted: int,
    ) -> None:
        key = dice.choice([*sorted(self.keys.good) * 3, 0, 1, 2])
        expired = dice.random() < 0.02
        token = self.token(caller, theirs, key, expired=expired)
        friendly = dice.random() < 0.3
        id_ = session(wanted)["id"] if friendly else f"chat-{wanted}"
        place = replica.number, replica.lives
        connection = connections.setdefault(place, Connection(replica.port))
        if dice.random() < 0.01:  # and some leave before they are answered
            asyncio.get_running_loop().call_later(0.001, connection.close)
        sent, known = time.monotonic(), replica.loaded.get(wanted)
        try:
            async with asyncio.timeout(10):
                status, headers, body = await connection.get(id_, token)
        except (OSError, EOFError, AttributeError, TimeoutError) as exc:
            left = connection._writer is None
            connection.close()
            connections.pop(place, None)
            await asyncio.sleep(0.5)  # a kill cuts off; nothing else may
            alive = replica.up and place == (replica.number, replica.lives)
            if alive and not left:
                self.found.lost += 1
                self.tell(f"lost: {exc!r} after {time.monotonic() - sent:.1f} s")
            return
        if place == (replica.number, replica.lives):
            self.seen[0].add(caller)
            good = False if expired else self.verdict(key, sent)
            self.judge(replica, status, headers, body, theirs, wanted, known, good, friendly)

    def verdict(self, key: int, sent: float) -> bool | None:
        """Whether a token of *key* was good all the time that the request was under way."""
        return self.keys.verdict(key, max(sent, self.keys.changed))

    def token(self, caller: int, theirs: list[int], key: int, *, expired: bool = False) -> str:
        scopes = [f"read:sessions:chat-{number}" for number in theirs]
        now = time.time()
        actor = {"sub": f"caller-{caller}"}
        if expired:  # by every clock
            return sign(self._claims(now - 9000, scopes, actor), SIGNING_KEYS[key])
        known = self.tokens.get((caller, key))
        if known is None or self.dice.random() < 0.01:  # minted anew before its end, as apps do
            known = sign(self._claims(now, scopes, actor), SIGNING_KEYS[key])
            self.tokens[caller, key] = known
        return known

    def _claims(self, now: float, scopes: list[str], actor: dict[str, str]) -> dict[str, object]:
        lives = self.seconds + 3600
        exp = now + (lives if now > time.time() - 60 else 100)
        return claims(now - 700, *scopes, sub=ENVIRONMENT_ID, act=actor, exp=int(exp))

    def judge(
        self,
        replica: Replica,
        status: int,
        headers: dict[bytes, bytes],
        body: bytes,
        theirs: list[int],
        wanted: int,
        known: float | None,
        good: bool | None,
        friendly: bool,
    ) -> None:
        found, now = self.found, time.monotonic()
        found.answers[status] += 1
        named = wanted in theirs
        if status == 200:
            age = float(headers[b"age"])
            self.seen[1].add(wanted)
            found.unentitled += not named or good is False
            found.unentitled += json.loads(body)["externalId"] != f"chat-{wanted}"
            found.oldest = max(found.oldest, age)
            found.too_old += age > max(TTL, STRETCH) + STALE_IF_ERROR + 1
            loaded = now - age - 1
            if named and loaded > replica.loaded.get(wanted, 0.0):
                replica.loaded[wanted] = loaded
        elif status == 401:
            found.wrong_refusals += good is True
        elif status == 403:
            found.wrong_refusals += named and not friendly
        elif status >= 500 and named and known is not None and wanted in replica.loaded:
            age = now - known
            if age < STALE_IF_ERROR - 2:
                found.avoidable_errors += 1
                self.tell(f"replica {replica.number}, with a copy {age:.0f} s old: {body!r}")

    async def hurried(self, number: int) -> None:
        """One caller who asks every replica in turn, as fast as they answer."""
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
            place = replica.number, replica.lives
            connection = connections.setdefault(place, Connection(replica.port))
            token = self.token(caller, [number], min(self.keys.good))
            sent = time.monotonic()
            try:
                async with asyncio.timeout(10):
                    status, _, _ = await connection.get(f"chat-{number}", token)
            except (OSError, EOFError, TimeoutError):
                connection.close()
                connections.pop(place, None)
                await asyncio.sleep(0.05)
                continue
            self.found.answers[status] += 1
            if status in (200, 502, 503, 504):  # counted, and not over the limit
                times.append((sent, time.monotonic()))
            await asyncio.sleep(0.005)
        for connection in connections.values():
            connection.close()

    # -- what is found

    async def watch(self) -> None:
        """Measure the replica that lives on, and say from time to time that it goes well."""
        every, told = max(0.5, min(5.0, self.seconds / 30)), self.began
        while time.monotonic() < self.until:
            await asyncio.sleep(every)
            self.samples.append((time.monotonic() - self.began, self.measured()[0]))
            if time.monotonic() - told > max(5.0, self.seconds / 60):
                told = time.monotonic()
                found = self.found
                self.tell(
                    f"{told - self.began:7.0f} s  {found.answers.total()} answers, "
                    f"{found.done.total()} troubles, broken: {found.broken() or 'nothing'}"
                )

    def measured(self) -> tuple[int, int, float]:
        replica = self.replicas[0]
        pid = replica.process.pid
        return resident(pid), descriptors(pid), replica.tasks

    async def calm_down(self) -> None:
        """Let everything end, and see what is left."""
        self.upstream.weather("fine")
        for replica in self.replicas:
            replica.jump(0.0)
        await asyncio.sleep(2.5)
        for replica in self.replicas:
            self.found.loads_left += metric(replica, "bff_loads_in_flight")
            left = metric(replica, "bff_connections")
            self.found.connections_left = max(self.found.connections_left, left)
        for name, column in (("grown_descriptors", 1), ("grown_tasks", 2)):
            setattr(self.found, name, self.measured()[column] - self.at_first[column])

    def conclude(self) -> None:
        found = self.found
        found.callers, found.sessions = len(self.seen[0]), len(self.seen[1])
        # Caches are full by then, or as good as.
        warm = [sample for sample in self.samples if sample[0] > self.seconds / 3]
        quarter = max(1, len(warm) // 4)
        first, last = (
            sorted(size for _, size in some)[len(some) // 2]
            for some in (warm[:quarter], warm[-quarter:])
        )
        found.grown_bytes = last - first
        calls = self.upstream.calls()
        found.calls = len(calls)
        used = self.most([(call, call) for call in calls], BUDGET, self.noted_late)
        found.budget_used, found.most_calls_in_calm = used
        for times in self.answered.values():
            share, most = self.most(times, RATE, lambda *_: 0.0)
            found.limit_used = max(found.limit_used, share)
            found.most_answers_in_calm = max(found.most_answers_in_calm, most)

    def most(
        self,
        times: list[tuple[float, float]],
        limit: int,
        late: Callable[[float, float], float],
    ) -> tuple[float, int]:
        """The most that began and ended within a window: over what may be, and in calm."""
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
        """Seconds of a window in which some replica was alone, and once more for each beginning.

        For so long as much again may be spent: a share of it by each replica that is alone. And a
        store that begins anew knows of nothing.
        """
        alone = sorted(
            (since - 1, until + 1)
            for replica in self.replicas
            for since, until in replica.alone
            if since - 1 < end and until + 1 > begin
        )
        total, reached = 0.0, begin
        for since, until in alone:
            since, until = max(since, reached), min(until, end)  # noqa: PLW2901
            total += max(0.0, until - since)
            reached = max(reached, until)
        return total + sum(begin - 1 < moment < end for moment in self.emptied)

    def noted_late(self, begin: float, end: float) -> float:
        """Seconds of calls that are in a window though they were made before it."""
        return sum(seconds for thaw, seconds in self.late if begin - 1 < thaw < end)


@contextmanager
def frozen(process: subprocess.Popen):
    """Let a process stand still, without anybody being told."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def run(seconds: float, *, calm: bool = False, seed: int = 1) -> Findings:
    """Soak for *seconds*, telling how it goes on; *calm* lets nothing fail."""
    tell = partial(print, flush=True)
    return asyncio.run(Soak(seconds, seed, tell, calm=calm).run())

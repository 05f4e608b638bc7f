"""Days of bad weather, in minutes: thousands of callers while everything around them fails.

    python tests/soak [SECONDS]

Upstream is slowed, broken and closed, the gateway is killed and started with other keys, callers
ask for what is theirs and for what is not. At the end a figure for each promise.
"""

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx2
from hostile import descriptors, metric, resident
from world import ENVIRONMENT_ID, ORIGIN, OWN_KEY, PATH, Gateway, claims, running_upstream, sign

from bff.demo.upstream import Answer, Seen, session

KEYS = [OWN_KEY, "next-signing-key-0123456789abcdefghij"]
CALLERS, SESSIONS, TABS = 2000, 1000, 40
BUDGET, RATE, TTL, STALE_IF_ERROR = 100, 120, 2.0, 60.0
WEATHER = ["fine", "fine", "fine", "500", "401", "HTML", "slow", "closes", "429"]


@dataclass
class Findings:
    seconds: float = 0.0
    answers: Counter = field(default_factory=Counter)
    unentitled: int = 0
    """Answers with a session for who may not read it, or of another session."""
    wrong_refusals: int = 0
    """401 or 403 for who may."""
    avoidable_errors: int = 0
    """5xx while a copy that could have been served was there."""
    too_old: int = 0
    most_loads_in_five_seconds: int = 0
    most_answers_to_one_caller_in_a_minute: int = 0
    lost: int = 0
    """Requests without an answer, but for those that a kill cut off."""
    kills: int = 0
    grown_bytes: int = 0
    grown_descriptors: int = 0
    loads_left: float = 0.0

    def broken(self) -> list[str]:
        """The promises that did not hold."""
        checks = {
            "an unentitled caller was answered": self.unentitled,
            "an entitled caller was refused as if it were not": self.wrong_refusals,
            "a 5xx while a usable copy existed": self.avoidable_errors,
            "an answer beyond the age bounds": self.too_old,
            "an answer was lost": self.lost,
            "the budget was exceeded": self.most_loads_in_five_seconds > BUDGET * 5.5,
            "a limit was exceeded": self.most_answers_to_one_caller_in_a_minute > 2 * RATE,
            "memory grew": self.grown_bytes > 24 * 1024 * 1024,
            "descriptors grew": self.grown_descriptors > TABS + 20,
            "loads were left in flight": self.loads_left > 0,
            "nothing was answered": not self.answers[200],
        }
        return [what for what, failed in checks.items() if failed]

    def lines(self) -> str:
        """One figure a line."""
        return "\n".join(f"{name:40} {value}" for name, value in vars(self).items())


class Soak:
    """One run; *seed* decides everything but the timing."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds = seconds
        self.dice = random.Random(seed)
        self.found = Findings()
        self.upstream = running_upstream()
        # Answers that it breaks off are its own errors, which are not what is looked for here.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        self.weather = "fine"
        self.loads: deque[float] = deque()
        self.by_caller: defaultdict[int, deque[float]] = defaultdict(deque)
        self.loaded: dict[int, float] = {}
        """When the newest copy seen of a session was loaded, in this life of the gateway."""
        self.life = 0
        self.down = asyncio.Event()
        self.keys = KEYS[:1]
        environment = self.upstream.app.environments[0]
        environment.sessions.clear()
        for number in range(SESSIONS):
            environment.add(session(number, f"chat-{number}"))
        self.upstream.app.override = self.override

    async def override(self, _: Seen) -> Answer | None:
        now = time.monotonic()
        self.loads.append(now)
        while self.loads and self.loads[0] <= now - 5.0:
            self.loads.popleft()
        most = max(self.found.most_loads_in_five_seconds, len(self.loads))
        self.found.most_loads_in_five_seconds = most
        match self.weather:
            case "500":
                return Answer(500, {"error": "down"})
            case "401":
                return Answer(401, {"error": "Invalid API key"})
            case "HTML":
                return Answer(200, b"<html>")
            case "closes":
                return Answer(200, b"", {"content-length": "99"})
            case "429":
                reset = str(int((time.time() + 1) * 1000))
                names = ("limit", "remaining", "reset")
                lines = dict(
                    zip((f"x-ratelimit-{n}" for n in names), ("9", "0", reset), strict=True)
                )
                return Answer(429, {"error": "limited"}, lines)
            case "slow":
                await asyncio.sleep(0.3)
        return None

    async def run(self) -> Findings:
        with ExitStack() as stack:
            stack.enter_context(self.upstream)
            self.gateway = self.begin()
            self.down.set()
            began = time.monotonic()
            until = began + self.seconds
            storm = asyncio.create_task(self.storm(until))
            await asyncio.gather(*(self.tab(until) for _ in range(TABS)))
            await storm
            self.found.seconds = round(time.monotonic() - began, 1)
            self.weather = "fine"
            await asyncio.sleep(1.5)
            self.found.loads_left = metric(self.gateway, "bff_loads_in_flight")
            self.measure()
            self.gateway.__exit__()
        return self.found

    def begin(self) -> Gateway:
        self.life += 1
        self.loaded.clear()
        self.by_caller.clear()
        gateway = Gateway(
            self.upstream.port,
            BFF_SIGNING_KEYS=",".join(self.keys),
            BFF_UPSTREAM_BUDGET=f"{BUDGET}/second",
            BFF_RATE_LIMIT=f"{RATE}/minute",
            BFF_IP_RATE_LIMIT="off",
            BFF_BAD_TOKEN_LIMIT="off",
            BFF_UPSTREAM_TIMEOUT="1",
            BFF_CACHE_TTL=str(TTL),
            BFF_CACHE_STALE_IF_ERROR=str(STALE_IF_ERROR),
        ).__enter__()
        self.memory: int | None = None
        return gateway

    def measure(self) -> None:
        """Compare with what this process took when it was warm; the first call says what."""
        pid = self.gateway.process.pid
        now = resident(pid), descriptors(pid)
        if self.memory is None:
            self.memory, self.files = now
        self.found.grown_bytes = max(self.found.grown_bytes, now[0] - self.memory)
        self.found.grown_descriptors = max(self.found.grown_descriptors, now[1] - self.files)

    async def storm(self, until: float) -> None:
        """Change the weather every second; kill the gateway now and then."""
        kill_every, since = max(4.0, self.seconds / 8), time.monotonic()
        warm = 3.0
        while (now := time.monotonic()) < until - 1:
            await asyncio.sleep(1)
            self.weather = self.dice.choice(WEATHER)
            if now - since > warm:
                self.measure()
            if now - since > kill_every and until - now > kill_every:
                since = now
                self.down.clear()
                self.weather = "fine"
                self.gateway.process.kill()
                self.gateway.__exit__()
                self.keys = self.dice.choice([KEYS, KEYS[::-1], KEYS[:1], KEYS[1:]])
                self.loads.clear()
                self.found.kills += 1
                self.gateway = await asyncio.to_thread(self.begin)
                self.down.set()

    async def tab(self, until: float) -> None:
        """One browser tab after another, each of some caller."""
        async with httpx2.AsyncClient(trust_env=False) as browser:
            while time.monotonic() < until:
                await self.down.wait()
                caller = self.dice.randrange(CALLERS)
                theirs = [caller % SESSIONS, caller * 7 % SESSIONS]
                wanted = self.dice.choice([*theirs, self.dice.randrange(SESSIONS)])
                await self.visit(browser, caller, theirs, wanted)
                await asyncio.sleep(self.dice.random() * 0.05)

    async def visit(
        self, browser: httpx2.AsyncClient, caller: int, theirs: list[int], wanted: int
    ) -> None:
        key = self.dice.choice(KEYS if self.dice.random() < 0.1 else self.keys)
        scopes = [f"read:sessions:chat-{number}" for number in theirs]
        token = sign(
            claims(time.time(), *scopes, sub=ENVIRONMENT_ID, act={"sub": f"caller-{caller}"}), key
        )
        friendly = self.dice.random() < 0.3
        id_ = session(wanted)["id"] if friendly else f"chat-{wanted}"
        life, good_key = self.life, key in self.keys
        sent = time.monotonic()
        try:
            reply = await browser.get(
                self.gateway.url + PATH + quote(id_, safe=""),
                headers={"authorization": f"Bearer {token}", "origin": ORIGIN},
                timeout=10,
            )
        except httpx2.TransportError:
            # A kill cuts off; nothing else may.
            if life == self.life and self.down.is_set():
                await asyncio.sleep(0.3)
                self.found.lost += life == self.life and self.down.is_set()
            return
        if life != self.life or not self.down.is_set():
            return
        self.judge(reply, caller, theirs, wanted, sent, good_key=good_key, friendly=friendly)

    def judge(
        self,
        reply: httpx2.Response,
        caller: int,
        theirs: list[int],
        wanted: int,
        sent: float,
        *,
        good_key: bool,
        friendly: bool,
    ) -> None:
        found, status, now = self.found, reply.status_code, time.monotonic()
        found.answers[status] += 1
        may = good_key and wanted in theirs
        if status == 200:
            age = float(reply.headers["age"])
            found.unentitled += not may or reply.json()["externalId"] != f"chat-{wanted}"
            stretch = SESSIONS / BUDGET
            found.too_old += age > max(TTL, stretch) + STALE_IF_ERROR + 1
            self.loaded[wanted] = max(self.loaded.get(wanted, 0.0), now - age - 1)
            times = self.by_caller[caller]
            times.append(now)
            while times[0] < now - 60:
                times.popleft()
            found.most_answers_to_one_caller_in_a_minute = max(
                found.most_answers_to_one_caller_in_a_minute, len(times)
            )
        elif status == 401:
            found.wrong_refusals += good_key
        elif status == 403 and not friendly:
            found.wrong_refusals += may
        elif status >= 500 and may:
            loaded = self.loaded.get(wanted)
            found.avoidable_errors += loaded is not None and sent - loaded < STALE_IF_ERROR - 3


def run(seconds: float, seed: int = 1) -> Findings:
    return asyncio.run(Soak(seconds, seed).run())

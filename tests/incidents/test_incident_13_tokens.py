"""Incident 13: an answer to the wrong caller; held as a property of everything at once.

A machine of random tokens, sessions, orders, times and weather upstream. What may be answered is
worked out by the pretend upstream's own reading of scopes, which shares no code with the gateway.
"""

import asyncio
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from urllib.parse import quote

import pytest
from hostile import ask, idle, told
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kinds import Kind
from world import OWN_KEY, SECRET_KEY, Clock, World, claims, sign

from bff.demo.upstream import Answer, Seen, can_read, session

OTHER_KEY = "another-signing-key-0123456789abcdef"
TTL, STALE_IF_ERROR = 2.0, 20.0
BUDGET = 5
RATE = 12

DOCUMENTS = {
    session(number)["id"]: session(number, external_id)
    for number, external_id in enumerate(
        ["chat-1", "chat-2", "chat:3/ü", None, "session", "CHAT-1", "healthz"], start=1
    )
}
IDS = [id_ for d in DOCUMENTS.values() for id_ in (d["id"], d["externalId"]) if id_]
IDS += ["no-such-chat", session(99)["id"]]

SCOPES = st.one_of(
    st.sampled_from(IDS).map(lambda id_: f"read:sessions:{id_}"),
    st.sampled_from(
        ["read:sessions", "admin", "read:all", "write:sessions:chat-1", "read:runs", "*", "read"]
    ),
    st.sampled_from(
        ["admin:sessions", "read:sessions:*", "READ:sessions", "*:sessions:chat-2", "read:all:x"]
    ),
    st.just(17),
)
WEATHER = ["fine", "fine", "500", "401", "429", "HTML", "wrong session", "slow"]


class Alone(RuleBasedStateMachine):
    """Callers, clocks and weather, at one process."""

    kind = "local"

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.tokens_of = Kind(self.kind, Path(self.folder.name))
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.world = World(self.clock)
        self.runner.run(self.start(OWN_KEY))
        self.world.upstream.environments[0].sessions.clear()
        for document in DOCUMENTS.values():
            self.world.upstream.environments[0].add(dict(document))
        self.world.upstream.override = self.override
        self.weather = "fine"
        self.gate = asyncio.Event()
        self.tokens: list[tuple[str, list[object], float, str]] = []
        self.keys = [OWN_KEY]
        self.asked: list[float] = []
        self.versions: dict[str, list[tuple[float, str]]] = {
            id_: [(self.clock.now, d["currentRunId"])] for id_, d in DOCUMENTS.items()
        }
        self.gone: dict[str, float] = {}
        self.answered: defaultdict[object, list[float]] = defaultdict(list)

    async def start(self, keys: str) -> None:
        await self.world.start(
            **{"BFF_SIGNING_KEYS": keys, **self.tokens_of.settings},
            BFF_CACHE_STALE_IF_ERROR=str(STALE_IF_ERROR),
            BFF_UPSTREAM_BUDGET=f"{BUDGET}/second",
            BFF_RATE_LIMIT=f"{RATE}/minute",
            BFF_UPSTREAM_TIMEOUT="30",
        )

    async def override(self, seen: Seen) -> Answer | None:
        weather = self.weather
        if seen.header("authorization") == f"Bearer {SECRET_KEY}":
            self.asked.append(self.clock.now)
        elif weather in ("401", "429"):
            weather = "fine"  # what it says of the key, it does not say of a token
        match weather:
            case "500":
                return Answer(500, {"error": "down"})
            case "401":
                return Answer(401, {"error": "Invalid API key"})
            case "429":
                reset = str(int((self.clock.wall + 3) * 1000))
                names = ("limit", "remaining", "reset")
                values = ("750", "0", reset)
                lines = {f"x-ratelimit-{n}": v for n, v in zip(names, values, strict=True)}
                return Answer(429, {"error": "limited"}, lines)
            case "HTML":
                return Answer(200, b"<html>")
            case "wrong session":
                documents = list(self.world.upstream.environments[0].sessions.values())
                wrong = [d for d in documents if quote(d["id"]) not in seen.raw_path]
                return Answer(200, wrong[len(self.asked) % len(wrong)]) if wrong else None
            case "slow":
                await self.gate.wait()
        return None

    @rule(scopes=st.lists(SCOPES, max_size=4), ttl=st.sampled_from([-1, 1, 8, 900]))
    def mint(self, scopes: list[object], ttl: int) -> None:
        key = self.keys[len(self.tokens) % len(self.keys)]
        expires = int(self.clock.wall) + ttl
        self.tokens.append((self.made(scopes, expires, key), scopes, expires, key))

    def made(self, scopes: list[object], expires: int, key: str, /) -> str:
        return sign(claims(self.clock.wall, *scopes, exp=expires), key)

    @precondition(lambda self: self.tokens)
    @rule(
        visits=st.lists(
            st.tuples(st.integers(0, 99), st.sampled_from(IDS), st.booleans()),
            min_size=1,
            max_size=6,
        )
    )
    def visit(self, visits: list[tuple[int, str, bool]]) -> None:
        self.runner.run(self._visit(visits))

    async def _visit(self, visits: list[tuple[int, str, bool]]) -> None:
        tokens = [self.tokens[-1 - n % len(self.tokens)] for n, _, _ in visits]
        requests = [
            asyncio.create_task(
                ask(
                    self.world,
                    quote(id_, safe=""),
                    token[0],
                    if_none_match=b"*" if known else None,
                )
            )
            for token, (_, id_, known) in zip(tokens, visits, strict=True)
        ]
        if self.weather == "slow":
            for _ in range(20):
                await asyncio.sleep(0)
            self.gate.set()
        replies = await asyncio.gather(*requests)
        self.gate.clear()
        for token, (_, id_, _), reply in zip(tokens, visits, replies, strict=True):
            self.check(token, id_, reply)

    def check(self, token: tuple[str, list[object], float, str], id_: str, reply: object) -> None:
        _, scopes, expires, key = token
        valid = self.clock.wall < expires and key in self.keys
        if not valid:
            assert reply.status == 401
            return
        assert reply.status != 401, "no trouble upstream is told with a 401"
        document = self.find(id_)
        may_read = can_read(tuple(map(str, scopes)), document or {"id": id_, "externalId": id_})
        if reply.status in (200, 304):
            assert document is not None
            assert may_read, (scopes, id_)
            age = int(told(reply)["age"])
            assert age <= TTL + self.stretch() + STALE_IF_ERROR
            self.answered[str(sorted({s for s in scopes if isinstance(s, str)}))].append(
                self.clock.now
            )
        if reply.status == 200:
            shown = json.loads(reply.body)
            assert id_ in (shown["id"], shown["externalId"])
            assert "triggerConfig" not in shown
            self.check_version(document["id"], shown["currentRunId"], age)
        if not may_read:
            assert reply.status in (403, 429), "nothing of what is not named is told"
        if reply.status == 403:
            # An alias that could not be looked up is told as what it might be: not this caller's.
            named = can_read(tuple(map(str, scopes)), {"id": id_, "externalId": id_})
            assert not named

    def find(self, id_: str) -> dict | None:
        return next((d for d in DOCUMENTS.values() if id_ in (d["id"], d["externalId"])), None)

    def stretch(self) -> float:
        return len(DOCUMENTS) / BUDGET

    def check_version(self, id_: str, run: str, age: int) -> None:
        """What is shown was the truth no longer ago than the answer says."""
        versions = self.versions[id_]
        index = [run for _, run in versions].index(run)
        until = versions[index + 1][0] if index + 1 < len(versions) else self.clock.now
        assert until >= self.clock.now - age - 1

    @rule(seconds=st.sampled_from([0.1, 0.9, 1.0, 2.0, 3.0, 7.5, 21.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(weather=st.sampled_from(WEATHER))
    def change_weather(self, weather: str) -> None:
        self.weather = weather

    @rule(id_=st.sampled_from(list(DOCUMENTS)))
    def go_on(self, id_: str) -> None:
        run = f"run_{len(self.versions[id_])}"
        self.world.upstream.environments[0].sessions[id_]["currentRunId"] = run
        self.versions[id_].append((self.clock.now, run))

    @rule(keys=st.sampled_from([[OWN_KEY], [OTHER_KEY, OWN_KEY], [OTHER_KEY]]))
    def rotate(self, keys: list[str]) -> None:
        self.keys = keys
        self.asked.clear()  # a new process has a new budget
        self.answered.clear()
        self.runner.run(self.start(",".join(keys)))

    @rule()
    def settle(self) -> None:
        self.gate.set()
        self.runner.run(idle(self.world))
        self.gate.clear()

    @invariant()
    def the_budget_holds(self) -> None:
        for first, last in zip(self.asked, self.asked[BUDGET:], strict=False):
            assert last - first >= 1.0 - 1e-9, "more loads in a second than the budget"

    @invariant()
    def the_limit_holds(self) -> None:
        for times in self.answered.values():
            for first, last in zip(times, times[2 * RATE :], strict=False):
                assert last - first >= 60.0

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.gate.set()
            self.runner.run(self.world.__aexit__())
            self.runner.close()
            self.folder.cleanup()


class Opaque(Alone):
    """The same where upstream, or another issuer's key, verifies: some tokens are forged."""

    kind = "upstream"

    def made(self, scopes: list[object], expires: int, _key: str) -> str:
        number = len(self.tokens)
        payload = self.tokens_of.claims(self.clock.wall, *scopes, exp=expires, jti=str(number))
        return self.tokens_of.sign(payload, forged=number % 3 == 2)

    def check(self, token: tuple[str, list[object], float, str], id_: str, reply: object) -> None:
        text, scopes, expires, _ = token
        forged = [made for made, *_ in self.tokens].index(text) % 3 == 2
        if not forged:
            super().check((text, scopes, expires, self.keys[0]), id_, reply)
        elif self.clock.wall >= expires:
            assert reply.status == 401
        else:  # 403 before anybody asks, 5xx where upstream could not say
            assert reply.status in (401, 403, 429, 502, 503)

    @rule(keys=st.sampled_from([[OWN_KEY], [OTHER_KEY]]))
    def rotate(self, keys: list[str]) -> None:
        self.asked.clear()
        self.answered.clear()
        self.runner.run(self.start(keys[0]))


class Foreign(Opaque):
    """Tokens of a source."""

    kind = "source"


for machine, examples in ((Opaque, 60), (Foreign, 20)):
    machine.TestCase.settings = settings(
        max_examples=int(os.environ.get("EXAMPLES", examples)),
        stateful_step_count=40,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # to shrink takes minutes; it shows its steps
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("machine", [Opaque, Foreign])
def test_13_the_same_holds_for_tokens_that_others_verify(machine: type[Alone]) -> None:
    machine.TestCase("runTest").runTest()

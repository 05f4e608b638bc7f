"""Incident 13, an answer to the wrong caller, as a property of the whole gateway.

A state machine makes random tokens, requests and upstream failures, at one or more replicas with or
without a store. Meanwhile keys, policy and revocations change and sessions are purged. The pretend
upstream decides which answers are right; its reading of scopes shares no code with the gateway. The
store is a stand-in whose clock the test moves (`standin`).
"""

import asyncio
import json
import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.hostile import ask, idle, told
from support.kinds import Kind
from support.standin import Shared, StandIn
from support.virtual_time import VirtualLoop
from support.world import FRIENDLY, OWN_KEY, PATH, SECRET_KEY, Clock, World, sign

from bff.demo.upstream import Answer, Seen, can_read, session
from bff.response import Response

STORE = -1
"""The store, among the numbers of replicas that have a revocation."""
NEXT_SECRET_KEY = "tr_dev_sk_NEXTsentinel00000000001"
OTHER_KEY = "another-signing-key-0123456789abcdef"
TTL, STALE_IF_ERROR = 2.0, 20.0
BUDGET = 2
RATE = 8

DOCUMENTS = {
    session(number)["id"]: session(number, external_id)
    for number, external_id in enumerate(
        ["chat-1", "chat-2", "chat:3/ü", None, "session", "CHAT-1", "healthz"], start=1
    )
}
IDS = [id_ for d in DOCUMENTS.values() for id_ in (d["id"], d["externalId"]) if id_]
IDS += ["no-such-chat", session(99)["id"]]
HOT = ["chat-1", session(1)["id"]]
SOME_ID = st.one_of(st.sampled_from(HOT), st.sampled_from(HOT), st.sampled_from(IDS))

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
GOOD = ["read:sessions", "read:sessions:chat-1", f"read:sessions:{HOT[1]}"]
VISITS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), SOME_ID, st.booleans()), min_size=2, max_size=8
)
"""For each request: replica, token (counted from the last), id, and whether it is conditional."""
WEATHER = ["fine", "fine", "500", "401", "429", "HTML", "wrong session", "slow"]


@dataclass(eq=False)
class Minted:
    text: str
    scopes: list[object]
    issued: int
    expires: int
    key: str
    forged: bool


@dataclass(eq=False)
class Revoked:
    """A revocation, and the replicas that have it."""

    kind: str
    value: str
    before: float
    replicas: set[int]


class Machine(RuleBasedStateMachine):
    """Callers, clocks, upstream failures and operators."""

    kind = "local"

    @initialize(number=st.sampled_from([1, 2, 2, 3]), alone=st.booleans())
    def begin(self, number: int, alone: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.tokens_of = Kind(self.kind, Path(self.folder.name))
        # Requests wait for turns of the budget, which come while the test's clock stands still.
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.clock = Clock()
        self.shared = None if alone and number == 1 else Shared(lambda: self.clock.now)
        self.worlds = [World(self.clock) for _ in range(number)]
        self.upstream = self.worlds[0].upstream
        for world in self.worlds:
            world.upstream = self.upstream
        environment = self.upstream.environments[0]
        environment.sessions.clear()
        for document in DOCUMENTS.values():
            environment.add(dict(document))
        environment.additional_keys[NEXT_SECRET_KEY] = ("read:sessions",)
        self.upstream.override = self.override
        self.weather = "fine"
        self.gate = asyncio.Event()
        self.tokens: list[Minted] = []
        self.keys, self.plan = [OWN_KEY], False
        self.secrets = [SECRET_KEY, NEXT_SECRET_KEY]
        self.calls: list[float] = []
        self.versions: dict[str, list[tuple[float, str]]] = {
            id_: [(self.clock.now, d["currentRunId"])] for id_, d in DOCUMENTS.items()
        }
        self.purged: dict[str, float] = {}
        self.answered: defaultdict[object, list[float]] = defaultdict(list)
        self.loaded: dict[tuple[int, str], float] = {}
        """By replica and session: the earliest load time of the newest copy in an answer."""
        self.revoked: list[Revoked] = []
        self.cut: set[int] = set()
        """Replicas that cannot reach the store."""
        self.trouble: list[float] = []
        """Times at which a replica lost the store, or the store restarted."""
        for index in range(number):
            self.runner.run(self.start(index))
        for scope in GOOD:
            self.mint([scope], 900)

    async def start(self, index: int) -> None:
        def connect(_: object, **arguments: Any) -> StandIn:
            assert self.shared is not None
            return StandIn(self.shared, **arguments)

        with patch("bff.app.Store", connect):
            await self.worlds[index].start(
                **{"BFF_SIGNING_KEYS": ",".join(self.keys), **self.tokens_of.settings},
                TRIGGER_SECRET_KEY=",".join(self.secrets),
                BFF_CACHE_STALE_IF_ERROR=str(STALE_IF_ERROR),
                BFF_UPSTREAM_BUDGET=f"{BUDGET}/second",
                BFF_RATE_LIMIT=f"{RATE}/minute",
                BFF_UPSTREAM_TIMEOUT="30",
                BFF_STORE_TIMEOUT="30",
                BFF_STORE_URL="valkey://127.0.0.1:1" if self.shared else None,
                BFF_EXPOSE_METADATA="plan" if self.plan else None,
            )

    async def override(self, seen: Seen) -> Answer | None:
        self.calls.append(self.clock.now)
        return await self.answer(seen, self.weather)

    async def answer(self, seen: Seen, weather: str) -> Answer | None:
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
                documents = list(self.upstream.environments[0].sessions.values())
                wrong = [d for d in documents if quote(d["id"]) not in seen.raw_path]
                return Answer(200, wrong[len(self.calls) % len(wrong)]) if wrong else None
            case "slow":
                await self.gate.wait()
        return None

    # -- browsers

    @rule(scopes=st.lists(SCOPES, max_size=4), ttl=st.sampled_from([-1, 1, 8, 900]))
    def mint(self, scopes: list[object], ttl: int) -> None:
        key = self.keys[len(self.tokens) % len(self.keys)]
        issued = int(self.clock.wall)
        number = str(len(self.tokens))
        more = {"exp": issued + ttl, "jti": number, "act": {"sub": f"caller-{number}"}}
        text, forged = self.made(self.tokens_of.claims(issued, *scopes, **more), key)
        self.tokens.append(Minted(text, scopes, issued, issued + ttl, key, forged))

    def made(self, payload: dict[str, Any], key: str) -> tuple[str, bool]:
        """A token, and whether it is forged."""
        return sign(payload, key), False

    good = rule(scope=st.sampled_from(GOOD))(lambda self, scope: self.mint([scope], 900))

    def visit(self, visits: list[tuple[int, int, str, bool]]) -> None:
        self.runner.run(self._visit(visits))

    # Hypothesis picks every rule equally often, and the other rules only prepare for this one.
    some = rule(visits=VISITS)(lambda self, visits: self.visit(visits))
    more = rule(visits=VISITS)(lambda self, visits: self.visit(visits))
    even_more = rule(visits=VISITS)(lambda self, visits: self.visit(visits))
    and_more = rule(visits=VISITS)(lambda self, visits: self.visit(visits))
    now_on_hot_ones = rule(times=st.integers(2, 6))(
        lambda self, times: self.visit(
            [(number, number // 3, HOT[number % 2], False) for number in range(times)]
        )
    )

    async def _visit(self, visits: list[tuple[int, int, str, bool]]) -> None:
        chosen = [
            (
                index % len(self.worlds),
                self.tokens[-1 - number % len(self.tokens)],
                id_,
                conditional,
            )
            for index, number, id_, conditional in visits
        ]
        requests = [
            asyncio.create_task(
                ask(
                    self.worlds[index],
                    quote(id_, safe=""),
                    token.text,
                    if_none_match=b"*" if conditional else None,
                )
            )
            for index, token, id_, conditional in chosen
        ]
        if self.weather == "slow":
            for _ in range(20):
                await asyncio.sleep(0)
            self.gate.set()
        responses = await asyncio.gather(*requests)
        self.gate.clear()
        self.usable = dict(self.loaded)
        for (index, token, id_, _), response in zip(chosen, responses, strict=True):
            self.check(index, token, id_, response)

    def check(self, index: int, token: Minted, id_: str, response: Response) -> None:
        document = self.find(id_)
        if not self.is_valid(index, token):
            assert response.status in (401, 429)
            return
        assert response.status != 401, "trouble upstream is never a 401"
        texts = tuple(map(str, token.scopes))
        may_read = can_read(texts, document or {"id": id_, "externalId": id_})
        named = can_read(texts, {"id": id_, "externalId": id_})
        if document is not None and self.is_revoked_for(index, token, document):
            # Without a copy the gateway cannot know that an alias names the revoked session.
            assert response.status in (403, 429) or response.status >= 500
            return
        if response.status in (200, 304):
            assert document is not None
            assert may_read, (token.scopes, id_)
            age = int(told(response)["age"])
            assert age <= TTL + self.stretch() + STALE_IF_ERROR
            self.answered[token.text].append(self.clock.now)
            self.loaded[index, document["id"]] = self.clock.now - age - 1
        if response.status == 200:
            shown = json.loads(response.body)
            assert id_ in (shown["id"], shown["externalId"])
            assert "triggerConfig" not in shown
            assert shown["metadata"] == ({"plan": "enterprise"} if self.plan else None)
            self.check_version(document["id"], shown["currentRunId"], age)
        if not may_read:
            # The browser learns of trouble with sessions that the token names in the other form.
            trouble = response.status >= 500 and names_other_form(texts, id_)
            assert trouble or response.status in (403, 429), (
                "a refusal reveals nothing of a session that the token does not name"
            )
            return
        if response.status == 403:
            # An alias that could not be looked up may be another caller's session.
            assert not named
        if response.status >= 500 and self.kind != "upstream":
            loaded = self.usable.get((index, document["id"]), -inf) if document else -inf
            assert self.clock.now - loaded >= TTL + STALE_IF_ERROR, "a usable copy existed"

    def is_valid(self, index: int, token: Minted) -> bool:
        jti = str(self.tokens.index(token))
        return (
            self.clock.wall < token.expires
            and (token.key in self.keys or self.kind != "local")
            and not any(
                index in revoked.replicas
                and (
                    (revoked.kind == "jti" and revoked.value == jti)
                    or (revoked.kind == "all" and token.issued < revoked.before)
                )
                for revoked in self.revoked
            )
        )

    def is_revoked_for(self, index: int, token: Minted, document: dict) -> bool:
        return any(
            index in revoked.replicas
            and revoked.kind == "session"
            and revoked.value in (document["id"], document["externalId"])
            and token.issued < revoked.before
            for revoked in self.revoked
        )

    def find(self, id_: str) -> dict | None:
        return next((d for d in DOCUMENTS.values() if id_ in (d["id"], d["externalId"])), None)

    def stretch(self) -> float:
        return len(DOCUMENTS) / BUDGET

    def check_version(self, id_: str, run: str, age: int) -> None:
        """The run in the answer was current within the answer's age, and after the last purge."""
        versions = self.versions[id_]
        index = [run for _, run in versions].index(run)
        until = versions[index + 1][0] if index + 1 < len(versions) else self.clock.now
        assert until >= self.clock.now - age - 1
        assert until >= self.purged.get(id_, 0.0), "purged"

    # -- the world

    @rule(seconds=st.sampled_from([0.1, 0.9, 1.0, 1.0, 2.0, 3.0, 7.5, 21.0, 61.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if self.cut:
            self.trouble += [self.clock.now - seconds, self.clock.now]

    @rule(weather=st.sampled_from(WEATHER))
    def change_weather(self, weather: str) -> None:
        self.weather = weather

    @rule(id_=st.one_of(st.just(HOT[1]), st.sampled_from(list(DOCUMENTS))))
    def go_on(self, id_: str) -> None:
        run = f"run_{len(self.versions[id_])}"
        self.upstream.environments[0].sessions[id_]["currentRunId"] = run
        self.versions[id_].append((self.clock.now, run))

    @rule()
    def settle(self) -> None:
        self.gate.set()
        for world in self.worlds:
            self.runner.run(idle(world))
        self.gate.clear()

    @precondition(lambda self: self.shared)
    @rule(index=st.integers(0, 2), empty=st.booleans())
    def cut_off(self, index: int, empty: bool) -> None:
        """One replica loses the store; or all do, and the store loses its data."""
        self.trouble.append(self.clock.now)
        if empty:
            self.shared.empty()
        for number, store in enumerate(self.stores()):
            if empty or number == index % len(self.worlds):
                store.link = False
                self.cut.add(number)

    @precondition(lambda self: self.cut)
    @rule()
    def heal(self) -> None:
        self.trouble.append(self.clock.now)

        async def deliver() -> None:
            for store in self.stores():
                store.link = True
                store.catch_up()

        self.runner.run(deliver())  # purges as well
        self.loaded = {key: at for key, at in self.loaded.items() if key[0] not in self.cut}
        self.cut.clear()
        for revoked in self.revoked:
            if STORE in revoked.replicas:
                revoked.replicas |= self.everybody()

    def stores(self) -> list[StandIn]:
        return [world.service.sharing.store for world in self.worlds]

    def everybody(self) -> set[int]:
        return set(range(len(self.worlds)))

    # -- operators

    @rule(
        keys=st.sampled_from([[OWN_KEY], [OTHER_KEY, OWN_KEY], [OTHER_KEY]]),
        restart=st.booleans(),
    )
    def rotate(self, keys: list[str], restart: bool) -> None:
        self.keys = keys
        if not restart:
            self.reload(BFF_SIGNING_KEYS=",".join(keys))
            return
        for index in sorted(self.everybody()):
            self.restart(index)

    @rule(index=st.integers(0, 2))
    def restart_one(self, index: int) -> None:
        self.restart(index % len(self.worlds))

    def restart(self, index: int) -> None:
        self.gate.set()
        self.runner.run(self.start(index))
        self.gate.clear()
        self.loaded = {key: at for key, at in self.loaded.items() if key[0] != index}
        if self.shared is None:  # a new process has a new budget and no state
            self.calls.clear()
            self.answered.clear()
            self.revoked.clear()
            return
        self.trouble.append(self.clock.now)
        self.cut.discard(index)
        for revoked in self.revoked:  # a new process reads the store
            revoked.replicas.discard(index)
            if STORE in revoked.replicas:
                revoked.replicas.add(index)

    @rule(plan=st.booleans())
    def change_policy(self, plan: bool) -> None:
        if plan != self.plan:
            self.plan = plan
            self.loaded.clear()
            self.reload(BFF_EXPOSE_METADATA="plan" if plan else None)

    def reload(self, **changes: str | None) -> None:
        async def reload() -> None:
            for world in self.worlds:
                world.reload(**changes)

        self.runner.run(reload())

    @rule(keys=st.sampled_from([[SECRET_KEY], [NEXT_SECRET_KEY], [SECRET_KEY, NEXT_SECRET_KEY]]))
    def rotate_secret(self, keys: list[str]) -> None:
        self.upstream.environments[0].additional_keys = dict.fromkeys(keys, ("read:sessions",))

    @rule(index=st.integers(0, 2), id_=SOME_ID)
    def purge(self, index: int, id_: str) -> None:
        world = self.worlds[index % len(self.worlds)]
        url = f"/cache/sessions/{quote(id_, safe='')}"
        response = self.runner.run(world.ops.delete(url))
        assert response.status_code == (503 if index % len(self.worlds) in self.cut else 204)
        if (document := self.find(id_)) is not None:
            self.loaded = {p: at for p, at in self.loaded.items() if p[1] != document["id"]}
            if not self.cut:
                self.purged[document["id"]] = self.clock.now

    @rule(index=st.integers(0, 2), id_=st.sampled_from(HOT))
    def purge_what_changed(self, index: int, id_: str) -> None:
        """Purge while every replica has a copy, and request it everywhere again."""
        everywhere = [(number, 0, HOT[number % 2], False) for number in range(3)]
        self.mint(GOOD[:1], 900)
        self.visit(everywhere)
        self.go_on(HOT[1])
        self.pass_time(0.5)
        self.purge(index, id_)
        self.visit(everywhere)

    @precondition(lambda self: self.tokens)
    @rule(
        index=st.integers(0, 2),
        what=st.one_of(
            st.just({"issued_before": None}),
            SOME_ID.map(lambda id_: {"session": id_}),
            st.integers(0, 9).map(lambda number: {"jti": number}),
        ),
    )
    def revoke(self, index: int, what: dict[str, Any]) -> None:
        index %= len(self.worlds)
        ((kind, value),) = what.items()
        if kind == "issued_before":
            kind, what = "all", {"issued_before": self.clock.wall}
        elif kind == "jti":
            value = str(len(self.tokens) - 1 - value % len(self.tokens))
            what = {"jti": value}
        response = self.runner.run(self.worlds[index].ops.post("/revocations", json=what))
        assert response.status_code == (503 if index in self.cut else 200)
        replicas = {index} if index in self.cut else {STORE, *self.everybody() - self.cut}
        self.revoked.append(Revoked(kind, str(value), self.clock.wall, replicas))

    # -- bounds

    @invariant()
    def the_budget_holds(self) -> None:
        self.holds(self.calls, BUDGET, 1.0)

    @invariant()
    def the_limit_holds(self) -> None:
        for times in self.answered.values():
            self.holds(times, 2 * RATE, 60.0)

    def holds(self, times: list[float], most: int, seconds: float) -> None:
        """At most *most* within *seconds*, and twice that around trouble with the store."""
        for number, first in enumerate(times):
            last = first + seconds - 1e-9
            if len(times) > number + most and times[number + most] < last:
                assert self.shared is not None
                around = [at for at in self.trouble if first - seconds <= at <= last + seconds]
                assert around
                # A replica that starts or is alone may spend its share, of one at least.
                end = number + 2 * most + len(around)
                assert len(times) <= end or times[end] >= last

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.gate.set()
            for world in self.worlds:
                self.runner.run(world.__aexit__())
            self.runner.close()
            self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("EXAMPLES", "30")),
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes; a failure shows its steps
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def names_other_form(scopes: tuple[str, ...], id_: str) -> bool:
    """Whether the scopes name a session by an id of the other form than *id_*."""
    named = [scope.split(":", 2)[2] for scope in scopes if scope.count(":") > 1]
    return any(name.startswith("session_") != id_.startswith("session_") for name in named)


async def test_13_a_refusal_reveals_nothing_about_another_callers_copy(
    of_kind: World, kind: Kind
) -> None:
    world = of_kind
    mine = kind.token(world, "read:sessions:chat-1")
    alias = kind.token(world, f"read:sessions:{list(world.upstream.environments[0].sessions)[1]}")
    await world.get("chat-1", token=mine)
    world.clock.advance(100)
    world.answer(500, {"error": "down"})

    unknown = await world.get("never-requested", token=alias)
    expired = await world.get("chat-1", token=alias)
    calls = world.calls
    entitled = await world.get("chat-1", token=mine)

    assert (unknown.status_code, expired.status_code) == (502, 502), "trouble of the named session"
    assert expired.content == unknown.content
    ids = [response.headers.pop("x-request-id") for response in (unknown, expired)]
    assert len(set(ids)) == 2
    assert expired.headers == unknown.headers
    assert entitled.status_code == 502
    paths = [seen.raw_path for seen in world.upstream.seen[1:calls]]
    assert set(paths) == {PATH + FRIENDLY["chat-2"]}, "no call for the id that was asked for"


def test_13_only_entitled_callers_get_a_session() -> None:
    Machine.TestCase("runTest").runTest()

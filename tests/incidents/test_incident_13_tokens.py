"""Incident 13, an answer to the wrong caller, for tokens that no key of the gateway verifies.

The machine of `test_incident_13` with upstream or another issuer's key as the verifier. Some tokens
are forged, upstream withdraws some, and replicas share its introspections.
"""

import os
from collections import defaultdict
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from incidents.test_incident_13 import GOOD, HOT, NEXT_SECRET_KEY, Machine, Minted
from support.world import SECRET_KEY

from bff.demo.upstream import Answer, Seen, can_read
from bff.response import Response

ACCEPTED_SECONDS = 60.0


class Opaque(Machine):
    """Upstream verifies tokens."""

    kind = "upstream"
    shared = 0
    """Uses of an introspection that another replica stored, in all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        """By token and path: the times at which upstream accepted it."""
        self.ended: dict[str, float] = {}
        """By token: when upstream withdrew it."""
        self.changed: list[float] = []
        """Times at which replicas dropped their introspections."""

    def made(self, payload: dict[str, Any], _key: str) -> tuple[str, bool]:
        forged = len(self.tokens) % 3 == 2
        return self.tokens_of.sign(payload, forged=forged), forged

    async def override(self, seen: Seen) -> Answer | None:
        sender = str(seen.header("authorization")).removeprefix("Bearer ")
        if sender.startswith("tr_"):
            return await super().override(seen)
        if sender in self.ended:
            return Answer(401, {"error": "Public Access Token is invalid"})
        # These failures concern the secret key, and this request carries a token.
        weather = "fine" if self.weather in ("401", "429") else self.weather
        token = next(token for token in self.tokens if token.text == sender)
        if token.forged and weather == "wrong session":
            weather = "fine"  # a broken upstream still refuses forged tokens
        document = self.find(unquote(seen.raw_path.rpartition("/")[2]))
        may_read = document is not None and can_read(tuple(map(str, token.scopes)), document)
        if weather in ("fine", "slow") and not token.forged and may_read:
            self.passed[sender, seen.raw_path].append(self.clock.now)
        return await self.answer(seen, weather)

    def check(self, index: int, token: Minted, id_: str, response: Response) -> None:
        ended = self.ended.get(token.text)
        if response.status in (200, 304):
            assert not token.forged
            assert ended is None or self.clock.now - ended < ACCEPTED_SECONDS
        elif token.forged or ended is not None:  # 403 without a load, 5xx without an introspection
            assert response.status in (401, 403, 404, 429, 502, 503)
            return
        super().check(index, token, id_, response)

    @precondition(lambda self: self.kind == "upstream")
    @rule(number=st.integers(0, 5))
    def withdraw_upstream(self, number: int) -> None:
        self.ended.setdefault(self.tokens[-1 - number % len(self.tokens)].text, self.clock.now)

    @precondition(lambda self: self.kind == "upstream")
    @rule(index=st.integers(0, 2), seconds=st.sampled_from([1.0, 21.0, 59.0]))
    def withdraw_after_introspection(self, index: int, seconds: float) -> None:
        """One replica asks upstream, the others use its introspection, and upstream withdraws."""
        self.mint(GOOD[:1], 900)
        self.visit([(index, 0, HOT[0], False)])
        self.withdraw_upstream(0)
        for pause in (seconds, ACCEPTED_SECONDS - seconds):
            self.pass_time(pause)
            self.visit([(number, 0, HOT[0], False) for number in range(3)])

    @rule(secrets=st.permutations([SECRET_KEY, NEXT_SECRET_KEY]), restart=st.booleans())
    def rotate(self, secrets: list[str], restart: bool) -> None:
        """A new secret key seals introspections anew."""
        self.secrets = secrets
        if not restart:
            self.reload(TRIGGER_SECRET_KEY=",".join(secrets))
            return
        for index in sorted(self.everybody()):
            self.restart(index)

    def reload(self, **changes: str | None) -> None:
        self.changed.append(self.clock.now)
        super().reload(**changes)

    def restart(self, index: int) -> None:
        self.changed.append(self.clock.now)
        super().restart(index)

    @invariant()
    def one_introspection_a_minute_for_token_and_session(self) -> None:
        """The bound holds for all replicas together."""
        for times in self.passed.values():
            for first, second in pairwise(times):
                if second - first < ACCEPTED_SECONDS:
                    assert [at for at in self.trouble + self.changed if first <= at <= second]

    def teardown(self) -> None:
        for world in getattr(self, "worlds", ()):
            counts = world.telemetry.counts
            Opaque.shared += counts["bff_shared_verdicts", "used"]
        super().teardown()


class Foreign(Opaque):
    """Another issuer's key verifies tokens."""

    kind = "source"


for machine, examples in ((Opaque, 20), (Foreign, 10)):
    machine.TestCase.settings = settings(
        max_examples=int(os.environ.get("EXAMPLES", examples)),
        stateful_step_count=40,
        deadline=None,
        phases=[
            Phase.explicit,
            Phase.generate,
        ],  # shrinking takes minutes; a failure shows its steps
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("machine", [Opaque, Foreign])
def test_13_the_same_holds_for_tokens_that_others_verify(machine: type[Opaque]) -> None:
    before = machine.shared
    machine.TestCase("runTest").runTest()
    if machine is Opaque:
        assert machine.shared - before > 20, "the machine has to reach shared introspections"

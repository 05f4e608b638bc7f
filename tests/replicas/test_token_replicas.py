"""Tokens with a shared store: introspections with leased limits, and revocations."""

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.engines import Engine
from support.hostile import eventually
from support.replicas import PATIENT, RealClock
from support.world import (
    OFF,
    ORIGIN,
    OWN_KEY,
    PATH,
    ROOT_KEY,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff.replicas import keys

OPAQUE: dict[str, str | None] = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine("valkey", tmp_path_factory.mktemp("store")) as engine:
        yield engine


@pytest.fixture
async def opaque(engine: Engine) -> AsyncIterator[World]:
    """A replica whose tokens upstream verifies and whose limits are leased from a real store."""
    engine.empty()
    changes = {"BFF_STORE_URL": engine.url, **PATIENT, "BFF_RATE_LIMIT": "3/minute"}
    async with World(RealClock(), **OPAQUE, **changes) as world:
        yield world


def minted(*scopes: object, key: str = ROOT_KEY, **changes: object) -> str:
    return sign(claims(time.time(), *scopes, **changes), key)


async def test_caller_is_counted_after_its_introspection(opaque: World) -> None:
    token = minted(*read("chat-1", "chat-2"))
    headers = {"authorization": f"Bearer {token}", "origin": ORIGIN}

    responses = [await opaque.get("chat-1", token=token)]
    responses.append(await opaque.browser.get(PATH.rstrip("/"), headers=headers))
    responses += [await opaque.get("chat-2", token=token) for _ in range(2)]

    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    forged = minted(*read("chat-1"), key=OWN_KEY)
    assert (await opaque.get("chat-1", token=forged)).status_code == 401


# -- processes


def test_processes_and_workers_introspect_a_token_once(engine: Engine) -> None:
    engine.empty()
    token = minted(*read("chat-1"))
    changes = OFF | OPAQUE | {"BFF_STORE_URL": engine.url, **PATIENT}
    with running_upstream() as upstream, ExitStack() as stack:
        gateways = [
            stack.enter_context(Gateway(upstream.port, *options, **changes))
            for options in (("--workers", "2"), ())
        ]
        with ThreadPoolExecutor(16) as pool:
            statuses = set(pool.map(lambda n: status(gateways[n % 2], token), range(64)))

        sent = [seen.header("authorization") for seen in upstream.seen]
        metrics = [http.get(gateway.ops_url + "/metrics").text for gateway in gateways]
    assert statuses == {200}
    assert sent.count(f"Bearer {token}") == 1
    used = re.findall(
        r'^bff_shared_verdicts_total{.*result="used".*} (.+)$', "".join(metrics), re.MULTILINE
    )
    assert sum(map(float, used)) >= 1, "the other processes used the result"


# -- revocations


class Pair:
    """Two gateways on one store; a test may start more."""

    def __init__(self, upstream: running_upstream, engine: Engine, stack: ExitStack) -> None:
        self._upstream = upstream
        self._stack = stack
        self._changes = OFF | {
            "BFF_STORE_URL": engine.url,
            **PATIENT,
            "BFF_VERIFY": "local,upstream",
        }
        self.gateways = [self.start(), self.start()]

    def start(self) -> Gateway:
        return self._stack.enter_context(Gateway(self._upstream.port, **self._changes))

    def post(self, **body: object) -> int:
        """Revoke at the first gateway."""
        return http.post(self.gateways[0].ops_url + "/revocations", json=body).status_code


def status(gateway: Gateway, token: str, id_: str = "chat-1") -> int:
    headers = {"authorization": f"Bearer {token}"}
    return http.get(gateway.url + PATH + id_, headers=headers).status_code


def listed(gateway: Gateway, token: str) -> tuple[int, list[str]]:
    headers = {"authorization": f"Bearer {token}"}
    response = http.get(gateway.url + PATH.rstrip("/"), headers=headers)
    return response.status_code, [one["externalId"] for one in response.json().get("data", [])]


def soon(gateway: Gateway, token: str, expected: int, id_: str = "chat-1") -> bool:
    """Whether the status becomes *expected*: announcements take a moment."""
    return eventually(lambda: status(gateway, token, id_) == expected)


def test_every_kind_of_revocation_holds_in_every_process(
    engine: Engine,
) -> None:
    engine.empty()
    both, began = read("chat-1", "chat-2"), int(time.time())
    tokens = {
        kind: minted(*both, key=key, act={"sub": f"{kind}-holder"}, jti=f"{kind}-1", iat=iat)
        for kind, key, iat in (
            ("jti", OWN_KEY, began),
            ("subject", ROOT_KEY, began),
            ("session", OWN_KEY, began - 60),
            ("moment", ROOT_KEY, began - 120),
            ("none", ROOT_KEY, began),
        )
    }
    with running_upstream() as upstream, ExitStack() as stack:
        pair = Pair(upstream, engine, stack)
        for gateway in pair.gateways:
            assert [status(gateway, token) for token in tokens.values()] == [200] * 5

        statuses = [
            pair.post(jti="jti-1"),
            pair.post(subject="subject-holder"),
            pair.post(session="chat-1", issued_before=began - 30),
            pair.post(issued_before=began - 90),
        ]
        assert statuses == [200] * 4
        _, second = pair.gateways
        assert soon(second, tokens["moment"], 401), "the last announcement"
        third = pair.start()

        for gateway in (third, *pair.gateways):  # the third at its first request
            results = {kind: status(gateway, token) for kind, token in tokens.items()}
            assert results == {
                "jti": 401, "subject": 401, "session": 403, "moment": 401, "none": 200,
            }  # fmt: skip
            assert status(gateway, tokens["session"], "chat-2") == 200
            assert listed(gateway, tokens["session"]) == (200, ["chat-2"])
            assert listed(gateway, tokens["jti"]) == (401, [])
            assert listed(gateway, tokens["none"]) == (200, ["chat-1", "chat-2"])


def test_revocations_survive_a_store_that_lost_its_data(
    tmp_path: Path,
) -> None:
    first, second = (minted(*read("chat-1"), key=OWN_KEY, jti=jti) for jti in ("one", "two"))
    with Engine("valkey", tmp_path) as engine, running_upstream() as upstream, ExitStack() as stack:
        pair = Pair(upstream, engine, stack)
        assert Counter(status(g, t) for g in pair.gateways for t in (first, second)) == {200: 4}
        assert pair.post(jti="one") == 200
        assert soon(pair.gateways[1], first, 401)

        engine.kill()
        assert [status(gateway, first) for gateway in pair.gateways] == [401, 401]
        assert eventually(lambda: pair.post(jti="two") == 503), "not announced to the others"
        assert status(pair.gateways[0], second) == 401
        engine.start()

        with engine.client() as store:
            assert eventually(lambda: store.xlen(keys.stream("revocations")) >= 1)
        assert eventually(lambda: pair.post(jti="two") == 200), "repeated, as the 503 says"
        third = pair.start()
        assert (status(third, first), status(third, second)) == (401, 401)

"""Key refresh: environment ids, and key sets fetched by a real process."""

import asyncio
import io
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.hostile import eventually
from support.issuers import KeyPair, auth0, running_jwks
from support.world import (
    ENVIRONMENT_ID,
    OWN_KEY,
    ROOT_KEY,
    SECRET_KEY,
    Clock,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff.clock import system_clock
from bff.demo.upstream import Environment, session
from bff.ops import key_refresh
from bff.ops.key_refresh import KeyRefresh
from bff.telemetry import Telemetry
from bff.tokens import jwks
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet

FULL_KEY = "tr_prod_sk_FULLsentinel000000000001"
OTHER_KEY = "tr_prod_sk_OTHERsentinel00000000001"
OTHER_ROOT_KEY = "tr_prod_OTHERsentinel00000000001"
ASK = "/api/v1/auth/jwt/claims"


@pytest.fixture
async def unnamed(clock: Clock) -> AsyncIterator[World]:
    """A gateway without BFF_ENVIRONMENT_ID; its secret key is not restricted."""
    world = World(clock, BFF_ENVIRONMENT_ID=None, BFF_SIGNING_KEYS=None)
    world.upstream.environments[0].additional_keys[FULL_KEY] = ()
    world._changes["TRIGGER_SECRET_KEY"] = FULL_KEY
    async with world:
        yield world


async def learned(world: World, *environments: str) -> None:
    for _ in range(300):
        if not world.service.gateway.config.verifier.pending - set(environments):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the gateway did not get the ids")


def id_requests(world: World) -> list[tuple[str | None, str | None]]:
    return [
        (seen.header("authorization"), seen.header("x-trigger-branch"))
        for seen in world.upstream.seen
        if (seen.method, seen.raw_path) == ("POST", ASK)
    ]


async def status(world: World, **changes: object) -> int:
    token = sign(claims(world.clock.wall, *read("chat-1"), **changes), ROOT_KEY)
    return (await world.get("chat-1", token=token)).status_code


@pytest.mark.parametrize(
    "changes",
    [
        {"TRIGGER_SECRET_KEY": FULL_KEY, "BFF_SIGNING_KEYS": None},
        {"TRIGGER_SECRET_KEY": ROOT_KEY, "BFF_SIGNING_KEYS": None},
        {"TRIGGER_SECRET_KEY": FULL_KEY, "BFF_SIGNING_KEYS": ROOT_KEY},
        {"TRIGGER_SECRET_KEY": ROOT_KEY, "BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"},
    ],
    ids=range(4),
)
async def test_environment_id_is_fetched_with_the_key(unnamed: World, changes: dict) -> None:
    unnamed.upstream.seen.clear()
    await unnamed.start(BFF_ENVIRONMENT_ID=None, **changes)
    await learned(unnamed)

    assert id_requests(unnamed) == [(f"Bearer {changes['TRIGGER_SECRET_KEY']}", None)]
    assert await status(unnamed) == 200
    assert await status(unnamed, sub="env_other") == 401
    assert (await unnamed.ops.get("/readyz")).status_code == 200
    assert ENVIRONMENT_ID not in unnamed.log.getvalue()


async def test_browsers_get_503_until_the_id_is_fetched(unnamed: World) -> None:
    unnamed.answer(500, {"error": "down"})
    await unnamed.start(BFF_ENVIRONMENT_ID=None, BFF_SIGNING_KEYS=ROOT_KEY)

    assert await status(unnamed) == 503
    assert (await unnamed.ops.get("/readyz")).status_code == 503


async def test_id_of_a_restricted_key_is_learned(unnamed: World) -> None:
    await unnamed.start(BFF_ENVIRONMENT_ID=None, BFF_SIGNING_KEYS=ROOT_KEY)
    await learned(unnamed)

    assert await status(unnamed) == 200
    assert await status(unnamed, sub="env_other") == 401


async def unknown_id(world: World) -> dict[str, object]:
    for _ in range(300):
        for line in world.logged():
            if line["event"] == "environment_id_unknown":
                return line
        await asyncio.sleep(0.01)
    raise AssertionError("no line says why")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"TRIGGER_SECRET_KEY": "tr_prod_WRONGsentinel000001"}, "the key is rejected: check"),
        ({"TRIGGER_SECRET_KEY": "tr_prod_sk_WRONGsentinel01"}, "the key is rejected: check"),
        ({"TRIGGER_SECRET_KEY": "tr_preview_BRANCHsentinel1"}, "needs a branch: set BFF_BRANCH"),
        (
            {"TRIGGER_SECRET_KEY": "tr_preview_BRANCHsentinel1", "BFF_BRANCH": "nope"},
            "no branch of the name in BFF_BRANCH",
        ),
        ({"TRIGGER_SECRET_KEY": "tr_prod_sk_RUNSsentinel001"}, "give it read:sessions"),
    ],
    ids=["root", "restricted", "without a branch", "unknown branch", "without permission"],
)
async def test_remedy_says_why_the_id_is_unknown(
    unnamed: World, changes: dict[str, str], remedy: str
) -> None:
    branch = Environment("env_branch", "tr_preview_BRANCHsentinel1", branch="feat/one")
    unnamed.upstream.environments = (*unnamed.upstream.environments, branch)
    unnamed.upstream.environments[0].additional_keys["tr_prod_sk_RUNSsentinel001"] = ("read:runs",)
    await unnamed.start(BFF_ENVIRONMENT_ID=None, BFF_SIGNING_KEYS=ROOT_KEY, **changes)

    assert remedy in str((await unknown_id(unnamed))["remedy"])
    assert await status(unnamed) == 503


async def test_id_that_differs_after_a_reload_ends_all_answers(
    unnamed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_refresh, "CONFIRM_SECONDS", 0)
    await unnamed.start(BFF_SIGNING_KEYS=ROOT_KEY)
    assert await status(unnamed) == 200

    unnamed.reload(BFF_ENVIRONMENT_ID="env_other")
    for _ in range(300):
        if unnamed.service.gateway.config.verifier.pending:
            break
        await asyncio.sleep(0.01)

    assert await status(unnamed, sub="env_other") == 503
    assert "environment_id_differs" in [line["event"] for line in unnamed.logged()]
    assert (await unnamed.ops.get("/readyz")).status_code == 503
    unnamed.reload(BFF_ENVIRONMENT_ID=ENVIRONMENT_ID)
    assert await status(unnamed) == 200


async def test_set_id_that_cannot_be_confirmed_is_logged_once(
    unnamed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_refresh, "CONFIRM_SECONDS", 0)
    monkeypatch.setattr(key_refresh, "REJECTED_SECONDS", 0.01)
    unnamed.answer(500, {"error": "down"})
    unnamed.reload(BFF_ENVIRONMENT_ID="env_two")
    while len(id_requests(unnamed)) < 4:
        await asyncio.sleep(0.01)

    events = [line["event"] for line in unnamed.logged()]
    assert events.count("environment_id_unconfirmed") == 1


async def test_id_is_fetched_again_while_upstream_fails(
    unnamed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_refresh, "RETRY_SECONDS", 0.01)
    for status_, body in ((500, {}), (200, b"<html>"), (200, {"sub": 7}), (200, {"sub": ""})):
        unnamed.answer(status_, body)
        before = len(id_requests(unnamed))
        await unnamed.start(
            BFF_ENVIRONMENT_ID=None, BFF_SIGNING_KEYS=None, TRIGGER_SECRET_KEY=FULL_KEY
        )
        while len(id_requests(unnamed)) < before + 3:
            await asyncio.sleep(0.01)
        assert await status(unnamed) == 503
    unnamed.answer(0)

    await learned(unnamed)

    assert await status(unnamed) == 200


async def test_branch_gets_the_id_of_the_branch(unnamed: World, tmp_path: Path) -> None:
    branch = Environment("env_branch", ROOT_KEY, branch="feat/one")
    branch.add(session(7, "chat-1", taskIdentifier="of-the-branch"))
    unnamed.upstream.environments = (*unnamed.upstream.environments, branch)
    config = tmp_path / "bff.toml"
    config.write_text(
        f"""
        [[environments]]
        name = "parent"
        TRIGGER_SECRET_KEY = "{ROOT_KEY}"
        [[environments]]
        name = "branch"
        TRIGGER_SECRET_KEY = "{ROOT_KEY}"
        BFF_BRANCH = "feat/one"
        """
    )
    unnamed.upstream.seen.clear()
    await unnamed.start(
        TRIGGER_SECRET_KEY=None,
        BFF_SIGNING_KEYS=None,
        BFF_ENVIRONMENT_ID=None,
        BFF_CONFIG=str(config),
    )
    await learned(unnamed)

    assert {branch for _, branch in id_requests(unnamed)} == {None, "feat/one"}
    for sub, task in ((ENVIRONMENT_ID, "my-chat"), ("env_branch", "of-the-branch")):
        token = sign(claims(unnamed.clock.wall, *read("chat-1"), sub=sub), ROOT_KEY)
        assert (await unnamed.get("chat-1", token=token)).json()["taskIdentifier"] == task


async def test_new_key_refuses_tokens_until_its_id_is_fetched(
    unnamed: World,
) -> None:
    changes = {"BFF_ENVIRONMENT_ID": None, "BFF_SIGNING_KEYS": None}
    await unnamed.start(**changes, TRIGGER_SECRET_KEY=FULL_KEY)
    await learned(unnamed)
    assert await status(unnamed) == 200
    other = Environment("env_other", "tr_prod_OTHERsentinel0000000001", {"tr_prod_sk_other": ()})
    other.add(session(66, "chat-1", taskIdentifier="of-another-environment"))
    unnamed.upstream.environments = (*unnamed.upstream.environments, other)
    before = len(id_requests(unnamed))

    unnamed.reload(**changes, TRIGGER_SECRET_KEY="tr_prod_sk_other")
    assert await status(unnamed) == 503
    await learned(unnamed)

    assert len(id_requests(unnamed)) == before + 1
    assert await status(unnamed) == 401, "a token of the former environment"
    assert len(unnamed.service.gateway.cache) == 0
    unnamed.reload(**changes, TRIGGER_SECRET_KEY="tr_prod_sk_other", BFF_RATE_LIMIT="9/minute")
    assert unnamed.service.gateway.config.verifier.pending == frozenset()


async def test_id_is_not_fetched_without_need(world: World) -> None:
    await world.start(BFF_ENVIRONMENT_ID=None)
    await asyncio.sleep(0.02)

    assert (
        await world.get(
            "chat-1", token=sign(claims(0, *read("chat-1"), sub="any", exp=2e9), OWN_KEY)
        )
    ).status_code == 200
    assert id_requests(world) == []
    await world.start()
    await asyncio.sleep(0.02)
    assert id_requests(world) == []


def test_process_fetches_keys_and_its_id(upstream: running_upstream, tmp_path: Path) -> None:
    key, new = KeyPair("RS256", "one"), KeyPair("RS256", "two")
    upstream.app.environments[0].additional_keys[FULL_KEY] = ()
    with running_jwks(auth0=key) as jwks:
        config = tmp_path / "bff.toml"
        config.write_text(
            f"""
            [[token_sources]]
            name = "auth0"
            issuer = "https://my-tenant.eu.auth0.com/"
            audience = "https://chat.example.com"
            algorithms = "RS256"
            jwks_url = "{jwks.url}auth0"
            scopes_claim = "https://chat.example.com/scopes"
            """
        )
        changes = {"BFF_CONFIG": str(config), "BFF_SIGNING_KEYS": "", "BFF_ENVIRONMENT_ID": ""}
        with Gateway(upstream.port, **changes, TRIGGER_SECRET_KEY=FULL_KEY) as gateway:

            def ask(token: str) -> int:
                url = f"{gateway.url}/api/v1/sessions/chat-1"
                return http.get(url, headers={"authorization": f"Bearer {token}"}).status_code

            def until(token: str) -> None:
                assert eventually(lambda: ask(token) == 200), gateway.output

            good = auth0(time.time(), read("chat-1"))
            until(key.sign(good))
            until(sign(claims(time.time(), *read("chat-1")), ROOT_KEY))
            assert ask(new.sign(good)) == 401
            assert ask(sign(good, OWN_KEY)) == 401
            assert jwks.seen == ["/auth0"], "one fetch for all tokens"
            for text in (SECRET_KEY, FULL_KEY, key.sign(good)):
                assert text not in gateway.output


@pytest.fixture
def two_environments() -> Iterator[running_upstream]:
    other = Environment("env_other", OTHER_ROOT_KEY, {OTHER_KEY: ()})
    other.add(session(66, "chat-1", taskIdentifier="of-another-environment"))
    with running_upstream() as upstream:
        upstream.app.environments[0].additional_keys[FULL_KEY] = ()
        upstream.app.environments = (*upstream.app.environments, other)
        yield upstream


def test_sighup_with_a_new_key_fetches_the_new_id(
    two_environments: running_upstream, tmp_path: Path
) -> None:
    """No token of the former environment is accepted meanwhile or later."""
    upstream = two_environments
    key = tmp_path / "key"
    key.write_text(FULL_KEY + "\n")
    changes = {"BFF_SIGNING_KEYS": "", "BFF_ENVIRONMENT_ID": "", "TRIGGER_SECRET_KEY": ""}
    with Gateway(upstream.port, **changes, TRIGGER_SECRET_KEY_FILE=str(key)) as gateway:

        def ask(token: str) -> tuple[int, str | None]:
            url = f"{gateway.url}/api/v1/sessions/chat-1"
            response = http.get(url, headers={"authorization": f"Bearer {token}"})
            return response.status_code, response.json().get("taskIdentifier")

        mine = sign(claims(time.time(), *read("chat-1")), ROOT_KEY)
        theirs = sign(claims(time.time(), *read("chat-1"), sub="env_other"), OTHER_ROOT_KEY)
        assert eventually(lambda: ask(mine) == (200, "my-chat"))
        assert ask(theirs)[0] == 401
        key.write_text(OTHER_KEY + "\n")
        gateway.process.send_signal(signal.SIGHUP)

        def changed() -> bool:
            status, _ = ask(theirs)
            assert status in (401, 503, 200)
            return status == 200

        assert eventually(changed)
        assert ask(theirs) == (200, "of-another-environment")
        assert ask(mine)[0] == 401
        asked_with = [
            seen.header("authorization") for seen in upstream.app.seen if seen.raw_path == ASK
        ]
        assert asked_with[-2:] == [f"Bearer {FULL_KEY}", f"Bearer {OTHER_KEY}"]
        assert OTHER_KEY not in gateway.output


async def test_unknown_keys_cause_a_bounded_rate_of_fetches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Uses the real loop and clock, with shorter times."""
    monkeypatch.setattr(jwks, "UNKNOWN_KEY_SECONDS", 0.1)
    pair, fetched = KeyPair("EdDSA", "one"), list[float]()
    keys = KeySet(url="https://idp.example.com/keys")
    source = Source(
        name="idp",
        environment="default",
        issuer="https://idp.example.com",
        audiences=("chat",),
        algorithms=("EdDSA",),
        keys=keys,
        scopes_path=("scopes",),
        scopes_are_text=False,
        required={},
    )

    async def fetch(_: str) -> bytes:
        fetched.append(told[-1][0])
        return json.dumps({"keys": [pair.jwk()]}).encode()

    told = list[tuple[float, float]]()

    def clock() -> tuple[float, float]:
        told.append(system_clock())
        return told[-1]

    work = KeyRefresh(fetch, [source], {}, clock=clock, telemetry=Telemetry(io.StringIO()))
    (run,) = work.loops()
    task = asyncio.create_task(run(lambda: None))
    while not keys:
        await asyncio.sleep(0.001)
    number = 0
    while len(fetched) < 4:
        for _ in range(100):
            number += 1
            assert keys.candidates(f"made-up-{number}", system_clock()[1]) == ()
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])

    pauses = [after - before for before, after in pairwise(fetched)]
    assert min(pauses) >= 0.099, "a tenth of a second lies between two (a timer may round down)"
    assert number > 100

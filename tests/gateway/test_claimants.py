"""Claimants: by which session upstream verifies their tokens, and which are refused at once."""

from collections.abc import AsyncIterator

import pytest
from support.world import FRIENDLY, OWN_KEY, PATH, ROOT_KEY, Clock, World, claims, read, sign


@pytest.fixture
async def opaque(clock: Clock) -> AsyncIterator[World]:
    """A gateway without signing keys: upstream verifies every token."""
    async with World(clock, BFF_SIGNING_KEYS=None, BFF_VERIFY="upstream") as world:
        yield world


def minted(world: World, *scopes: object, key: str = ROOT_KEY) -> str:
    return sign(claims(world.clock.wall, *scopes), key)


def paths(world: World) -> list[str]:
    return [seen.raw_path for seen in world.upstream.seen]


async def test_token_is_verified_by_the_requested_session(opaque: World) -> None:
    token = minted(opaque, *read("chat-2", "chat-1"))

    assert (await opaque.get("chat-1", token=token)).status_code == 200
    assert paths(opaque) == [PATH + "chat-1"]


async def test_token_for_another_form_is_verified_by_its_own(opaque: World) -> None:
    token = minted(opaque, *read(FRIENDLY["chat-1"]))

    assert (await opaque.get("chat-1", token=token)).status_code == 200
    assert paths(opaque) == [PATH + FRIENDLY["chat-1"]]


async def test_verified_token_is_a_callers_for_a_minute(opaque: World) -> None:
    token = minted(opaque, *read("chat-1"))
    await opaque.get("chat-1", token=token)
    opaque.answer(500)

    assert (await opaque.get("chat-1", token=token)).status_code == 200
    assert opaque.calls == 1


async def test_id_without_a_scope_gets_403_in_any_case(opaque: World) -> None:
    for key in (ROOT_KEY, OWN_KEY):
        token = minted(opaque, *read("chat-2"), "read:runs", key=key)
        for id_ in ("chat-1", "no-such-chat", "chat-closed"):
            response = await opaque.get(id_, token=token)
            assert (response.status_code, response.json()["code"]) == (403, "unauthorized")
    assert opaque.calls == 0


async def test_refusal_before_verification_is_counted(opaque: World) -> None:
    await opaque.start(BFF_SIGNING_KEYS=None, BFF_VERIFY="upstream", BFF_BAD_TOKEN_LIMIT="2/minute")
    token = minted(opaque, *read("chat-2"), key=OWN_KEY)

    statuses = [(await opaque.get("chat-1", token=token)).status_code for _ in range(3)]

    assert statuses == [403, 403, 429]

"""Callers read from claims, and which tokens are one caller's."""

import math

import pytest
from support.world import ENVIRONMENT_ID, claims, read

from bff.errors import Refused
from bff.sessions import ids
from bff.tokens.caller import Caller, read_caller

NOW = 1_800_000_000.0


def caller(*scopes: object, **changes: object) -> Caller:
    return read_caller(claims(NOW, *scopes, **changes), "default", ids.grant, size=1)


def test_caller_has_what_the_claims_say() -> None:
    ann = caller(*read("chat-1"), act={"sub": "ann"}, jti="one", nbf=NOW - 5)

    assert ann.environment == "default"
    assert ann.granted.ids == {"chat-1"}
    assert ann.expires == claims(NOW)["exp"]
    assert ann.subjects == ("ann", ENVIRONMENT_ID)
    assert (ann.jti, ann.not_before, ann.has_actor) == ("one", NOW - 60, True)
    assert not caller().has_actor
    assert caller().subjects == (ENVIRONMENT_ID,)
    assert caller(iat=None).issued == -math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": ["ann"]},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 10**400},
        {"exp": float("inf")},
        {"exp": [1]},
        {"nbf": "x"},
        {"nbf": True},
    ],
    ids=repr,
)
def test_malformed_subject_or_date_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        caller(*read("chat-1"), **change)


def test_token_may_be_issued_at_most_a_minute_in_the_future() -> None:
    assert caller(iat=NOW + 60).not_before <= NOW
    assert caller(iat=NOW + 60).issued == NOW + 60
    assert caller(iat=NOW + 61).not_before > NOW


@pytest.mark.parametrize("scopes", [None, "read:sessions", {"read:sessions": 1}, 7])
def test_scopes_that_are_not_a_list_grant_nothing(scopes: object) -> None:
    granted = caller(scopes=scopes).granted

    assert not granted.every
    assert not granted.ids


def test_scopes_that_are_not_strings_are_ignored() -> None:
    assert caller(1, None, ["read:sessions"], *read("chat-1")).granted.ids == {"chat-1"}


def test_same_subject_and_scopes_are_the_same_caller() -> None:
    def key(*scopes: object, **changes: object) -> bytes:
        return caller(*scopes, **changes).key

    one = key("read:sessions:a", "read:sessions:b")
    assert key("read:sessions:b", "read:sessions:a", "read:sessions:a", exp=NOW + 5, jti="x") == one
    assert key("read:sessions:a") != one
    assert key("read:sessions:a", "read:sessions:b", act={"sub": "ann"}) != one
    assert key("read:sessions:a", "read:sessions:b", act={"sub": ["ann"]}) == one


def test_person_is_one_caller_whatever_the_scopes() -> None:
    ann, chat = caller(*read("a", "b"), act={"sub": "ann"}), caller(*read("c"), act={"sub": "ann"})

    assert chat.key == ann.key
    assert caller(*read("a", "b"), act={"sub": "bob"}).key != ann.key
    assert caller(*read("a", "b"), act={"sub": "ann"}, sub="env_other").key != ann.key


def test_address_tells_callers_apart_only_without_an_actor() -> None:
    environment, person = caller(), caller(act={"sub": "ann"})

    assert environment.limit_key("192.0.2.1") != environment.limit_key("192.0.2.2")
    assert person.limit_key("192.0.2.1") == person.limit_key("192.0.2.2")

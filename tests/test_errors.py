"""The table of refusals, and upstream's troubles beside it."""

from dataclasses import FrozenInstanceError
from http import HTTPStatus
from typing import get_args

import pytest

from bff import errors
from bff.errors import REFUSALS, ErrorCode, Refusal, Refused, UpstreamError


def test_every_code_has_a_row() -> None:
    assert tuple(REFUSALS) == get_args(ErrorCode)


def test_refusal_is_frozen_because_waiters_share_it() -> None:
    refusal = Refusal("not_found")

    with pytest.raises(FrozenInstanceError):
        refusal.retry_after = 1.0


def test_refusal_takes_status_and_text_from_its_row() -> None:
    assert Refusal("rate_limited").status is HTTPStatus.TOO_MANY_REQUESTS
    assert Refusal("not_found").text == "Not found"
    assert Refusal("not_found", "There is nothing here").text == "There is nothing here"


def test_exception_carries_an_equal_refusal() -> None:
    refusal = Refusal("over_budget", retry_after=2.0)

    assert Refused.of(refusal).refusal == refusal


def test_no_upstream_trouble_is_told_as_the_browsers_fault() -> None:
    troubles = {
        one for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, UpstreamError)
    }  # fmt: skip
    about_the_request = {"not_found", "token_invalid", "unauthorized"}

    for trouble in troubles:
        status = REFUSALS[trouble.code].status
        assert trouble.code in about_the_request or status >= HTTPStatus.INTERNAL_SERVER_ERROR

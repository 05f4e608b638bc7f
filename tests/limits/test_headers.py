"""How a limit looks on the wire."""

import json

from bff.errors import Refusal
from bff.limits.headers import problem, rate_lines
from bff.limits.rate import UNLIMITED_WINDOW, Limiter


def limiter() -> Limiter:
    return Limiter("caller", 3, 60)


def test_lines_tell_the_limit_in_both_forms() -> None:
    window = limiter().charge("a", 100.0)

    assert rate_lines(window, 100.0, 5_000.0).decode().splitlines() == [
        "x-ratelimit-limit: 3",
        "x-ratelimit-remaining: 2",
        "x-ratelimit-reset: 5060000",
        'ratelimit-policy: "caller";q=3;w=60',
        'ratelimit: "caller";r=2;t=60',
    ]


def test_unlimited_window_has_no_lines() -> None:
    assert rate_lines(UNLIMITED_WINDOW, 100.0, 5_000.0) == b""


def test_body_of_a_429_tells_when_to_come_again() -> None:
    window = limiter().charge("a", 100.0)

    body = json.loads(problem(Refusal("rate_limited"), window, 130.0, 5_030.0))

    assert body["status"] == 429
    assert body["code"] == "rate_limited"
    assert (body["limit"], body["remaining"]) == (3, 2)
    assert (body["reset"], body["secondsUntilReset"]) == (5_060_000, 30.0)
    assert body["error"].endswith("2/3 requests remaining. Retry in 30.000 seconds.")

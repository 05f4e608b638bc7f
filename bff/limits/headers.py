"""How a limit looks on the wire: its header lines, and the body of a 429."""

import json
from functools import lru_cache
from http import HTTPStatus
from math import ceil

from bff.errors import Refusal
from bff.limits.rate import Limiter, Window


def rate_lines(window: Window, now: float, wall: float) -> bytes:
    """Make the rate limit's lines: upstream's (reset in Unix milliseconds) and the IETF's."""
    if not window.headers:
        return b""
    reset, remaining = window.reset(now), window.remaining
    return _rate_template(window.limiter) % (
        remaining,
        ceil((wall + reset) * 1000),
        remaining,
        ceil(reset),
    )


@lru_cache(maxsize=16)
def _rate_template(limiter: Limiter) -> bytes:
    """Make the part of the lines that is the same for one limiter."""
    return (
        b"x-ratelimit-limit: %d\r\nx-ratelimit-remaining: %%d\r\nx-ratelimit-reset: %%d\r\n"
        b'ratelimit-policy: "%b";q=%d;w=%d\r\nratelimit: "%b";r=%%d;t=%%d\r\n'
    ) % (
        limiter.limit,
        limiter.name.encode(),
        limiter.limit,
        limiter.seconds,
        limiter.name.encode(),
    )


def problem(refusal: Refusal, window: Window, now: float, wall: float) -> bytes:
    """Make the body of a 429, in upstream's shape."""
    seconds = window.reset(now)
    return _problem_template(refusal.code, refusal.text, window.limiter) % {
        b"remaining": window.remaining,
        b"reset": ceil((wall + seconds) * 1000),
        b"seconds": seconds,
    }


@lru_cache(maxsize=64)
def _problem_template(code: str, detail: str, limiter: Limiter) -> bytes:
    """Make the part of a 429 that is the same each time: a flood must not cost a JSON encoder."""
    remaining, reset, seconds = "%(remaining)d", "%(reset)d", "%(seconds).3f"
    text = f"{detail}: {remaining}/{limiter.limit} requests remaining. Retry in {seconds} seconds."
    problem = {
        "error": text,
        "code": code,
        "title": "Rate Limit Exceeded",
        "status": HTTPStatus.TOO_MANY_REQUESTS,
        "type": "https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/429",
        "detail": text,
        "reset": reset,
        "limit": limiter.limit,
        "remaining": remaining,
        "secondsUntilReset": seconds,
    }
    template = json.dumps(problem)
    for number in (remaining, reset, seconds):
        template = template.replace(f'"{number}"', number)
    return template.encode()

"""The settings of twin worlds, so combined that every pair of levels occurs."""

import random
from functools import cache
from itertools import combinations, product

from support.world import OWN_KEY

from bff.sessions.policy import DEFAULT_FIELDS

Combination = dict[str, str]
"""The level of each setting."""
Pair = tuple[tuple[str, str], tuple[str, str]]
"""The levels of two settings."""

LEVELS: dict[str, tuple[str, ...]] = {
    "store": ("off", "on"),
    "processes": ("1", "2"),
    "path": ("fast", "asgi"),
    "verify": ("local", "upstream", "local,upstream", "provider"),
    "address limit": ("off", "40/minute"),
    "caller limit": ("off", "15/minute"),
    "bad-token limit": ("off", "5/minute"),
    "budget": ("off", "6/second", "100000/second"),
    "cookie": ("off", "on"),
    "fields": ("default", "no externalId", "no closedAt"),
    "negative TTL": ("0", "1"),
    "TTL": ("2, closed 30", "5, closed 60", "0, closed 10"),
    "stale-while-revalidate": ("0", "5"),
    "stale-if-error": ("0", "60"),
}
"""The first level of each setting is the plainest: shrinking a history tries it."""

_HIDDEN = {
    "default": (),
    "no externalId": ("externalId",),
    # `closedReason` would tell as much as `closedAt`.
    "no closedAt": ("closedAt", "closedReason"),
}
COOKIE = "__Host-token"


def hides(combination: Combination, field: str) -> bool:
    """Whether the policy hides a field that it shows by default."""
    return field in _HIDDEN[combination["fields"]]


def environ(combination: Combination) -> dict[str, str | None]:
    """The settings of the gateway, except for the keys that tokens need."""
    ttl, closed_ttl = combination["TTL"].split(", closed ")
    verify = combination["verify"]
    return {
        "BFF_SIGNING_KEYS": None if verify == "upstream" else OWN_KEY,
        "BFF_VERIFY": None if verify == "provider" else verify,
        "BFF_STORE_URL": "valkey://127.0.0.1:1" if combination["store"] == "on" else None,
        "BFF_STORE_TIMEOUT": "1",
        "BFF_IP_RATE_LIMIT": combination["address limit"],
        "BFF_RATE_LIMIT": combination["caller limit"],
        "BFF_BAD_TOKEN_LIMIT": combination["bad-token limit"],
        "BFF_UPSTREAM_BUDGET": combination["budget"],
        "BFF_TOKEN_COOKIE": COOKIE if combination["cookie"] == "on" else None,
        "BFF_EXPOSE_FIELDS": ",".join(
            name for name in DEFAULT_FIELDS if not hides(combination, name)
        ),
        "BFF_CACHE_NEGATIVE_TTL": combination["negative TTL"],
        "BFF_CACHE_TTL": ttl,
        "BFF_CACHE_CLOSED_TTL": closed_ttl,
        "BFF_CACHE_STALE_WHILE_REVALIDATE": combination["stale-while-revalidate"],
        "BFF_CACHE_STALE_IF_ERROR": combination["stale-if-error"],
    }


def pairs(combination: Combination) -> set[Pair]:
    """The pairs of levels that occur in *combination*."""
    return set(combinations(sorted(combination.items()), 2))


@cache
def all_pairs() -> frozenset[Pair]:
    """Every pair of levels."""
    return frozenset(
        ((one, level), (other, other_level))
        for one, other in combinations(sorted(LEVELS), 2)
        for level, other_level in product(LEVELS[one], LEVELS[other])
    )


@cache
def pairwise() -> tuple[Combination, ...]:
    """A few combinations in which every pair of levels occurs."""
    dice, missing, rows = random.Random(0), set(all_pairs()), []
    while missing:
        ((one, level), (other, other_level)) = min(missing)
        candidates = [draw(dice) | {one: level, other: other_level} for _ in range(40)]
        rows.append(max(candidates, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return tuple(rows)


def draw(dice: random.Random) -> Combination:
    """Draw a level for each setting."""
    return {name: dice.choice(levels) for name, levels in LEVELS.items()}

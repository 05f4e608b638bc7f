"""The keys that gateways use in Valkey.

Replicas of two versions share a store during a rollout, so a key changes only with its meaning.
In a cluster the part in braces selects the node, so all keys of one script or read have the same.
"""

from typing import Final

_PREFIX: Final = "bff1"
REPLICAS: Final = f"{_PREFIX}:replicas"


def window(name: str) -> str:
    """Requests taken from one window of a rate limit."""
    return f"{_PREFIX}:w:{name}"


def spent(origin: str, name: str) -> str:
    """Times of the last calls that one budget of an environment paid."""
    return f"{_PREFIX}:{{{origin}}}:{name}"


def allowance(origin: str) -> str:
    """Loads that upstream's bucket still allows."""
    return f"{_PREFIX}:{{{origin}}}:allowance"


def pause(origin: str) -> str:
    """Exists while the gateway must start no load, after a 429 of upstream."""
    return f"{_PREFIX}:{{{origin}}}:pause"


def value(prefix: str, id_: str) -> str:
    """A shared copy or introspection; *prefix* begins with the origin in braces."""
    return f"{_PREFIX}:{prefix}:{id_}"


def claim(name: str) -> str:
    """The token of the replica that loads the value under the key *name*."""
    return f"{name}:load"


def stream(name: str) -> str:
    """Announcements of one kind."""
    return f"{_PREFIX}:{{told}}:{name}"


MARKER: Final = stream("marker")
"""Says which data the store has, and whether it has every revocation."""
REPUBLISHER: Final = stream("republisher")
"""The name of the replica that republishes revocations."""


def sealed(name: str) -> str:
    """The store key, sealed with a secret key; *name* tells which one."""
    return f"{stream('sealed')}:{name}"

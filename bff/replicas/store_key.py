"""The key that all replicas of a store share, and that the store never sees.

The gateways use this random key to name and conceal what the store must not reveal. The store holds
a copy of it for each secret key of the gateways, sealed with that secret key. So a replica with any
of these secret keys can open it, and all replicas agree on it while a secret key is rotated.
"""

import hmac
from collections.abc import Callable, Sequence
from typing import Any, Final

from bff.replicas import keys, scripts
from bff.replicas.connection import Connection
from bff.replicas.link import Command

_BYTES: Final = 32
"""Length of the key: that of SHA-256, which also makes the pad."""
_NONCE_BYTES: Final = 16
AGREE_SECONDS: Final = 5.0
"""Seconds to wait for the store; no request waits for it."""


class StoreKey:
    """The key, once this replica has agreed on it with the others.

    Args:
        connection: to the store.
        random: makes random bytes.

    Attributes:
        secrets: the secret keys of every environment; a reload may change them.
        value: the key; None until `agree` has got it.
        sealed: what the store had of it after the last `agree`.
    """

    def __init__(self, connection: Connection, random: Callable[[int], bytes]) -> None:
        self.secrets: Sequence[bytes] = ()
        self.value: bytes | None = None
        self.sealed: list[bytes | None] = []
        self._connection = connection
        self._random = random

    @property
    def agreed(self) -> bytes:
        """The key; only while the store is up."""
        assert self.value is not None  # noqa: S101  the store is up
        return self.value

    def watch(self) -> list[Command]:
        """List the commands that read what the store has of the key; compare with `sealed`."""
        return [("GET", _name(secret)) for secret in self._distinct]

    async def agree(self) -> None:
        """Take the key that the store has; if it has none, store this replica's or a new one.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        secrets = self._distinct
        value = self.value or self._random(_BYTES)
        stored = await self._exchange(secrets, value, complete=False)
        opened = [
            None if sealed is None else _open(secret, sealed)
            for secret, sealed in zip(secrets, stored, strict=True)
        ]
        value = next((key for key in opened if key is not None), value)
        if any(key is None for key in opened):
            pairs = zip(secrets, stored, opened, strict=True)
            foreign = [_name(s) for s, sealed, key in pairs if sealed is not None and key is None]
            for name in foreign:
                await self._connection.execute(("UNLINK", name), timeout=AGREE_SECONDS)
            stored = await self._exchange(secrets, value, complete=True)
        self.value, self.sealed = value, stored

    @property
    def _distinct(self) -> list[bytes]:
        return list(dict.fromkeys(self.secrets))

    async def _exchange(
        self, secrets: Sequence[bytes], value: bytes, *, complete: bool
    ) -> list[Any]:
        names = map(_name, secrets)
        sealed = [_seal(secret, value, self._random(_NONCE_BYTES)) for secret in secrets]
        command = ("EVAL", scripts.AGREE, len(secrets), *names, int(complete), *sealed)
        (stored,) = await self._connection.execute(command, timeout=AGREE_SECONDS)
        return list(stored)


def _name(secret: bytes) -> str:
    return keys.sealed(hmac.digest(secret, b"bff store key: name", "sha256").hex()[:32])


def _seal(secret: bytes, value: bytes, nonce: bytes) -> bytes:
    text = nonce + _pad(secret, nonce, value)
    return (text + _tag(secret, text)).hex().encode()


def _open(secret: bytes, sealed: bytes) -> bytes | None:
    try:
        data = bytes.fromhex(sealed.decode())
    except ValueError:
        return None
    text, tag = data[: _NONCE_BYTES + _BYTES], data[_NONCE_BYTES + _BYTES :]
    if not hmac.compare_digest(tag, _tag(secret, text)):
        return None
    return _pad(secret, text[:_NONCE_BYTES], text[_NONCE_BYTES:])


def _pad(secret: bytes, nonce: bytes, text: bytes) -> bytes:
    pad = hmac.digest(secret, b"bff store key: pad" + nonce, "sha256")
    return bytes(a ^ b for a, b in zip(text, pad, strict=True))


def _tag(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, b"bff store key: tag" + text, "sha256")

"""The secret keys of one environment, and the header lines that every request to its API has.

Loads and chats share one object. So a key that upstream rejects for one of them is replaced for
both, and the change is reported once.
"""

from collections.abc import Callable, Sequence

from bff.upstream.connection import header_lines
from bff.upstream.pool import Address


class Credentials:
    """Signs the requests to one environment's API, with one secret key at a time.

    Args:
        url: base URL, without a slash at its end.
        secret_keys: the first is in use until upstream rejects it; then the next takes its place.
        branch: sent as ``x-trigger-branch``; preview and named dev branches need it.
        user_agent: sent as ``user-agent``.
        on_key: called with the position of the secret key, from 1, when another one takes over.
    """

    def __init__(
        self,
        *,
        url: str,
        secret_keys: Sequence[str],
        branch: str | None,
        user_agent: str,
        on_key: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.address = Address.read(url)
        self.has_branch = branch is not None
        self.in_use = 0
        """The position of the secret key in use, from 0."""
        self._on_key = on_key
        self.unsigned = header_lines(
            (b"host", self.address.shown),
            (b"accept-encoding", b"identity"),
            (b"user-agent", user_agent.encode()),
        )
        """The header lines of a request without a secret key."""
        branches = () if branch is None else ((b"x-trigger-branch", branch.encode()),)
        self._signed = [
            self.unsigned + header_lines(*branches, (b"authorization", b"Bearer " + key.encode()))
            for key in secret_keys
        ]

    def __len__(self) -> int:
        return len(self._signed)

    def signed(self, key: int) -> bytes:
        """Return the header lines of a request with the secret key at position *key*."""
        return self._signed[key]

    def reject(self, key: int) -> None:
        """Replace a secret key that upstream rejected, unless another request has done so."""
        if len(self._signed) > 1 and key == self.in_use:
            self.in_use = (key + 1) % len(self._signed)
            self._on_key(self.in_use + 1)

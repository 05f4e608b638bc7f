"""Ids in the other form: the browser asks by the friendly id, the token names the external id.

Only the session's copy tells whether the two are one session. So the gateway looks the id up and
hides the outcome: everything but an authorized 200 is answered 403. The load that a guess starts is
charged to the bad-token limit of its address, and refunded when the answer is a 200.
"""

from typing import Final, Protocol

from bff.errors import Refusal, Refused
from bff.limits.rate import Window


class Guess(Protocol):
    """Charges and hides, while an id is not known to be one that the token names."""

    def charge(self) -> None:
        """Charge the load that the request is about to start; a load in flight is free to join."""

    def refund(self) -> None:
        """Refund what was charged."""

    @property
    def charged(self) -> bool:
        """Whether a load is charged and not refunded."""

    def hide(self, refusal: Refusal) -> Refusal:
        """Return the refusal that the browser may read in place of *refusal*."""


class NamedId:
    """The token names the id: nothing is charged, and nothing is hidden."""

    charged = False

    def charge(self) -> None:
        """Charge nothing."""

    def refund(self) -> None:
        """Refund nothing."""

    def hide(self, refusal: Refusal) -> Refusal:
        """Hide nothing."""
        return refusal


NAMED: Final = NamedId()


class AliasGuess:
    """The id may be an alias of one that the token names.

    Args:
        window: the bad-token window of the request's address.
    """

    __slots__ = ("_window", "charged")

    def __init__(self, window: Window) -> None:
        self._window = window
        self.charged = False

    def charge(self) -> None:
        """Charge one load.

        Raises:
            Refused: ``unauthorized``, if the address has guessed too often.
        """
        if self._window.exhausted:
            raise Refused("unauthorized")
        self._window.charge()
        self.charged = True

    def refund(self) -> None:
        """Refund what was charged."""
        if self.charged:
            self._window.refund()
            self.charged = False

    def hide(self, refusal: Refusal) -> Refusal:
        """Hide everything but the rate limit; a guess that cost no load is charged now."""
        if refusal.code == "rate_limited":
            return refusal
        if not self.charged:
            self._window.charge()
        return Refusal("unauthorized")

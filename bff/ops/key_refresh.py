"""Fetches key sets of token sources and ids of environments, outside of any request.

No browser waits for a fetch. While fetches fail, the gateway uses the last keys as long as they are
trusted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from bff import metrics
from bff.background import DONE, Beat, Run
from bff.clock import Clock
from bff.errors import UpstreamError
from bff.ops.environment_id import IdUnknown
from bff.telemetry import Telemetry
from bff.tokens.issuers import Source
from bff.tokens.jwks import read_jwks

RETRY_SECONDS: Final = 2.0
"""Seconds between two requests for an environment's id while upstream fails."""
REJECTED_SECONDS: Final = 60.0
"""Seconds between two requests for an environment's id after upstream refused the secret key. Only
another key, permission or branch can change that answer."""

CONFIRM_SECONDS: Final = 1.0
"""Seconds before the request that confirms an id of the settings. So the calls for which browsers
wait go first."""


@dataclass(frozen=True, slots=True)
class IdRequest:
    """A request for the id of the environment that a secret key belongs to.

    Attributes:
        ask: asks upstream; raises `UpstreamError` or `IdUnknown`.
        on_id: called with the id.
        is_needed: the id is not in the settings, so no token is accepted without the answer;
            otherwise the answer only confirms the settings.
    """

    ask: Callable[[], Awaitable[str]]
    on_id: Callable[[str], None]
    is_needed: bool


MAX_WAIT_SECONDS: Final = 60.0
"""Longest pause in seconds between two rounds of a loop, so that a waiting loop does not count as
hung."""


@dataclass(eq=False)
class KeyRefresh:
    """Refreshes key sets, and gets missing environment ids, while the service runs.

    Args:
        fetch: fetches a public document by URL.
        sources: the token sources; those with keys from the settings are ignored.
        unknown: the ids to ask for, by environment name.
        clock: the two times.
        telemetry: counts and logs the fetches.
    """

    fetch: Callable[[str], Awaitable[bytes]]
    sources: Sequence[Source]
    unknown: Mapping[str, IdRequest]
    clock: Clock
    telemetry: Telemetry

    def loops(self) -> list[Run]:
        """Return the loops that run beside requests: one for each key set and each id."""
        fetched = [source for source in self.sources if source.keys.url is not None]
        return [
            *(partial(self._refresh_forever, source) for source in fetched),
            *(partial(self._learn, name, request) for name, request in self.unknown.items()),
        ]

    async def _refresh_forever(self, source: Source, beat: Beat) -> None:
        while True:
            beat()
            wait = min(MAX_WAIT_SECONDS, source.keys.wait(self.clock()[0]))
            if wait <= 0:
                await self.refresh(source)
            elif source.keys.unknown_kid.is_set():
                await asyncio.sleep(wait)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(source.keys.unknown_kid.wait(), wait)

    async def refresh(self, source: Source) -> None:
        """Fetch the keys of *source* once. Never raises."""
        outcome: str
        now, _ = self.clock()
        keys, log = source.keys, self.telemetry.log
        keys.attempt(now)
        try:
            document = await self.fetch(keys.url or "")
            fetched = read_jwks(document, source.algorithms)
        except asyncio.CancelledError:
            keys.abandon()
            raise
        except UpstreamError as error:
            outcome = error.code
            log.warning("keys_not_fetched", source=source.name, outcome=outcome)
        except ValueError as exc:
            outcome = "unusable"
            log.warning("keys_not_fetched", source=source.name, outcome=f"the answer {exc}")
        except Exception as exc:  # noqa: BLE001  the task must go on
            outcome = "internal"
            self.telemetry.exception("keys_not_fetched", exc, source=source.name)
        else:
            outcome = "ok"
            generation = keys.generation
            keys.replace(fetched, self.clock()[1])
            if keys.generation != generation:
                log.info("keys_changed", source=source.name, keys=len(keys))
        self.telemetry.count(metrics.KEY_FETCHES, source.name, outcome)

    async def _learn(self, name: str, request: IdRequest, beat: Beat) -> bool:
        log, logged = self.telemetry.log, ""
        if not request.is_needed:
            await asyncio.sleep(CONFIRM_SECONDS)
        while True:
            beat()
            wait, outcome, remedy = RETRY_SECONDS, "refused", "none: the gateway tries again"
            try:
                id_ = await request.ask()
            except UpstreamError as error:
                outcome = error.code
            except IdUnknown as unknown:
                remedy = unknown.remedy
                wait = REJECTED_SECONDS if unknown.is_final else RETRY_SECONDS
            except Exception as exc:  # noqa: BLE001  the task must go on
                outcome = "internal"
                self.telemetry.exception("environment_id_unknown", exc, environment=name)
            else:
                log.info("environment_id_learned", environment=name)
                request.on_id(id_)
                return DONE
            if request.is_needed and outcome != "internal":
                log.error(
                    "environment_id_unknown", environment=name, outcome=outcome, remedy=remedy
                )
            elif not request.is_needed:
                wait = REJECTED_SECONDS
                if logged != remedy:
                    logged = remedy
                    log.warning(
                        "environment_id_unconfirmed",
                        environment=name,
                        outcome=outcome,
                        remedy=remedy,
                    )
            await asyncio.sleep(wait)

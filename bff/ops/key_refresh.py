"""Fetches key sets of token sources and ids of environments, outside of any request.

No browser waits for a fetch. While fetches fail, the gateway uses the last keys as long as they are
trusted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from bff import metrics
from bff.background import DONE, Beat, Run
from bff.clock import Clock
from bff.errors import UpstreamError
from bff.telemetry import Telemetry
from bff.tokens.issuers import Source
from bff.tokens.jwks import read_jwks

RETRY_SECONDS: Final = 2.0
"""Between two requests for an environment's id while upstream fails."""
REJECTED_SECONDS: Final = 60.0
"""Between two requests for an environment's id after upstream refused it to the secret key, which
only a change of the key or of its permissions can mend."""

MAX_WAIT_SECONDS: Final = 60.0
"""Between two rounds of a loop, so that a loop that waits does not count as one that hangs."""


class KeyRefresh:
    """Refreshes key sets, and gets missing environment ids, while the service runs.

    Args:
        fetch: fetches a public document by URL.
        sources: the token sources; those with keys from the settings are ignored.
        unknown: by environment name, a function that gets the id, and a callback for it.
        clock: the two times.
        telemetry: counts and logs the fetches.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[bytes]],
        sources: Sequence[Source],
        unknown: Mapping[str, tuple[Callable[[], Awaitable[str]], Callable[[str], None]]],
        *,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._fetch = fetch
        self._sources = [source for source in sources if source.keys.url is not None]
        self._unknown = unknown
        self._clock = clock
        self._telemetry = telemetry

    def loops(self) -> list[Run]:
        """Return what has to run beside requests: a loop for each key set and for each id."""
        return [
            *(partial(self._refresh_forever, source) for source in self._sources),
            *(partial(self._learn, name, *one) for name, one in self._unknown.items()),
        ]

    async def _refresh_forever(self, source: Source, beat: Beat) -> None:
        while True:
            beat()
            wait = min(MAX_WAIT_SECONDS, source.keys.wait(self._clock()[0]))
            if wait <= 0:
                await self.refresh(source)
            elif source.keys.unknown_kid.is_set():
                await asyncio.sleep(wait)
            else:
                try:
                    await asyncio.wait_for(source.keys.unknown_kid.wait(), wait)
                except TimeoutError:
                    continue

    async def refresh(self, source: Source) -> None:
        """Fetch the keys of *source* once. Never raises."""
        outcome: str
        now, _ = self._clock()
        keys, log = source.keys, self._telemetry.log
        keys.attempt(now)
        try:
            document = await self._fetch(keys.url or "")
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
            self._telemetry.exception("keys_not_fetched", exc, source=source.name)
        else:
            outcome = "ok"
            generation = keys.generation
            keys.replace(fetched, self._clock()[1])
            if keys.generation != generation:
                log.info("keys_changed", source=source.name, keys=len(keys))
        self._telemetry.count(metrics.KEY_FETCHES, source.name, outcome)

    async def _learn(
        self,
        name: str,
        get_id: Callable[[], Awaitable[str]],
        on_id: Callable[[str], None],
        beat: Beat,
    ) -> bool:
        log = self._telemetry.log
        while True:
            beat()
            wait = RETRY_SECONDS
            try:
                id_ = await get_id()
            except UpstreamError as error:
                remedy = "none: the gateway tries again"
                if error.code == "upstream_rejected_credentials":
                    wait = REJECTED_SECONDS
                    remedy = "set BFF_ENVIRONMENT_ID: a restricted key cannot fetch it"
                fields = {"environment": name, "outcome": error.code, "remedy": remedy}
                log.error("environment_id_unknown", **fields)
            except Exception as exc:  # noqa: BLE001  the task must go on
                self._telemetry.exception("environment_id_unknown", exc, environment=name)
            else:
                log.info("environment_id_learned", environment=name)
                on_id(id_)
                return DONE
            await asyncio.sleep(wait)

"""What is fetched off the path of any request: the keys of token sources, and environment ids.

No browser waits for any of it. While it fails, what is known stays good for as long as it may.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from bff import metrics
from bff.errors import UpstreamError
from bff.telemetry import Telemetry
from bff.tokens.issuers import Source
from bff.tokens.jwks import read_jwks

ASK_SECONDS: Final = 2.0
"""Between two questions for an environment's id while upstream fails."""
REJECTED_SECONDS: Final = 60.0
"""The same once upstream said that the key may not know."""


class KeyRefresh:
    """Keeps a service supplied while it runs.

    Args:
        fetch: gets a public document.
        sources: those whose keys are fetched, and others, which are left alone.
        unknown: by an environment's name, what asks for its id and what is told of it.
        clock: the two times: one that never jumps, and Unix seconds.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[bytes]],
        sources: Sequence[Source],
        unknown: Mapping[str, tuple[Callable[[], Awaitable[str]], Callable[[str], None]]],
        *,
        clock: Callable[[], tuple[float, float]],
        telemetry: Telemetry,
    ) -> None:
        self._fetch = fetch
        self._sources = [source for source in sources if source.keys.url is not None]
        self._unknown = unknown
        self._clock = clock
        self._telemetry = telemetry

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for source in self._sources:
                tasks.create_task(self._keep(source))
            for name, (ask, learned) in self._unknown.items():
                tasks.create_task(self._learn(name, ask, learned))

    async def _keep(self, source: Source) -> None:
        while True:
            wait = source.keys.wait(self._clock()[0])
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
            fetched = await self._fetch(keys.url or "")
            found = read_jwks(fetched, source.algorithms)
        except asyncio.CancelledError:
            keys.abandon()
            raise
        except UpstreamError as error:
            outcome = error.code
            log.warning("keys_not_fetched", source=source.name, outcome=outcome)
        except ValueError as exc:
            outcome = "unusable"
            log.warning("keys_not_fetched", source=source.name, outcome=f"the answer {exc}")
        except Exception as exc:  # noqa: BLE001  the next attempt has to come
            outcome = "internal"
            self._telemetry.exception("keys_not_fetched", exc, source=source.name)
        else:
            outcome = "ok"
            before = keys.generation
            keys.replace(found, self._clock()[1])
            if keys.generation != before:
                log.info("keys_changed", source=source.name, keys=len(keys))
        self._telemetry.count(metrics.KEY_FETCHES, source.name, outcome)

    async def _learn(
        self, name: str, ask: Callable[[], Awaitable[str]], learned: Callable[[str], None]
    ) -> None:
        log = self._telemetry.log
        while True:
            wait = ASK_SECONDS
            try:
                id_ = await ask()
            except UpstreamError as error:
                remedy = "none is needed: it is asked for again"
                if error.code == "upstream_rejected_credentials":
                    wait = REJECTED_SECONDS
                    remedy = "set BFF_ENVIRONMENT_ID: a restricted key cannot tell it"
                fields = {"environment": name, "outcome": error.code, "remedy": remedy}
                log.error("environment_id_unknown", **fields)
            except Exception as exc:  # noqa: BLE001  the next attempt has to come
                self._telemetry.exception("environment_id_unknown", exc, environment=name)
            else:
                log.info("environment_id_learned", environment=name)
                learned(id_)
                return
            await asyncio.sleep(wait)

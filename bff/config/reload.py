"""Changes settings without a restart: on a signal, or when one of their files changes."""

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Final

from bff import metrics
from bff.config.settings import FIXED, Settings, SettingsError, changed
from bff.telemetry import Telemetry

WATCH_SECONDS: Final = 1.0
"""Seconds between two looks at the files of the settings."""

Signature = tuple[tuple[int, int, int] | None, ...]


class Reload:
    """The settings in force, and what replaces them.

    Args:
        settings: those that the gateway starts with.
        read: reads the settings again; raises `SettingsError`.
        apply: uses new settings: all of them, or none if it raises.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        read: Callable[[], Settings],
        apply: Callable[[Settings], None],
        telemetry: Telemetry,
    ) -> None:
        self.settings = settings
        self.current = True
        """Whether the settings that were read last are in force."""
        self._read = read
        self._apply = apply
        self._telemetry = telemetry
        # The files are watched from now on: a key may be removed while the gateway starts.
        self._files = Watch(settings.files)

    def __call__(self) -> None:
        """Read the settings again and use them; on trouble the former ones stay. Never raises."""
        log, before = self._telemetry.log, self.settings
        try:
            settings = self._read()
            self._apply(settings)
        except Exception as exc:  # noqa: BLE001  the gateway goes on with the former settings
            self.current = False
            self._telemetry.count(metrics.RELOADS, "failed")
            if isinstance(exc, SettingsError):
                log.error("settings_not_reloaded", problems=exc.problems)
            else:
                self._telemetry.exception("settings_not_reloaded", exc)
            return
        self.settings, self.current = settings, True
        self._telemetry.count(metrics.RELOADS, "ok")
        log.info("settings_reloaded", changed=changed(before, settings))
        fixed = [
            name
            for field, name in FIXED.items()
            if getattr(settings, field) != getattr(before, field)
        ]
        if fixed:
            log.warning("settings_need_restart", settings=fixed)

    async def watch(self) -> None:
        """Reload when a file of the settings changes; goes on until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._files.changed():
                self()
            if self._files.files != self.settings.files:
                self._files = Watch(self.settings.files)


class Watch:
    """Looks at files from time to time.

    A change counts once the files have looked the same twice, so that the gateway does not read
    half of a file that is being written. Symbolic links are followed: Kubernetes changes a mounted
    secret by pointing a link elsewhere, and the system sends no notice of that.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._stable = self._last = self._look()

    def changed(self) -> bool:
        """Whether the files have changed, and come to rest, since the last change."""
        before, self._last = self._last, self._look()
        if self._last != before or self._last == self._stable:
            return False
        self._stable = self._last
        return True

    def _look(self) -> Signature:
        return tuple(map(_signature, self.files))


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  the same without building a Path every second
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

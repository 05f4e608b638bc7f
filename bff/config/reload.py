"""Changes settings without a restart: on a signal, or when one of their files changes.

Two mechanisms watch the files, because the removal of a key must not depend on one. A loop looks at
their times every second, and a timer reads all settings again twice a minute.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from bff import metrics
from bff.background import Beat
from bff.config.declaration import declared
from bff.config.settings import FIXED, EnvironmentSettings, PolicySettings, Settings, SettingsError
from bff.config.token_sources import SourceSettings
from bff.telemetry import Telemetry

WATCH_SECONDS: Final = 1.0
"""Seconds between two looks at the files of the settings."""
MAX_LOOKS: Final = 3
"""Looks after which a change counts although a file still changes. Otherwise a file that always
changes would delay the removal of a key in another."""
SIGNALLED_SECONDS: Final = 0.1
"""Seconds from a signal to the reload, so that a flood of signals costs few reloads."""
REREAD_SECONDS: Final = 30.0
"""Seconds between two readings of all settings, whether or not a file seems to have changed."""

Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(eq=False)
class Reload:
    """Holds the settings in force, and replaces them.

    Attributes:
        settings: first those that the gateway starts with.
        read: reads the settings again; raises `SettingsError`.
        apply: uses new settings: all of them, or none if it raises.
    """

    settings: Settings
    read: Callable[[], Settings]
    apply: Callable[[Settings], None]
    telemetry: Telemetry
    _problems: list[str] = field(default_factory=list, init=False)
    """The problems of the last reading."""
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _signalled: asyncio.TimerHandle | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._files = Watch(self.settings.files)
        self._as_read = self._files.look()
        """How the files looked before the last reading."""

    def on_signal(self) -> None:
        """Reload soon, once for all signals until then."""
        if self._signalled is None:
            loop = asyncio.get_running_loop()
            self._signalled = loop.call_later(SIGNALLED_SECONDS, self._on_signals)

    def _on_signals(self) -> None:
        self._signalled = None
        self()

    def __call__(self) -> None:
        """Read the settings again and use them; on trouble the former ones stay. Never raises."""
        self._reload(unchanged_too=True)

    @property
    def current(self) -> bool:
        """Whether the settings in force are those of the files."""
        return not self._problems and self._files.look() == self._as_read

    # -- the timer

    def start(self) -> None:
        """Read the settings again now, and then from time to time, until `stop`.

        A file may have changed between the first reading and the start of the watch.
        """
        self._timer = asyncio.get_running_loop().call_later(REREAD_SECONDS, self.start)
        self._reload(unchanged_too=False)

    def stop(self) -> None:
        """End the timers."""
        for timer in (self._timer, self._signalled):
            if timer is not None:
                timer.cancel()

    # -- the loop

    async def watch(self, beat: Beat) -> None:
        """Reload when a file of the settings changes; goes on until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            beat()
            if self._files.changed():
                self()

    def _reload(self, *, unchanged_too: bool) -> None:
        log, before = self.telemetry.log, self.settings
        self._as_read = self._files.look()
        try:
            settings = self.read()
            if settings == before and not (unchanged_too or self._problems):
                return
            self.apply(settings)
        except BaseException as exc:  # noqa: BLE001  the gateway goes on with the former settings
            problems = exc.problems if isinstance(exc, SettingsError) else [type(exc).__name__]
            repeated, self._problems = problems == self._problems, problems
            if repeated and not unchanged_too:
                return
            self.telemetry.count(metrics.RELOADS, "failed")
            if isinstance(exc, SettingsError):
                log.error("settings_not_reloaded", problems=exc.problems)
            else:
                self.telemetry.exception("settings_not_reloaded", exc)
            return
        self.settings, self._problems = settings, []
        if self._files.files != settings.files:
            self._files = Watch(settings.files)
            self._as_read = self._files.look()
        self.telemetry.count(metrics.RELOADS, "ok")
        names = changed(before, settings)
        log.info("settings_reloaded", changed=names)
        if fixed := [name for name in names if name in FIXED.values()]:
            log.warning("settings_need_restart", settings=fixed)


def wait_for_settings(
    read: Callable[[], Settings], started: Settings, telemetry: Telemetry
) -> Settings:
    """Read the current settings for a worker that replaces another; wait until they are valid.

    The settings that the supervisor *started* with may hold a signing key that was removed since.
    Settings that need a restart keep their old values. While the worker waits, the others serve.
    """
    problems: list[str] = []
    while True:
        try:
            return replace(read(), **{name: getattr(started, name) for name in FIXED})
        except SettingsError as exc:
            if exc.problems != problems:
                telemetry.log.error("settings_not_reloaded", problems=exc.problems)
            problems = list(exc.problems)
            time.sleep(WATCH_SECONDS)


class Watch:
    """Looks at files from time to time.

    A change counts when the files have looked the same twice, or after `MAX_LOOKS`. So the gateway
    does not read half of a file that is being written. It follows symbolic links, because
    Kubernetes changes a mounted secret by pointing a link elsewhere, without a notice of the
    system.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._used = self._last = self.look()
        self._looks = 0
        """Looks since the files began to differ from those last used."""

    def changed(self) -> bool:
        """Whether the files have changed since the last reload and no longer change."""
        before, self._last = self._last, self.look()
        self._looks = 0 if self._last == self._used else self._looks + 1
        if not self._looks or (self._last != before and self._looks < MAX_LOOKS):
            return False
        self._used, self._looks = self._last, 0
        return True

    def look(self) -> Signature:
        """Return a value that differs if the files do."""
        return tuple(map(_signature, self.files))


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  the same without building a Path every second
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def changed(before: Settings, after: Settings) -> list[str]:
    """Name the settings that differ, each with its section; no value is named."""
    names = _differing(Settings, before, after)
    for kind, (settings_class, sections) in _SECTIONS.items():
        old, new = sections(before), sections(after)
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new:
                names.append(f"{kind} {name} ({'added' if name in new else 'removed'})")
                continue
            of = "" if name == "default" else f" of {kind} {name}"
            names += [f"{n}{of}" for n in _differing(settings_class, old[name], new[name])]
    return names


def _differing(settings_class: type, before: object, after: object) -> list[str]:
    rows = declared(settings_class).items()
    return [row.name for field_, row in rows if getattr(before, field_) != getattr(after, field_)]


_SECTIONS: Final[dict[str, tuple[type, Callable[[Settings], Mapping[str, object]]]]] = {
    "environment": (EnvironmentSettings, lambda s: {one.name: one for one in s.environments}),
    "token source": (SourceSettings, lambda s: {one.name: one for one in s.token_sources}),
    "policy": (PolicySettings, lambda s: {**s.policies, "default": s.default_policy}),
}
"""The kinds of sections: the class of their settings, and what finds them by name."""

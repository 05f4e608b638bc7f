"""Notices that files changed. Knows nothing of what is in them."""

import os
from collections.abc import Iterable

Signature = tuple[tuple[int, int, int] | None, ...]


class Watch:
    """Looks at files from time to time.

    A change counts once the files have looked the same twice, so that a file which is being
    written is not read by half. Symbolic links are followed: Kubernetes changes a mounted secret by
    pointing a link elsewhere, and no notice of the system comes from the file itself.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._settled = self._last = self._look()

    def changed(self) -> bool:
        """Whether the files have changed, and come to rest, since this last said so."""
        before, self._last = self._last, self._look()
        if self._last != before or self._last == self._settled:
            return False
        self._settled = self._last
        return True

    def _look(self) -> Signature:
        return tuple(map(_signature, self.files))


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  the same without building a Path every second
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

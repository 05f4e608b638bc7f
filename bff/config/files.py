"""Opens and reads the files that settings name.

The gateway reads them again while it serves. So no file may make it wait, as a pipe does, or fill
its memory, as a device does.
"""

import os
import stat
from typing import BinaryIO, Final

MAX_BYTES: Final = 1024 * 1024
"""Bytes of the largest file that is read: thousands of keys, or a very long file of settings."""


def opened(path: str) -> BinaryIO:
    """Open a regular file.

    Raises:
        OSError: with a reason for the operator in `strerror`.
        ValueError: no path has a NUL.
    """
    # Without the flag, this call would wait until another process opens the pipe for writing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: str) -> str:
    """Read a file of UTF-8 text; an editor may put a byte order mark in front.

    Raises:
        OSError: as `opened`; also if the file is too large or no text.
        ValueError: as `opened`.
    """
    with opened(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(0, f"larger than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OSError(0, "not UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")

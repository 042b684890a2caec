"""Open files that a stranger may have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

# Where the system lacks these (Windows), what is opened is still compared with what was looked at.
_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file to read; follows no link and never waits on a pipe.

    Raises:
        OSError: it is something else or cannot be read; `strerror` says so in words.
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "is a symbolic link" if stat.S_ISLNK(found.st_mode) else "is not a plain file")
    descriptor = os.open(path, _FLAGS)
    if not os.path.samestat(found, os.fstat(descriptor)):
        os.close(descriptor)
        raise OSError(0, "was replaced while it was opened")
    return os.fdopen(descriptor, "rb")

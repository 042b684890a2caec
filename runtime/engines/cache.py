"""A folder that keeps what an engine compiled, so that the next process need not.

Nothing is kept unless the user names a folder. What it holds is trusted as the program itself is: a compiled
graph is run without a look inside. So that nobody but the user (and root, who could replace litemed as well)
can have put it there, the folder must belong to the user and must not be writable for group or others, the
same holds for every entry, and no link is followed (on Windows, whose files have no such modes, it is for
the folder's access list to keep others out). An entry is named by the sha256 of everything it depends on:
the graph's own verified hash, the engine and its version, its options, the CPU. A changed or swapped graph
therefore never meets an entry made of another one. An entry begins with a sha256 of its name and content, so
that one which is damaged, or moved to another's name, is made anew. (OpenVINO's own cache folder does not
verify what it reads.)
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

from litemed.runtime.errors import OutputError, UsageError
from litemed.runtime.files import atomic_write, make_folder, remove_leftovers
from litemed.runtime.plain_file import open_plain

MAX_BYTES = 1 << 31
"""The most that an entry may take."""

_DIGEST_BYTES = 32


class Cache:
    """Entries by what they depend on, in a folder of the user's own.

    Args:
        folder: made, for the user only, if it does not exist.

    Raises:
        UsageError: the folder belongs to somebody else, or others may write into it.
        OutputError: it cannot be made or read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Check the folder."""
        self._folder = Path(folder)
        try:
            if not self._folder.exists():
                make_folder(self._folder.parent)
                self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
        self._check()

    def load(self, *depends_on: str) -> bytes | None:
        """Return the entry that depends on just this; None if there is none that may be used."""
        self._check()
        name = _name(depends_on)
        try:
            with open_plain(self._folder / name) as file:
                status = os.fstat(file.fileno())
                if _foreign(status) or status.st_size > MAX_BYTES:
                    return None
                digest, data = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return None
        return data if digest == _digest(name, data) else None

    def store(self, data: bytes, *depends_on: str) -> None:
        """Keep an entry; replaces what has its name. Raises OutputError if it cannot be written."""
        self._check()
        name = _name(depends_on)
        remove_leftovers(self._folder / name)
        with atomic_write(self._folder / name, durable=False) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o600)
            file.write(_digest(name, data))
            file.write(data)

    def _check(self) -> None:
        try:
            status = os.lstat(self._folder)
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be read: {error.strerror or error}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{self._folder}: is no folder; name a folder of your own for the cache")
        if _foreign(status):
            raise UsageError(
                f"{self._folder}: is not yours alone to write, so what it holds cannot be trusted; "
                "chmod go-w it or name another folder for the cache"
            )


def _foreign(status: os.stat_result) -> bool:
    """Return whether others own or may write what has this status."""
    if not hasattr(os, "geteuid"):
        return False
    return status.st_uid != os.geteuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _name(depends_on: tuple[str, ...]) -> str:
    return f"{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()}.bin"


def _digest(name: str, data: bytes) -> bytes:
    digest = hashlib.sha256(name.encode())
    digest.update(data)
    return digest.digest()

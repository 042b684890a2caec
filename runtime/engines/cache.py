"""A folder that keeps what OpenVINO compiled, so that the next process need not.

It is trusted as the program itself is: compiled graphs are run without a look inside. So folder and
entries must belong to the user and must not be writable for group or others, and no link is followed (on
Windows it is for the folder's access list to keep others out). An entry is named by the sha256 of all that it
depends on, and begins with one of its name and content: what is damaged, or moved to another's name, is made
anew. (OpenVINO's own cache folder does not verify what it reads.)
"""

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path

from litemed.runtime.errors import OutputError, UsageError
from litemed.runtime.files import atomic_write, make_folder, open_plain, remove_leftovers

_DIGEST_BYTES = 32


class Cache:
    """Entries by what they depend on, in a folder of the user's own, which is made if it does not exist."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raise UsageError for no folder or one that others may write, OutputError if it cannot be made."""
        self._folder = Path(folder)
        make_folder(self._folder.parent)
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            status = os.lstat(self._folder)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made or read: {error.strerror or error}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{folder}: is no folder; name a folder of your own for the cache")
        if _foreign(status):
            raise UsageError(f"{folder}: is not yours alone to write; chmod go-w it or name another folder")

    def load(self, *depends_on: str) -> bytes | None:
        """Return the entry that depends on just this; None if there is none that may be used."""
        path = self._path(depends_on)
        try:
            with open_plain(path) as file:
                foreign = _foreign(os.fstat(file.fileno()))
                digest, data = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return None
        return None if foreign or digest != _digest(path, data) else data

    def store(self, data: bytes, *depends_on: str) -> None:
        """Keep an entry; replaces what has its name. Raises OutputError if it cannot be written."""
        path = self._path(depends_on)
        remove_leftovers(path)
        with atomic_write(path, durable=False) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o600)
            file.write(_digest(path, data))
            file.write(data)

    def _path(self, depends_on: tuple[str, ...]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()}.bin"


def _foreign(status: os.stat_result) -> bool:
    """Return whether others own or may write what has this status."""
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return hasattr(os, "geteuid") and bool(writable or status.st_uid != os.geteuid())


def _digest(path: Path, data: bytes) -> bytes:
    digest = hashlib.sha256(path.name.encode())
    digest.update(data)
    return digest.digest()

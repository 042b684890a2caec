"""Write files whole or not at all, one process at a time, and nowhere but where they belong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import stat
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from litemed.runtime.errors import OutputError


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal. Raises OSError if it cannot be read."""
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_input(path: Path) -> io.BufferedReader:
    """Open a file that a user named, or a link to one.

    Raises OSError if it is something else, or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a device may never end, a pipe never begin
        raise OSError(0, "is not a plain file")
    return path.open("rb")


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file that a stranger may have put there; follows no link and never waits on a pipe.

    Raises OSError if it is something else or cannot be read; `strerror` says so in words.
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "is a symbolic link" if stat.S_ISLNK(found.st_mode) else "is not a plain file")
    # Where the system lacks these flags, what is opened is still compared with what was looked at.
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not os.path.samestat(found, os.fstat(descriptor)):
        os.close(descriptor)
        raise OSError(0, "was replaced while it was opened")
    return os.fdopen(descriptor, "rb")


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as ``path``, whole or not at all, when the block ends.

    Until then it is a hidden file beside it, which is removed if the block raises anything; what a killed
    process leaves behind `remove_leftovers` takes away. If ``durable``, the bytes are on the disk before the
    file appears, which takes some milliseconds: a power cut leaves all of it or nothing.

    Raises OutputError if ``path`` is a symbolic link or a folder, or cannot be written.
    """
    refuse_odd_target(path)
    temporary = path.with_name(f"{_hidden(path.name)}-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            with contextlib.suppress(OSError):  # Windows and some network file systems have no such thing
                _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of ``path``, whose lock is held. Raises OutputError if it cannot."""
    try:
        for leftover in path.parent.glob(f"{_hidden(path.name)}-*.tmp"):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot clean up beside it: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they do not exist. Raises OutputError if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made a folder: {error.strerror or error}") from error


def folder_below(folder: Path, way: Path) -> Path:
    """Return a folder of results below another one. Raises OutputError where a link leads out of that."""
    below = folder / way
    if not below.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{below}: is a link out of the folder of results; remove it")
    return below


def output_path(folder: Path, name: str, suffix: str) -> Path:
    """Return ``folder/NAMEsuffix``, a name that lies directly in the folder.

    Raises OutputError if it is empty, hidden, has a separator or unprintable characters, or is too long.
    """
    plain = name and not name.startswith(".") and Path(name).name == name and name.isprintable()
    if not plain or len(os.fsencode(name + suffix)) > 255:
        raise OutputError(f"{name!a} cannot name a result; rename the case")
    return folder / (name + suffix)


def refuse_odd_target(path: Path) -> None:
    """Raise an OutputError if a symbolic link, a folder or a device lies at ``path``."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputError(f"{path}: is a link, folder or device, not a plain file; remove it")


def same_name_key(name: str) -> str:
    """Return what two names share if some file system takes them for one: case and Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class LockedError(OutputError):
    """Another process holds the lock."""


class FolderLock:
    """Keeps other processes (and other locks in this one) away from a folder, or from one ``name`` in it.

    The two do not exclude one another. A context manager round a lock on a hidden file, which is removed on
    release; if the process dies, the system lets go of the lock. Entering waits for it if told to ``wait``
    and raises LockedError otherwise, OutputError if the file cannot be made; then ``abandoned`` says whether
    the last holder died with it after `mark`.
    """

    def __init__(self, folder: Path, name: str = "", *, wait: bool = False) -> None:
        """Name the lock; it is taken on entering."""
        self._path = folder / f"{_hidden(name)}.lock"
        self._what = folder / name if name else folder
        self._wait = wait
        self.abandoned = False
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        """Take the lock."""
        try:
            while not self._take():
                time.sleep(0.005)
        except BlockingIOError as error:
            raise LockedError(f"{self._what}: another process is working on it; wait for its end") from error
        except OSError as error:
            raise OutputError(f"{self._what}: cannot be locked: {error.strerror or error}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        if self._descriptor is None:
            return
        os.ftruncate(self._descriptor, 0)
        # While the lock is held, so that nobody else's file is removed.
        with contextlib.suppress(PermissionError):  # Windows removes no open file; what stays is empty
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def mark(self) -> None:
        """Note in the lock's file that what it guards is about to be written. Raises OutputError."""
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, b"1")
            except OSError as error:
                raise OutputError(f"{self._what}: cannot be written: {error.strerror or error}") from error

    def abandon(self) -> None:
        """Release the lock as if this process had died: what it guards was written and is not on record."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self) -> bool:
        """Try to take the lock; BlockingIOError if it is another's and not to be waited for."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(descriptor)
            status = os.fstat(descriptor)
            if os.path.samestat(status, self._path.lstat()):
                self.abandoned, self._descriptor = status.st_size > 0, descriptor
        except FileNotFoundError:
            pass  # its last holder removed it before this one locked it
        except BlockingIOError:
            if not self._wait:
                raise
        finally:
            if self._descriptor is None:
                os.close(descriptor)
        return self._descriptor is not None


def _lock(descriptor: int) -> None:
    """Lock an open file against all others that open it; raise BlockingIOError if one of them has."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _hidden(name: str) -> str:
    """Return a hidden file name of fixed length that stands for ``name``, however long that is."""
    return f".litemed-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def _sync_folder(folder: Path) -> None:
    """Put the folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

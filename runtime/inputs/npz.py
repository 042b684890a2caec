"""Read and write npz archives from and for strangers.

`numpy.load` believes what a zip and the headers in it declare: it allocates any shape, reads the first of two
members of one name, passes over bytes before, between and after. Here every declaration is checked against
the file before anything is allocated, and objects (pickles) are refused by their dtype, unread.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from litemed.runtime.errors import InputError, in_short
from litemed.runtime.files import open_input

MAX_VOXELS = 2**29  # of one array: 2048 slices of 512 x 512, or a colour image of 13 000 x 13 000
MAX_MEMBERS = 64  # of an archive; the challenge's files have at most four

_MAX_DIRECTORY_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 1024
_END_RECORD = struct.Struct("<4s4H2LH")
# Deflate spends at least two bits on 258 bytes.
DEFLATE_MAX_RATIO = 1032
_MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_MAX_RATIO}
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What zipfile, zlib and numpy raise on a damaged archive, found by fuzzing and in their documentation.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error)


class NpzReader:
    """An open archive whose arrays, of these `names`, are read one by one; a context manager.

    Raises InputError if the file is missing, no archive or damaged, or has bytes that belong to no member, or
    members that are repeated or declare more than they can hold.
    """

    def __init__(self, path: Path) -> None:
        """Open the archive and check its directory."""
        self.path = path
        try:
            self._file: BinaryIO = open_input(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from error
        try:
            with self._naming_damage():
                self._check_end_record()
                self._archive = zipfile.ZipFile(self._file)
                self._check_members()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> NpzReader:
        """Return the reader itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._file.close()

    def header(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return dtype and shape of array ``name``, without reading its data.

        Raises InputError for no such array, a damaged header, objects or another dtype that is no number,
        more than ``MAX_VOXELS`` elements, or a size that is not the member's.
        """
        array = f"{self.path}: array {name!r}"
        with self._open(name) as stream:
            start = io.BytesIO(stream.read(npy.MAGIC_LEN + 4 + _MAX_HEADER_BYTES))
        shape: tuple[int, ...]
        try:
            read_header = _HEADER_READERS[npy.read_magic(start)]
            shape, _, dtype = read_header(start, max_header_size=_MAX_HEADER_BYTES)
            if len(shape) > 8 or any(type(side) is not int or side < 0 for side in shape):
                raise ValueError(f"shape {shape}")
        except Exception as error:  # of Python's parser and tokenizer and numpy's dtypes, a dozen kinds
            raise InputError(f"{array} has an unreadable header; save it with numpy.savez") from error
        if dtype.kind not in "biufc":
            why = "pickled Python objects, which are never read" if dtype.hasobject else "no plain numbers"
            raise InputError(f"{array} holds {why}; save it as an array of numbers")
        if math.prod(side for side in shape if side) > MAX_VOXELS:
            raise InputError(f"{array} has shape {shape}, more than {MAX_VOXELS} elements; split the case")
        declared = math.prod(shape) * dtype.itemsize
        held = self._members[name].file_size - start.tell()
        if declared != held:
            raise InputError(f"{array} of shape {shape} needs {declared} bytes and has {held}; it is damaged")
        return dtype, shape

    def read(self, name: str) -> np.ndarray:
        """Return array ``name``, C-contiguous; raises InputError as `header`, and if the data are damaged."""
        dtype, shape = self.header(name)
        with self._open(name) as stream:
            stored = npy.read_array(stream, allow_pickle=False)
        return np.ascontiguousarray(stored.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)

    def _check_end_record(self) -> None:
        """Refuse what the zip's end record reveals, before zipfile reads a directory of any size.

        The record must be the file's last 22 bytes and the directory end where it begins, so that nothing
        stands before or behind. zip64 fails this too, which starts at sizes that the voxel limit rules out.
        """
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        if self._file.read(2) != b"PK":
            raise InputError(
                f"{self.path}: not an npz archive, or the file is empty; save it with numpy.savez_compressed"
            )
        self._file.seek(max(0, size - _END_RECORD.size))
        record = self._file.read()
        if not record.startswith(b"PK\x05\x06") or record[-2:] != b"\0\0":
            raise InputError(f"{self.path}: truncated, or has bytes behind its end; copy or save it again")
        *_, directory, offset, _ = _END_RECORD.unpack(record)
        if directory > _MAX_DIRECTORY_BYTES or offset + directory != size - _END_RECORD.size:
            raise InputError(f"{self.path}: its directory is too large, or elsewhere; copy or save it again")

    def _check_members(self) -> None:
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            member, name = f"{self.path}: member {info.filename[:100]!r}", info.filename.removesuffix(".npy")
            if info.compress_type not in _MAX_RATIO:
                raise InputError(f"{member} is compressed in an odd way; save it with numpy.savez_compressed")
            if info.file_size > _MAX_RATIO[info.compress_type] * info.compress_size:
                raise InputError(f"{member} declares more bytes than it can hold; it is damaged or hostile")
            if name in self._members or len(self._members) == MAX_MEMBERS:
                raise InputError(f"{member} appears twice, or is one of over {MAX_MEMBERS}; save it again")
            self._members[name] = info
        self.names = tuple(self._members)

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self._members:
            names = ", ".join(self.names)
            listed = f"{names[:200]}..." if len(names) > 200 else names or "nothing"
            raise InputError(f"{self.path}: no array {name!r}, only {listed}")
        with self._naming_damage(), self._archive.open(self._members[name]) as stream:
            yield stream

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise InputError(f"{self.path}: not a readable npz ({in_short(error)}); copy it again") from error


def write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, by name, as a compressed npz whose bytes depend on nothing but the arrays."""
    # Milliseconds of CPU time and KB at levels 1 / 3 / 6: 287 x 512 x 512 labels 282 / 193 / 844 and
    # 1357 / 1173 / 483, of 150 MB stored (zlib 1.2.13, AMD EPYC; uint16).
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for name, array in arrays.items():
            # Opened by name, a member gets the constant date 1980-01-01.
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

"""Read and write npz archives from and for strangers.

An ``.npz`` is a zip of ``.npy`` members, and `numpy.load` believes what both say about themselves: it
allocates the shape that a header declares, reads the first of two members of one name, and passes over bytes
before, between and after. Here every declaration is checked against the file before anything is allocated,
and objects (pickles) are refused by their dtype, unread.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from litemed.runtime.errors import InputError

# Most elements of one array: 2048 slices of 512 x 512, or a colour image of 13 000 x 13 000.
MAX_VOXELS = 2**29
# Most members of an archive. The challenge's files have at most four.
MAX_MEMBERS = 64

_MAX_DIRECTORY_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 1024
_MAX_AXES = 8
_CHUNK_BYTES = 1 << 20
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
# Deflate spends at least two bits on 258 bytes.
_MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_KINDS = "biufc"
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What zipfile and zlib raise on a damaged archive, found by fuzzing and in their documentation.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class ArrayHeader:
    """What the header of one ``.npy`` member declares, already checked against the member's size."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool
    length: int
    """Bytes of the header itself."""


class NpzReader:
    """An open archive whose arrays are read one by one; a context manager.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, empty, no archive or damaged; it has bytes that belong to no
            member, members that are encrypted, repeated or declare more than they can hold.
    """

    def __init__(self, path: Path) -> None:
        """Open the archive and check its directory."""
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from error
        try:
            with self._naming_damage():
                _check_end_record(self._file, path)
                self._members = self._check_members(zipfile.ZipFile(self._file))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> NpzReader:
        """Return the reader itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in the order of the archive."""
        return tuple(self._members)

    def header(self, name: str) -> ArrayHeader:
        """Return what array ``name`` declares, without reading its data.

        Raises:
            InputError: no such array, a damaged header, objects or another dtype that is no number,
                more than ``MAX_VOXELS`` elements, or a size that is not the member's.
        """
        with self._open(name) as stream:
            header = self._parse_header(name, stream.read(npy.MAGIC_LEN + 4 + _MAX_HEADER_BYTES))
        declared = math.prod(header.shape) * header.dtype.itemsize
        held = self._members[name].file_size - header.length
        if declared != held:
            raise InputError(
                f"{self.path}: array {name!r} of shape {header.shape} needs {declared} bytes and "
                f"has {held}; the file is damaged"
            )
        return header

    def read(self, name: str) -> np.ndarray:
        """Return array ``name``, C-contiguous; its checksum is verified.

        Raises:
            InputError: as `header`, and if the data are damaged.
        """
        header = self.header(name)
        data = np.empty(math.prod(header.shape), header.dtype)
        view = data.view(np.uint8).data
        with self._open(name) as stream:
            stream.read(header.length)  # not seek(), after which the checksum is not verified
            for start in range(0, len(view), _CHUNK_BYTES):
                # Fewer bytes than are left do not fit: a ValueError.
                view[start : start + _CHUNK_BYTES] = stream.read(_CHUNK_BYTES)
        shaped = data.reshape(header.shape, order="F" if header.fortran_order else "C")
        native = shaped.astype(header.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(native).reshape(header.shape)

    def _check_members(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        self._archive = archive
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            member = f"{self.path}: member {info.filename!r}"
            if info.flag_bits & 0x1:
                raise InputError(f"{member} is encrypted; save it without a password")
            if info.compress_type not in _MAX_RATIO:
                raise InputError(
                    f"{member} is compressed by method {info.compress_type}; "
                    "save it with numpy.savez_compressed"
                )
            if info.file_size > _MAX_RATIO[info.compress_type] * info.compress_size:
                raise InputError(
                    f"{member} declares {info.file_size} bytes, more than its {info.compress_size} bytes "
                    "can hold; the file is damaged or hostile"
                )
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise InputError(f"{member} appears twice; save the file again")
            members[name] = info
        return members

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self._members:
            raise InputError(
                f"{self.path}: no array {name!r}, only {', '.join(map(repr, self.names)) or 'nothing'}"
            )
        with self._naming_damage(), self._archive.open(self._members[name]) as stream:
            yield stream

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self.path}: not a readable npz ({detail}); copy or save the file again"
            ) from error

    def _parse_header(self, name: str, start: bytes) -> ArrayHeader:
        """Return the header at the start of a member's bytes, all that it may take; numpy reads it."""
        array, stream = f"{self.path}: array {name!r}", io.BytesIO(start)
        shape: tuple[int, ...]
        dtype: np.dtype[Any]
        try:
            read_header = _HEADER_READERS[npy.read_magic(stream)]
            shape, fortran_order, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
        except KeyError as error:
            raise InputError(f"{array} is not an npy of version 1 or 2; save it with numpy.savez") from error
        except Exception as error:  # of Python's parser and tokenizer and numpy's dtypes, a dozen kinds
            raise InputError(f"{array} has an unreadable header; save it with numpy.savez") from error
        if dtype.kind not in _KINDS:
            why = "pickled Python objects, which are never read" if dtype.hasobject else "no plain numbers"
            raise InputError(f"{array} holds {why}; save it as an array of numbers")
        if len(shape) > _MAX_AXES or any(type(side) is not int or side < 0 for side in shape):
            raise InputError(f"{array} has an unreadable header (shape {shape}); save it with numpy.savez")
        if math.prod(side for side in shape if side) > MAX_VOXELS:
            raise InputError(
                f"{array} declares shape {shape}, more than {MAX_VOXELS} elements; split the case"
            )
        return ArrayHeader(dtype, shape, fortran_order, stream.tell())


def write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a compressed npz whose bytes depend on nothing but the arrays.

    Args:
        file: a seekable binary file opened for writing.
        arrays: arrays by name; those that are C-contiguous are streamed, not copied.
    """
    # Milliseconds of CPU time and KB at levels 1 / 3 / 6: 287 x 512 x 512 labels 282 / 193 / 844 and
    # 1357 / 1173 / 483, 1920 x 2560 with 241 objects 20 / 21 / 75 and 177 / 143 / 78 (zlib 1.2.13, AMD EPYC;
    # uint16). Stored, they would be 150 and 10 MB to put on the disk and hash.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for name, array in arrays.items():
            # Opened by name, a member gets the constant date 1980-01-01.
            with archive.open(f"{name}.npy", "w") as member:
                contiguous = np.ascontiguousarray(array)
                npy.write_array_header_1_0(member, npy.header_data_from_array_1_0(contiguous))
                data = contiguous.reshape(-1).view(np.uint8).data
                for start in range(0, len(data), _CHUNK_BYTES):
                    member.write(data[start : start + _CHUNK_BYTES])


def _check_end_record(file: BinaryIO, path: Path) -> None:
    """Refuse what the zip's end record reveals, before zipfile reads a directory of any size.

    The record must be the file's last 22 bytes and the directory must end where the record begins: so
    nothing stands before the archive or behind it. zip64 archives fail this too; they start at sizes
    that the voxel limit rules out.
    """
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise InputError(f"{path}: the file is empty; copy it again")
    file.seek(0)
    if file.read(2) != b"PK":
        raise InputError(f"{path}: not an npz archive; save it with numpy.savez_compressed")
    file.seek(max(0, size - _END_RECORD.size))
    record = file.read()
    if not record.startswith(_END_SIGNATURE) or record[-2:] != b"\0\0":
        raise InputError(
            f"{path}: the archive is truncated or has bytes behind its end; copy or save it again"
        )
    _, disk, first_disk, here, members, directory, offset, _ = _END_RECORD.unpack(record)
    if members > MAX_MEMBERS or directory > _MAX_DIRECTORY_BYTES:
        raise InputError(
            f"{path}: the archive declares {members} members listed in {directory} bytes; the most is "
            f"{MAX_MEMBERS} in {_MAX_DIRECTORY_BYTES}"
        )
    if disk or first_disk or here != members or offset + directory != size - _END_RECORD.size:
        raise InputError(f"{path}: the archive's directory is not where it says; copy or save it again")

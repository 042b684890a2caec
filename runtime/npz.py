"""Read and write npz archives from and for strangers.

An ``.npz`` is a zip of ``.npy`` members, and :func:`numpy.load` believes what both say about themselves: it
allocates the shape that a header declares, reads the first of two members of one name, and passes over bytes
before, between and after. Here every declaration is checked against the file before anything is allocated,
and objects (pickles) are refused by their dtype, unread.
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

import numpy as np

from litemed.runtime.errors import InputError

# Most elements of one array: 2048 slices of 512 x 512, or a colour image of 13 000 x 13 000.
MAX_VOXELS = 2**29
# Most members of an archive. The challenge's files have at most four.
MAX_MEMBERS = 64

_MAX_DIRECTORY_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
# Deflate spends at least two bits on 258 bytes.
_DEFLATE_MAX_RATIO = 1032
_KINDS = "biufc"
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
            _check_end_record(self._file, path)
            self._archive = zipfile.ZipFile(self._file)
            self._members = self._check_members()
        except _DAMAGE as error:
            self._file.close()
            raise self._damaged(error) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> NpzReader:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._archive.close()
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
        try:
            with self._archive.open(self._member(name)) as stream:
                return self._read_header(name, stream)
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def read(self, name: str) -> np.ndarray:
        """Return array ``name``, C-contiguous; its checksum is verified.

        Raises:
            InputError: as :meth:`header`, and if the data are damaged.
        """
        try:
            with self._archive.open(self._member(name)) as stream:
                header = self._read_header(name, stream)
                data = np.empty(math.prod(header.shape), header.dtype)
                view = data.view(np.uint8).data
                position = 0
                while position < len(view):
                    chunk = stream.read(min(_CHUNK_BYTES, len(view) - position))
                    if not chunk:
                        raise EOFError(f"array {name!r} ends after {position} of {len(view)} bytes")
                    view[position : position + len(chunk)] = chunk
                    position += len(chunk)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        shaped = data.reshape(header.shape, order="F" if header.fortran_order else "C")
        native = shaped.astype(header.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(native).reshape(header.shape)

    def _check_members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            if info.flag_bits & 0x1:
                raise InputError(
                    f"{self.path}: member {info.filename!r} is encrypted; save it without a password"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{self.path}: member {info.filename!r} is compressed by method {info.compress_type}; "
                    "save it with numpy.savez_compressed"
                )
            ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATE_MAX_RATIO
            if info.file_size > ratio * info.compress_size:
                raise InputError(
                    f"{self.path}: member {info.filename!r} declares {info.file_size} bytes, more than its "
                    f"{info.compress_size} bytes can hold; the file is damaged or hostile"
                )
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise InputError(f"{self.path}: member {name!r} appears twice; save the file again")
            members[name] = info
        return members

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise InputError(
                f"{self.path}: no array {name!r}, only {', '.join(map(repr, self.names)) or 'nothing'}"
            )
        return self._members[name]

    def _read_header(self, name: str, stream: IO[bytes]) -> ArrayHeader:
        """Read the npy header at the stream's start and check it against the member's size."""
        start = stream.read(8)
        if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00"):
            raise InputError(
                f"{self.path}: array {name!r} is not an npy of version 1 or 2; save it with numpy.savez"
            )
        length_field = stream.read(2 if start[6] == 1 else 4)
        length = int.from_bytes(length_field, "little")
        if length > _MAX_HEADER_BYTES:
            raise InputError(
                f"{self.path}: array {name!r} has a header of {length} bytes; the file is damaged"
            )
        header = self._parse_header(name, stream.read(length))
        declared = math.prod(header.shape) * header.dtype.itemsize
        member = self._members[name].file_size - len(start) - len(length_field) - length
        if declared != member:
            raise InputError(
                f"{self.path}: array {name!r} of shape {header.shape} needs {declared} bytes and "
                f"has {member}; the file is damaged"
            )
        return header

    def _parse_header(self, name: str, text: bytes) -> ArrayHeader:
        wrong = f"{self.path}: array {name!r} has an unreadable header; save it with numpy.savez"
        try:
            fields = ast.literal_eval(text.decode("latin1").strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise InputError(wrong) from error
        if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
            raise InputError(wrong)
        descr, order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        if not isinstance(order, bool) or not isinstance(shape, tuple) or len(shape) > 8:
            raise InputError(wrong)
        if not all(type(side) is int and side >= 0 for side in shape):
            raise InputError(wrong)
        dtype = self._dtype(name, descr)
        if math.prod(side for side in shape if side) > MAX_VOXELS:
            raise InputError(
                f"{self.path}: array {name!r} declares shape {shape}, more than {MAX_VOXELS} elements; "
                "split the case"
            )
        return ArrayHeader(dtype, shape, order)

    def _dtype(self, name: str, descr: object) -> np.dtype[np.generic]:
        # Text before numpy sees it: numpy would import and evaluate more than plain type codes.
        if (
            isinstance(descr, str)
            and len(descr) <= 4
            and descr[:1] in tuple("<>|=")
            and descr[1:2] in tuple(_KINDS)
        ):
            try:
                return np.dtype(descr)
            except TypeError as error:
                raise InputError(f"{self.path}: array {name!r} has the unknown dtype {descr!r}") from error
        pickled = isinstance(descr, str) and descr[1:2] == "O"
        why = "holds pickled Python objects, which are never read" if pickled else "holds no plain numbers"
        raise InputError(f"{self.path}: array {name!r} {why}; save it as an array of numbers")

    def _damaged(self, error: BaseException) -> InputError:
        detail = " ".join(str(error).split()) or type(error).__name__
        return InputError(f"{self.path}: not a readable npz ({detail}); copy or save the file again")


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
                header = np.lib.format.header_data_from_array_1_0(contiguous)
                np.lib.format.write_array_header_1_0(member, header)
                data = contiguous.reshape(-1).view(np.uint8).data
                for start in range(0, len(data), _CHUNK_BYTES):
                    member.write(data[start : start + _CHUNK_BYTES])


def _check_end_record(file: BinaryIO, path: Path) -> None:
    """Refuse what the zip's end record reveals, before zipfile reads a directory of any size.

    The record must be the file's last 22 bytes and the directory must end where the record begins: so
    nothing stands before the archive or behind it. zip64 archives fail this too; they start at sizes
    that the voxel limit rules out.
    """
    size = file.seek(0, 2)
    if size == 0:
        raise InputError(f"{path}: the file is empty; copy it again")
    file.seek(0)
    if file.read(4)[:2] != b"PK":
        raise InputError(f"{path}: not an npz archive; save it with numpy.savez_compressed")
    record = b""
    if size >= _END_RECORD.size:
        file.seek(size - _END_RECORD.size)
        record = file.read(_END_RECORD.size)
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
    file.seek(0)

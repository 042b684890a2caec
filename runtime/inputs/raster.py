"""Volumes of which the header is text, NRRD and MetaImage: what both have in common, see `nrrd`, `metaimage`.

Own parsers, for ITK changes the last bits of directions, and sizes have to be checked before anything is
allocated. Voxels lie in the file or beside it, and the label map gets the lines that say where they lie as
they stand.
"""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, in_short
from litemed.runtime.files import open_input, open_plain
from litemed.runtime.inputs.npz import DEFLATE_MAX_RATIO, MAX_VOXELS
from litemed.runtime.inputs.view import View

MAX_HEADER_BYTES: Final = 2**20  # Slicer writes names and colours of all segments into it
_SMALLEST_VOXEL_MM3: Final = 1e-15
_PIECE: Final = 2**24


@dataclass(frozen=True, eq=False)
class Raster:
    """A file of one volume, of which the header was read and checked.

    Attributes:
        path: of the file, or of the header where the voxels lie in a file beside it.
        kept: lines of its header that a label map of the same geometry has, too, without line ends.
        shape: voxels along the stored axes i, j and k.
        colour: whether a voxel is R G B, in uint8.
        dtype: of the values, in the byte order of the file.
        packed: whether the values are deflated.
        data: the file that holds the values, and where in it they begin; from there they reach to its end.
        view: how the volume is turned to be seen; as stored where the file does not say how the patient lies.
        affine_mm: (4, 4) float64, from voxels to mm to the right, front and top; None if not known.
        spacing: of slices, rows and columns as they are seen, in mm; None where the file has none.
        wbits: zlib's number of the format in which a label map is deflated.
    """

    wbits: ClassVar[int]

    path: Path
    kept: tuple[str, ...]
    shape: tuple[int, int, int]
    colour: bool
    dtype: np.dtype[Any]
    packed: bool
    data: tuple[Path, int]
    view: View
    affine_mm: NDArray[np.float64] | None
    spacing: tuple[float, float, float] | None

    @classmethod
    @abstractmethod
    def open(cls, path: Path, index: int | None = None) -> Self:
        """Read the header only; raises InputError for what must not be loaded, or is none."""

    @abstractmethod
    def label_header(self, dtype: np.dtype[Any], size: int) -> str:
        """Return the header, all of it, of a label map of some type, little-endian, deflated to a size."""

    def read(self) -> NDArray[Any]:
        """Return the volume as it is seen, (D, H, W) or (D, H, W, 3). Raises InputError for damaged data."""
        i, j, k = self.shape
        count = i * j * k * (3 if self.colour else 1)
        path, start = self.data
        values = np.empty(count, self.dtype)
        space = values.view(np.uint8).data
        try:
            with _open_data(path, self.path) as file:
                file.seek(start)
                whole = _inflate(file, space) if self.packed else file.readinto(space) == len(space)  # type: ignore[attr-defined]
        except (OSError, zlib.error) as error:
            raise InputError(f"{path}: voxels cannot be read ({in_short(error)})") from error
        if not whole:
            raise InputError(f"{path}: holds fewer or more voxels than its header declares; copy it again")
        stored = values.astype(self.dtype.newbyteorder("="), copy=False)
        axes = (2, 1, 0, 3) if self.colour else (2, 1, 0)
        return self.view.show(stored.reshape(k, j, i, *(3,) * self.colour).transpose(axes))

    def write_labels(self, labels: NDArray[np.unsignedinteger], file: BinaryIO) -> None:
        """Write a label map (D, H, W), as it is seen, with the geometry of this file, to the last bit."""
        little = np.asarray(self.view.store(labels), labels.dtype.newbyteorder("<"))
        packer = zlib.compressobj(6, wbits=self.wbits)
        packed = packer.compress(little.tobytes(order="F")) + packer.flush()
        file.write(self.label_header(little.dtype, len(packed)).encode() + packed)


def check(raster: Raster, header: str) -> None:
    """Refuse a volume that its file cannot hold, or that is none; `header` names where its shape stands."""
    path, start = raster.data
    need = math.prod(raster.shape) * (3 if raster.colour else 1)
    try:
        with _open_data(path, raster.path) as file:
            held = file.seek(0, 2) - start
    except OSError as error:
        raise InputError(f"{path}: voxels cannot be read ({error.strerror or error})") from error
    size = need * raster.dtype.itemsize
    if min(raster.shape) < 1 or need > MAX_VOXELS:
        raise InputError(f"{raster.path}: {header} declares {raster.shape}, no volume or more than is read")
    if (held != size) if not raster.packed else (size > held * DEFLATE_MAX_RATIO):
        raise InputError(f"{path}: holds {held} bytes for voxels, its header declares {raster.shape}")
    if raster.dtype.kind not in "iuf":
        raise InputError(f"{raster.path}: voxels are {raster.dtype}; give integers or floats")
    if raster.colour and raster.dtype != np.uint8:
        raise InputError(f"{raster.path}: its colours are {raster.dtype}; give uint8")


def placed(
    path: Path, axes: NDArray[np.float64], origin: NDArray[np.float64], unit_mm: float
) -> tuple[View, NDArray[np.float64], tuple[float, float, float]]:
    """Return view, affine and spacing of voxels with these `axes`, one a column, to right, front and top."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * unit_mm, origin * unit_mm
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < _SMALLEST_VOXEL_MM3:
        raise InputError(f"{path}: its directions are singular or not finite; repair the header")
    try:
        view = View.of(affine)
    except ValueError as error:
        raise InputError(f"{path}: its directions are singular ({error}); repair the header") from error
    return view, affine, view.show_lengths(np.linalg.norm(affine[:3, :3], axis=0).tolist())


def beside(path: Path, name: str) -> Path:
    """Return the file of voxels that a header names; raises InputError if it is not one beside it."""
    if not name or name in (".", "..") or set(name) & set("/\\:%\0") or name.split()[0] == "LIST":
        raise InputError(f"{path}: its voxels lie in {name!r}; give one file in the same folder")
    return path.with_name(name)


def read_header(path: Path, limit: int = MAX_HEADER_BYTES) -> bytes:
    """Return the first bytes of a file; raises InputError where it cannot be read."""
    try:
        with open_input(path) as file:
            return file.read(limit)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def reason(error: Exception) -> str:
    """Return in short why a header cannot be read."""
    return f"without, or unknown: {error}" if isinstance(error, KeyError) else in_short(error)


def numbers(text: str, count: int | None = None) -> NDArray[np.float64]:
    """Return the numbers of a header's field; raises ValueError if they are none, or not as many."""
    values = np.array([float(part) for part in text.split()])
    if count is not None and len(values) != count:
        raise ValueError(f"{len(values)} numbers instead of {count}")
    return values


def _open_data(path: Path, header: Path) -> BinaryIO:
    return open_input(path) if path == header else open_plain(path)  # of these the header's author chose one


def _inflate(file: BinaryIO, space: memoryview) -> bool:
    """Inflate to a space; return whether that was filled, no byte was over, and the checksum is right."""
    packed, done = zlib.decompressobj(wbits=47), 0  # gzip or zlib, whichever it is
    while not packed.eof and (piece := packed.unconsumed_tail or file.read(_PIECE)):
        part = packed.decompress(piece, min(_PIECE, len(space) - done + 1))
        if done + len(part) > len(space):
            return False
        space[done : done + len(part)] = part
        done += len(part)
    return packed.eof and done == len(space) and not packed.unused_data and not file.read(1)

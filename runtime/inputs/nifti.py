"""Read volumes of NIfTI files, and write label maps with the geometry of such a file, to the last bit."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, in_short
from litemed.runtime.inputs.npz import DEFLATE_MAX_RATIO, MAX_VOXELS
from litemed.runtime.inputs.view import View

NIFTI_SUFFIXES: Final = (".nii.gz", ".nii")
# A cube of one hundredth of a micrometre: whatever is smaller is no voxel, but a singular affine.
_SMALLEST_VOXEL_MM3: Final = 1e-15
# Length of NIfTI's spatial units in mm, by code: metre, millimetre, micrometre. Files that say none use mm.
_MM: Final = {1: 1000.0, 2: 1.0, 3: 0.001}
# What nibabel, gzip and zlib raise on damaged files, found by fuzzing.
_DAMAGE: Final = (OSError, ValueError, EOFError, OverflowError, zlib.error)
_RGB: Final = ("R", "G", "B")
_LABEL: Final = 1002  # NIFTI_INTENT_LABEL


@dataclass(frozen=True, eq=False)
class Nifti:
    """A NIfTI file of one volume, of which the header was read and checked.

    Attributes:
        path: of the file.
        view: how the volume is turned to be seen; as stored where the file says nothing about it (sform and
            qform codes both 0).
        image: nibabel's.
        index: which of its volumes, where it has a fourth axis.
    """

    path: Path
    view: View
    image: Any
    index: int = 0

    @classmethod
    def open(cls, path: Path, index: int | None = None) -> Nifti:
        """Read the header only, and refuse what must not be loaded.

        index: which volume is meant, from 0, where there are several.

        Raises InputError for what is no sound NIfTI, of several volumes without an `index` or with too large
        a one, larger than what is read, or of other
        values than integers, floats and R G B; ModuleNotFoundError without nibabel.
        """
        import nibabel

        faults = nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError
        try:
            # It logs, without the file's name, what in a header it puts right.
            with nibabel.imageglobals.LoggingOutputSuppressor():
                image: Any = nibabel.load(path, mmap=False)
            shape, dtype = image.shape, image.get_data_dtype()
            affine = np.asarray(image.affine, np.float64)
            stored = path.stat().st_size * (DEFLATE_MAX_RATIO if path.name.lower().endswith(".gz") else 1)
        except (*_DAMAGE, *faults) as error:
            raise InputError(f"{path}: cannot be read as NIfTI ({in_short(error)})") from error
        if len(shape) < 3 or any(side != 1 for side in shape[4:]):
            raise InputError(f"{path}: NIfTI of shape {shape}; give one volume of three axes")
        count = shape[3] if len(shape) > 3 else 1
        if count > 1 and (index is None or index >= count):
            raise InputError(f"{path}: holds {count} volumes; name one, --volume-index 0 to {count - 1}")
        if dtype.kind not in "iuf" and dtype.names != _RGB:
            raise InputError(f"{path}: voxels of type {dtype}; give integers, floats or RGB24")
        values = math.prod(shape[:3]) * (3 if dtype.names else 1)
        if min(shape) < 1 or values > MAX_VOXELS or math.prod(shape) * dtype.itemsize > stored:
            raise InputError(
                f"{path}: header declares shape {shape}, more than the file holds or than is read"
            )
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < _SMALLEST_VOXEL_MM3:
            raise InputError(f"{path}: affine is singular or not finite; repair the header")
        try:
            return cls(
                path, View.of(affine) if _has_place(image) else View(), image, index or 0 if count > 1 else 0
            )
        except ValueError as error:
            raise InputError(f"{path}: affine is singular ({error}); repair the header") from error

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the stored axes i, j and k."""
        i, j, k = self.image.shape[:3]
        return i, j, k

    @property
    def has_place(self) -> bool:
        """Whether the file says where in the patient it lies; without, `affine_mm` is NIfTI's fallback."""
        return _has_place(self.image)

    @property
    def affine_mm(self) -> NDArray[np.float64]:
        """(4, 4), from voxels (i, j, k) to mm to the right, front and top of the patient."""
        unit_mm = _MM.get(int(self.image.header["xyzt_units"]) & 0b111, 1.0)
        return np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ np.asarray(self.image.affine, np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of slices, rows and columns as they are seen, in mm."""
        return self.view.show_lengths(np.linalg.norm(self.affine_mm[:3, :3], axis=0).tolist())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values as stored, of one colour where there are three."""
        dtype: np.dtype[Any] = self.image.get_data_dtype()
        return np.dtype(np.uint8) if dtype.names else dtype

    @property
    def colour(self) -> bool:
        """Whether a voxel is R G B."""
        return self.image.get_data_dtype().names is not None

    @property
    def is_scaled(self) -> bool:
        """Whether the header says by what values are to be scaled."""
        return (self.image.dataobj.slope, self.image.dataobj.inter) != (1, 0)

    def read(self) -> NDArray[Any]:
        """Return the volume as it is seen, (D, H, W), scaled by the header where it says so, then float32.

        One in colour is uint8 (D, H, W, 3).

        Raises InputError where its data are damaged.
        """
        proxy = self.image.dataobj
        unscaled = not self.is_scaled
        try:
            if len(self.image.shape) > 3:
                data = np.asarray(proxy[:, :, :, self.index])
                data = data if unscaled else data.astype(np.float32)
            else:
                data = np.asarray(proxy) if unscaled else self.image.get_fdata("unchanged", np.float32)
        except _DAMAGE as error:
            raise InputError(f"{self.path}: voxels cannot be read ({in_short(error)})") from error
        data = data.reshape(self.shape)
        return self.view.show(np.stack([data[one] for one in _RGB], -1) if data.dtype.names else data)

    def write_labels(self, labels: NDArray[np.unsignedinteger], file: BinaryIO) -> None:
        """Write a label map (D, H, W), as it is seen, as .nii.gz with affine, codes and units of this file.

        The same labels give the same bytes.
        """
        header = self.image.header.copy()
        header.set_data_dtype(labels.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        header["intent_code"] = _LABEL
        header.extensions.clear()
        stored = np.asfortranarray(self.view.store(labels))
        image = type(self.image)(stored, None, header)
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as packed:
            packed.write(image.to_bytes())


def _has_place(image: Any) -> bool:
    return bool(image.header["sform_code"] != 0 or image.header["qform_code"] != 0)

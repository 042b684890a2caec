"""Read label maps of the kinds that litemed-run writes, as they are seen, and compare where they lie."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.metrics import LabelMap, Spacing
from litemed.runtime.case import check_spacing
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.dicom_file import naming_damage
from litemed.runtime.inputs.files import DICOM_SUFFIX, read_bytes
from litemed.runtime.inputs.npz import MAX_VOXELS, NpzReader
from litemed.runtime.inputs.pictures import MAX_PICTURE_BYTES, decode_labels
from litemed.runtime.inputs.view import View
from litemed.runtime.inputs.volumes import VOLUMES, open_volume, volume_suffix

SUFFIXES: Final = (".npz", *VOLUMES, DICOM_SUFFIX, ".png")
_MAX_LABEL: Final = 65_535  # the most that a uint16 label map holds, as in the runtime
_TOLERANCE_VOXELS: Final = 0.1  # headers store rounded floats
_SAME_SPACING: Final = 1e-3


@dataclass(frozen=True, eq=False)
class LabelFile:
    """Labels (H, W) or (D, H, W), as they are seen.

    `spacing` is z y x in mm, None where it is not known; `affine` (4, 4) takes slice, row and column to mm to
    the right, front and top of the patient, None where it is not known.
    """

    path: Path
    labels: LabelMap
    spacing: Spacing | None = None
    affine: NDArray[np.float64] | None = None

    def refuse_other(self, truth: "LabelFile") -> None:
        """Raise InputError where these labels do not lie on the voxels of the truth, as far as files say."""
        if self.labels.shape != truth.labels.shape:
            raise InputError(
                f"{self.path}: labels have shape {self.labels.shape}, the ground truth {truth.labels.shape}"
            )
        if self.affine is not None and truth.affine is not None:
            ends = itertools.product(*((0, side - 1) for side in self.labels.shape))
            corners = np.array([(*corner, 1) for corner in ends])
            moved = corners @ np.linalg.solve(truth.affine, self.affine).T
            if (shift := float(np.abs(moved - corners).max())) > _TOLERANCE_VOXELS:
                where = f"its voxels lie up to {shift:.3g} voxels from those of {truth.path}"
                raise InputError(f"{self.path}: {where}; resample it")
        elif self.spacing and truth.spacing and not np.allclose(self.spacing, truth.spacing, _SAME_SPACING):
            own, other = (", ".join(f"{mm:g}" for mm in one.spacing or ()) for one in (self, truth))
            raise InputError(f"{self.path}: spacing {own} mm (z, y, x), of {truth.path} {other}")


def read_labels(path: Path, array: str) -> LabelFile:
    """Read a label map; of an npz the `array`, and its spacing if it is a volume.

    Raises InputError for what is none, or damaged.
    """
    try:
        if volume_suffix(path):
            stored = open_volume(path)
            shape, affine = stored.shape, stored.affine_mm
            spacing = None if stored.spacing is None else check_spacing(stored.spacing, path)
            seen = None if affine is None else _seen(affine, stored.view, shape)
            labels = stored.read()
            if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
                labels = labels.astype(np.int64)  # many tools write nothing else
            return LabelFile(path, _check(labels, str(path)), spacing, seen)
        if path.name.lower().endswith(DICOM_SUFFIX):
            return _read_seg(path)
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: needs {error.name}; in the checkout: pip install '.[medical]'") from error
    if path.name.lower().endswith(".png"):
        labels = decode_labels(read_bytes(path, MAX_PICTURE_BYTES), str(path))
        return LabelFile(path, _check(labels, str(path)))
    with NpzReader(path) as archive:
        labels = _check(archive.read(array), f"{path}: {array}")
        given = archive.read("spacing") if labels.ndim == 3 and "spacing" in archive.names else None
    return LabelFile(path, labels, None if given is None else check_spacing(given, path))


def _read_seg(path: Path) -> LabelFile:
    """Read a DICOM segmentation, whose segments do not overlap."""
    import highdicom
    from pydicom import dcmread

    with naming_damage(path, "is no DICOM segmentation that can be read as labels"):
        seg = dcmread(path)
        frames, rows, columns = int(seg.NumberOfFrames), int(seg.Rows), int(seg.Columns)
        declared = frames * rows * columns
        if declared // len(seg.SegmentSequence) > MAX_VOXELS or declared // 8 > path.stat().st_size:
            raise InputError(f"{path}: declares {frames} frames of {rows} x {columns}, more than it holds")
        if frames == len(seg.SegmentSequence):  # of a single image, which may lie nowhere
            planes = seg.pixel_array.reshape(frames, rows, columns)
            labels = np.zeros((rows, columns), np.uint16)
            for plane, groups in zip(planes, seg.PerFrameFunctionalGroupsSequence, strict=True):
                labels[plane > 0] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            return LabelFile(path, labels)
        volume = highdicom.seg.Segmentation.from_dataset(seg, copy=False).get_volume(combine_segments=True)
        affine = np.asarray(volume.affine, np.float64)[:, [2, 1, 0, 3]]  # of columns, rows and slices
        affine[:2] *= -1  # left and back there, right and front here
        view, shape = View.of(affine), volume.spatial_shape[::-1]
        labels = view.show(np.asarray(volume.array).transpose(2, 1, 0))
    spacing = view.show_lengths(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    return LabelFile(path, _check(labels, str(path)), spacing, _seen(affine, view, shape))


def _seen(affine: NDArray[np.float64], view: View, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the affine of slices, rows and columns as they are seen, from that of the stored axes."""
    to_stored = np.zeros((4, 4))
    to_stored[3, 3] = 1
    for seen, stored in enumerate(view.order):
        flipped = seen in view.flips
        to_stored[stored, seen] = -1 if flipped else 1
        to_stored[stored, 3] = shape[stored] - 1 if flipped else 0
    return affine @ to_stored


def _check(labels: NDArray[Any], name: str) -> LabelMap:
    """Return labels as integers; raises InputError, which begins with `name`, if they are none."""
    if labels.dtype.kind not in "ui":
        raise InputError(f"{name} has dtype {labels.dtype}; labels are integers")
    if labels.ndim not in (2, 3):
        raise InputError(f"{name} has shape {labels.shape}; give (height, width) or (depth, height, width)")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > _MAX_LABEL:
        raise InputError(f"{name} has labels from {low} to {high}; they must lie in 0 to {_MAX_LABEL}")
    return labels

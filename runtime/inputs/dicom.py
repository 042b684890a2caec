"""Read DICOM: a folder of one series of slices, or one file of one or more frames, stacked by position."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.dicom_file import DicomFile, Frame, NoImageError
from litemed.runtime.inputs.npz import MAX_VOXELS
from litemed.runtime.inputs.scaling import Window
from litemed.runtime.inputs.view import View

# (0008,0060), and under which name the challenge knows it.
_MODALITIES: Final = {
    **{"CT": "CT", "MR": "MR", "PT": "PET", "US": "US", "IVUS": "US", "MG": "Mammography", "OP": "Fundus"},
    **{"OPT": "OCT", "ES": "Endoscopy", "DMS": "Dermoscopy", "SM": "Microscopy", "GM": "Microscopy"},
    **dict.fromkeys(("CR", "DX", "XA", "RF", "RG", "PX", "IO"), "XRay"),
}
# Scanners round positions; steps that differ by more than this part of a step, or these mm, are uneven.
_TOLERANCE: Final = 0.1
_TOLERANCE_MM: Final = 0.1
_SAME_MM: Final = 1e-3  # closer than this is one position
_TYPES: Final = (np.uint8, np.uint16, np.int16, np.int32, np.int64)


@dataclass(frozen=True, eq=False)
class Dicom:
    """A series of slices, or the frames of one file, of which the headers were read and checked.

    Attributes:
        path: the folder or file.
        files: whose frames are the slices, in stored order: upwards along the slices' normal, or as they
            were taken where they have no place.
        frames: of each slice, of `files`.
        view: how the volume is turned to be seen; a single image is left as it is.
        affine: (4, 4) float64, from voxels (column, row, slice) to mm to the right, front and top of the
            patient; None of a single image and of frames without a place.
        spacing: of slices, rows and columns as they are seen, in mm, the first along the slices' normal;
            None where there is no affine.
        passed_over: how many files of the folder hold no image.
    """

    path: Path
    files: tuple[DicomFile, ...]
    frames: tuple[Frame, ...]
    view: View
    affine: NDArray[np.float64] | None
    spacing: tuple[float, float, float] | None
    passed_over: int = 0

    @classmethod
    def open(cls, path: Path) -> Dicom:
        """Read headers only, and refuse what must not be loaded or is no sound series.

        Raises InputError for a folder of several series, slices that are missing, repeated, unevenly spaced
        or unlike each other, files that are damaged, and those that hold no image; ModuleNotFoundError
        without pydicom or nibabel.
        """
        files, passed_over = _files_of(path)
        _refuse_mixture(path, files)
        frames = [frame for file in files for frame in file.frames]
        rows, columns = files[0].size
        if len(frames) * rows * columns * (3 if files[0].colour else 1) > MAX_VOXELS:
            raise InputError(f"{path}: {len(frames)} slices of {rows} x {columns}, more than is read")
        view, affine, spacing = View(), None, None
        if len(frames) > 1 and _have_places(path, frames):
            frames, affine, lengths = _stack(path, frames)
            view = View.of(affine)
            spacing = view.show_lengths(lengths)
        return cls(path, tuple(files), tuple(frames), view, affine, spacing, passed_over)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the stored axes: columns, rows and slices."""
        rows, columns = self.files[0].size
        return columns, rows, len(self.frames)

    @property
    def modality(self) -> str | None:
        """One of the challenge's, None for others."""
        return _MODALITIES.get(self.files[0].modality)

    @property
    def window(self) -> Window | None:
        """That of the file that comes first, None if it has none."""
        return self.files[0].window

    @property
    def is_cine(self) -> bool:
        """Whether these are several frames that have no place of their own, as of a clip."""
        return len(self.frames) > 1 and self.affine is None

    @property
    def no_seg(self) -> str:
        """Why there can be no DICOM segmentation of these; empty if there can."""
        if self.is_cine:
            return "frames without a place of their own can have no DICOM segmentation"
        if self.frames[0].spacing is None or not all(file.uid for file in self.files):
            return "images without PixelSpacing or SOPInstanceUID can have no DICOM segmentation"
        return ""

    def write_labels(self, labels: NDArray[np.unsignedinteger], file: BinaryIO, objects: int) -> None:
        """Write a label map of the objects 1, 2, ... as a DICOM segmentation, see `dicom_seg.write_seg`."""
        from litemed.runtime.outputs.dicom_seg import write_seg

        write_seg(self, labels, objects, file)

    def read(self) -> NDArray[Any]:
        """Return the values as they are seen: (D, H, W), (D, H, W, 3) R G B in uint8, or one image of these.

        Grey ones are rescaled: integers where slopes and intercepts are, float32 otherwise. The window of
        the file is not applied.

        Raises InputError where pixels cannot be decoded.
        """
        places = {(frame.path, frame.index): place for place, frame in enumerate(self.frames)}
        columns, rows, depth = self.shape
        colour = self.files[0].colour
        stored = np.empty((depth, rows, columns) + (3,) * colour, self.dtype)
        for file in self.files:
            for index, values in enumerate(file.read()):
                place = places[file.path, index]
                frame = self.frames[place]
                if not colour and (frame.slope, frame.intercept) != (1, 0):
                    values = values * np.float64(frame.slope) + frame.intercept
                stored[place] = values
        return self.view.show(stored.swapaxes(0, 2)) if depth > 1 else stored[0]

    @property
    def dtype(self) -> Any:
        """The smallest type that holds every value."""
        if self.files[0].colour:
            return np.uint8
        scales = {(file.values, frame.slope, frame.intercept) for file in self.files for frame in file.frames}
        ends = [end * slope + intercept for values, slope, intercept in scales for end in values]
        if not all(float(value).is_integer() for _, *scale in scales for value in scale):
            return np.float32
        holds = (one for one in _TYPES if np.iinfo(one).min <= min(ends) and max(ends) <= np.iinfo(one).max)
        return next(holds, np.float32)


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file starts as DICOM does: by its magic number or, without preamble, an element."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    little = start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0"
    big = start[:3] == b"\0\x08\0"
    # An explicit value representation, or an implicit length of an element that is short.
    return (little or big) and ((start[4:6].isalpha() and start[4:6].isupper()) or start[6:8] == b"\0\0")


def _files_of(path: Path) -> tuple[list[DicomFile], int]:
    """Return a file, or a folder's files that hold images, as they were taken, and how many others it has."""
    if not path.is_dir():
        if not looks_like_dicom(path):
            raise InputError(f"{path}: is no DICOM file, or cannot be opened")
        return [DicomFile.open(path)], 0
    files, others = [], 0
    for one in sorted(path.iterdir()):
        try:
            if one.name.startswith(".") or not looks_like_dicom(one):
                others += not one.is_dir()
            else:
                files.append(DicomFile.open(one))
        except NoImageError:
            others += 1
    if not files:
        raise InputError(f"{path}: has no DICOM image in it, but {others} other files")
    return sorted(files, key=lambda file: file.number), others


def _refuse_mixture(path: Path, files: list[DicomFile]) -> None:
    """Raise InputError for a folder of which the files are not the slices of one series."""
    if len(series := Counter(file.series for file in files)) > 1:
        titles = {file.series: f"{file.title} ({file.modality}" for file in files}
        listed = "; ".join(f"{titles[one]}, {count} files)" for one, count in series.most_common(5))
        more = "; ..." if len(series) > 5 else ""
        raise InputError(f"{path}: {len(series)} series: {listed}{more}; give each a folder of its own")
    seen: dict[str, DicomFile] = {}
    for file in files:
        first = files[0]
        if file.uid and (twin := seen.setdefault(file.uid, file)) is not file:
            raise InputError(f"{path}: {twin.path.name} and {file.path.name} are the same image")
        if (file.size, file.colour) != (first.size, first.colour):
            both = " and ".join(f"{one.path.name} of {one.size[0]} x {one.size[1]}" for one in (first, file))
            raise InputError(f"{path}: slices differ in size or colour, {both}")
        if len(files) > 1 and len(file.frames) > 1:
            raise InputError(f"{file.path}: of {len(file.frames)} frames, among other files; give it alone")


def _have_places(path: Path, frames: list[Frame]) -> bool:
    """Return whether frames lie at different places of the patient, in parallel and alike.

    Raises InputError if some lie somewhere and others nowhere, or they are not parallel.
    """
    first = frames[0]
    for frame in frames:
        for name in ("position", "axes", "spacing"):
            one, other = getattr(first, name), getattr(frame, name)
            both = f"{path}: {_name(first)} and {_name(frame)}"
            if (one is None) != (other is None):
                raise InputError(f"{both}: only one of them gives its {name}")
            if name != "position" and one is not None and not np.allclose(one, other, rtol=1e-3, atol=1e-3):
                values = " and ".join(str(value.round(3).tolist()) for value in (one, other))
                raise InputError(f"{both} differ in {name}: {values}")
    if first.position is None or first.axes is None:
        return False
    positions = np.array([frame.position for frame in frames])
    if np.ptp(positions, axis=0).max() < _SAME_MM:
        return False
    if first.spacing is None:
        raise InputError(f"{path}: gives positions of its slices, but no PixelSpacing")
    return True


def _stack(path: Path, frames: list[Frame]) -> tuple[list[Frame], NDArray[np.float64], list[float]]:
    """Return frames sorted along their normal, their affine, and the lengths of its voxels (i, j, k) in mm.

    Raises InputError if they are not evenly spaced along one line.
    """
    axes, spacing = np.array(frames[0].axes), np.array(frames[0].spacing)
    normal = np.cross(*axes)
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, stable=True)
    frames, positions = [frames[place] for place in order], positions[order]
    steps = np.diff(positions @ normal)
    if (near := steps < _SAME_MM).any():
        raise InputError(
            f"{path}: two slices at one position, {_pair(frames, near)}; "
            "give a folder of one echo, phase or time"
        )
    typical = float(np.sort(steps)[(len(steps) - 1) // 2])
    tolerance = min(_TOLERANCE * typical, _TOLERANCE_MM)
    if (odd := np.abs(steps - typical) > tolerance).any():
        times = np.rint(steps[odd] / typical)
        place = _pair(frames, odd)
        if (times >= 2).all() and (np.abs(steps[odd] - times * typical) <= times * tolerance).all():
            step = f"{steps[odd][0]:g} mm instead of {typical:g}"
            places = f"{odd.sum()} places, the first" if odd.sum() > 1 else "one place,"
            raise InputError(f"{path}: slices are missing at {places} between {place}: {step}")
        raise InputError(
            f"{path}: uneven spacing of slices, from {steps.min():g} to {steps.max():g} mm and mostly "
            f"{typical:g}; the first odd step is between {place}"
        )
    shift = (positions[-1] - positions[0]) / len(steps)
    shifts = np.diff(positions, axis=0)
    if (odd := np.linalg.norm(shifts - np.median(shifts, axis=0), axis=1) > 2 * tolerance).any():
        raise InputError(f"{path}: slices are shifted within their plane between {_pair(frames, odd)}")
    rows_mm, columns_mm = map(float, spacing)
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0] * columns_mm, axes[1] * rows_mm, shift, positions[0]])
    affine[:2] *= -1  # left and back there, right and front here
    return frames, affine, [columns_mm, rows_mm, float(shift @ normal)]


def _pair(frames: list[Frame], where: NDArray[np.bool_]) -> str:
    """Return the names of the frames on both sides of the first step that `where` marks."""
    step = int(np.argmax(where))
    return f"{_name(frames[step])} and {_name(frames[step + 1])}"


def _name(frame: Frame) -> str:
    return f"{frame.path.name} (frame {frame.index + 1})" if frame.index else frame.path.name

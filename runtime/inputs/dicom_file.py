"""What one DICOM file declares of its frames, checked before any pixel is read, and their values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, LitemedError, in_short, printable
from litemed.runtime.inputs.codestream import coded_size
from litemed.runtime.inputs.npz import MAX_VOXELS
from litemed.runtime.inputs.scaling import Window

# Photometric interpretations that pydicom gives as they are, and those of which it makes R G B.
_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOUR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_MAX_DEFLATED_BYTES: Final = 2 * 2**20  # pydicom inflates such a file in one go, to 2 GiB at most then
_PIXEL_DATA: Final = 0x7FE00010
_PIXELS: Final = (0x7FE00008, 0x7FE00009, _PIXEL_DATA)  # floats, doubles and integers
# Their values mean something however they are displayed, which is all that MONOCHROME1 is about.
_PHYSICAL: Final = ("CT", "PT")
_TAGS: Final = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("InstanceNumber", "Modality", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "WindowCenter", "WindowWidth", "TotalPixelMatrixRows"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


class NoImageError(InputError):
    """A sound DICOM file holds something else than an image."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a file.

    Attributes:
        path: of the file.
        index: of the frame in it.
        position: (3,) float64, of the centre of the first pixel, in mm to the left, back and top of the
            patient; None if the file gives none.
        axes: (2, 3) float64, unit vectors along a row and down a column; None if the file gives none.
        spacing: (2,) float64, of rows and of columns in mm; None if the file gives none.
        slope: that stored values are multiplied by before `intercept` is added.
    """

    path: Path
    index: int
    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: NDArray[np.float64] | None
    slope: float
    intercept: float


@dataclass(frozen=True, eq=False)
class DicomFile:
    """The header of a file that holds one or more frames.

    Attributes:
        path: of the file.
        uid: of the image, and `series`, of its series; empty if the file gives none.
        title: what its series is called, with its number.
        number: of the image in its series.
        modality: as DICOM abbreviates it.
        size: rows and columns.
        colour: whether frames are R G B.
        values: least and greatest value that `read` can give.
        window: the file's first, None if it has none.
        frames: in the order of the file.
    """

    path: Path
    uid: str
    series: str
    title: str
    number: int
    modality: str
    size: tuple[int, int]
    colour: bool
    values: tuple[int, int]
    window: Window | None
    frames: tuple[Frame, ...]

    @classmethod
    def open(cls, path: Path) -> DicomFile:
        """Read the header.

        Raises NoImageError for a file of another kind, InputError for what is damaged, larger than what is
        read, or stored in a way that is not.
        """
        from pydicom.filereader import read_partial
        from pydicom.tag import Tag
        from pydicom.uid import UID

        stops: list[int] = []

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            stops.extend([tag] if tag in _PIXELS else [])
            return bool(stops)

        with naming_damage(path, "cannot be read as DICOM"), path.open("rb") as file:
            _refuse_large_deflated(path)
            dataset = read_partial(file, at_pixels, force=True, specific_tags=[Tag(name) for name in _TAGS])
            kind = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")))
            if kind.name != kind and "Image Storage" not in kind.name:
                raise NoImageError(f"{path}: {kind.name}, which is no image")
            if not stops or not dataset.get("Rows"):
                raise InputError(f"{path}: DICOM without pixels; it is damaged, or holds no image")
            if stops != [_PIXEL_DATA]:
                raise InputError(f"{path}: pixels are floating-point numbers, which are not read")
            return _checked(path, dataset)

    def read(self) -> Iterator[NDArray[Any]]:
        """Yield the values of each frame, before slope and intercept: (rows, columns), or R G B in uint8.

        Raises InputError where they cannot be decoded.
        """
        from pydicom import dcmread, encaps, pixels, uid

        with naming_damage(self.path, "its pixels cannot be read"):
            dataset = dcmread(self.path, force=True)
            syntax = _syntax(dataset)
            if syntax.is_compressed and syntax != uid.RLELossless:
                for data in encaps.generate_frames(dataset.PixelData, number_of_frames=len(self.frames)):
                    if (size := coded_size(data)) != self.size:
                        raise InputError(f"{self.path}: a compressed frame of {size}, not {self.size}")
            count = 0
            for frame in islice(pixels.iter_pixels(dataset), len(self.frames)):
                bits = dataset.BitsStored
                if dataset.PhotometricInterpretation == "PALETTE COLOR":
                    frame = pixels.apply_color_lut(frame, dataset)[..., :3]
                    bits = frame.dtype.itemsize * 8
                if frame.shape != self.size + (3,) * self.colour:
                    raise InputError(f"{self.path}: a frame of shape {frame.shape}, unlike its header")
                if self.colour:
                    frame = (frame >> max(bits - 8, 0)).astype(np.uint8)
                elif "ModalityLUTSequence" in dataset:
                    frame = pixels.apply_modality_lut(frame, dataset)
                if frame.min() < self.values[0] or frame.max() > self.values[1]:
                    raise InputError(f"{self.path}: has values beyond its {bits} bits; it is damaged")
                if dataset.PhotometricInterpretation == "MONOCHROME1" and self.modality not in _PHYSICAL:
                    frame = (sum(self.values) - frame.astype(np.int64)).astype(frame.dtype)
                yield frame
                count += 1
            if count < len(self.frames):
                raise InputError(f"{self.path}: holds {count} frames, its header says {len(self.frames)}")


@contextmanager
def naming_damage(path: Path, what: str) -> Iterator[None]:
    """Turn what pydicom and its plugins raise on damaged files into an InputError, and silence warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (LitemedError, MemoryError):
        raise
    except Exception as error:  # of a dozen kinds: pydicom parses values when they are asked for
        raise InputError(f"{path}: {what} ({in_short(error)})") from error


def _checked(path: Path, dataset: Any) -> DicomFile:
    """Return what a header declares; see `DicomFile.open`."""
    from pydicom.pixels import get_decoder

    syntax = _syntax(dataset)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(
            f"{path}: stored as {printable(syntax.name)[:64]}, which is not read; convert it"
        ) from error
    if not decoder.is_available:
        packages = "; or ".join(decoder.missing_dependencies)
        raise InputError(f"{path}: compressed as {syntax.name}; install {packages}")
    size, samples = (int(dataset.Rows), int(dataset.Columns)), int(dataset.get("SamplesPerPixel") or 1)
    count = int(dataset.get("NumberOfFrames") or 1)
    photometric, allocated = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
    palette = photometric == "PALETTE COLOR"
    if photometric not in _GREY + _COLOUR or samples != (1 if photometric in _GREY or palette else 3):
        raise InputError(f"{path}: {samples} samples of {photometric!r}, which are not read")
    bits = int(dataset.get("BitsStored") or allocated)
    if allocated not in (8, 16, 32) or not 1 <= bits <= allocated:
        raise InputError(f"{path}: pixels of {bits} bits in {allocated}; up to 8, 16 and 32 are read")
    needed, voxels = 0, math.prod(size) * samples * count
    if not (syntax.is_compressed or syntax.is_deflated):  # of 4:2:2 two thirds are stored
        needed = voxels * allocated // 8 * 2 // (3 if photometric.endswith("422") else 2)
    if min(*size, count) < 1 or voxels > MAX_VOXELS or needed > path.stat().st_size:
        shape = f"{count} frames of {size[0]} x {size[1]}"
        raise InputError(f"{path}: header declares {shape}, more than the file holds or than is read")
    if count > 1 and "TotalPixelMatrixRows" in dataset:
        raise InputError(f"{path}: {count} tiles of a whole slide, which are not put together")
    signed = int(dataset.get("PixelRepresentation") or 0)
    values = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "ModalityLUTSequence" in dataset:
        values = 0, 2 ** min(int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]), 16) - 1
    title = f"{dataset.get('SeriesNumber') or ''} {dataset.get('SeriesDescription') or ''}"
    return DicomFile(
        path=path,
        uid=str(dataset.get("SOPInstanceUID") or ""),
        series=str(dataset.get("SeriesInstanceUID") or ""),
        title=printable(title.strip()) or "without description",
        number=int(dataset.get("InstanceNumber") or 0),
        modality=str(dataset.get("Modality") or ""),
        size=size,
        colour=photometric in _COLOUR,
        values=values if photometric in _GREY else (0, 255),
        window=_window(_groups(dataset, 0, "FrameVOILUTSequence")),
        frames=tuple(_frame(path, dataset, index, count) for index in range(count)),
    )


def _frame(path: Path, dataset: Any, index: int, count: int) -> Frame:
    """Return one frame of a file of `count`."""

    def numbers(sequence: str, name: str, length: int) -> NDArray[np.float64] | None:
        groups = _groups(dataset, index, sequence)
        # Where a file of many frames has no groups, what it says of its place is of one of them.
        value = groups.get(name) if count == 1 or groups is not dataset else None
        if value is None or value == "":
            return None
        array = np.array(value, np.float64).reshape(-1)
        if array.shape != (length,) or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} is {array.tolist()}; give {length} numbers")
        return array

    axes = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if axes is not None:
        axes = axes.reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-2:
            raise InputError(f"{path}: ImageOrientationPatient {axes.tolist()} is no pair of unit vectors")
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is not None and not (spacing > 0).all():
        raise InputError(f"{path}: PixelSpacing is {spacing.tolist()}; give positive numbers")
    rescale = _groups(dataset, index, "PixelValueTransformationSequence")
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    scale = float(1 if slope is None else slope), float(intercept or 0)
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise InputError(f"{path}: rescale slope and intercept are {scale}; give finite numbers")
    return Frame(
        path, index, numbers("PlanePositionSequence", "ImagePositionPatient", 3), axes, spacing, *scale
    )


def _groups(dataset: Any, index: int, sequence: str) -> Any:
    """Return what holds for a frame: its own functional group, the one all share, or the whole dataset."""
    for groups, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        if (outer := dataset.get(groups)) and (inner := outer[item].get(sequence)):
            return inner[0]
    return dataset


def _window(dataset: Any) -> Window | None:
    """Return the first window of a dataset, if it is one."""
    pair = [np.array(dataset.get(name), np.float64).reshape(-1) for name in ("WindowCenter", "WindowWidth")]
    if any(not values.size or not np.isfinite(values[0]) for values in pair) or pair[1][0] <= 0:
        return None
    return Window(float(pair[0][0]), float(pair[1][0]))


def _syntax(dataset: Any) -> Any:
    """Return how the pixels are stored; to a file that does not say so it is added, from its elements."""
    from pydicom import uid

    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset.file_meta.TransferSyntaxUID


def _refuse_large_deflated(path: Path) -> None:
    """Raise InputError for a file that pydicom would inflate to any size on opening it."""
    if path.stat().st_size > _MAX_DEFLATED_BYTES:
        with path.open("rb") as file:
            if f"{_DEFLATED}\0".encode() in file.read(4096):
                raise InputError(f"{path}: deflated, of over 2 MiB; convert it to another transfer syntax")

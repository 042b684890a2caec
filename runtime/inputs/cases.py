"""Find cases and read them: ``NAME.npz``, or an image, volume or DICOM with ``NAME.json`` beside it.

The npz is in the challenge's layout: ``imgs`` uint8 (height, width), (height, width, 3), (depth, height,
width) or (depth, height, width, 3); ``boxes`` (N, 4) as x0 y0 x1 y1 or, for a volume, (N, 6) as x0 y0 z0 x1
y1 z1, and where known ``spacing``, z y x in mm. The sidecar holds
``{"boxes": [[x0, y0, x1, y1], ...]}`` in pixels as stored, x to the right, y downwards, or is what else
`litemed.runtime.prompts.annotations` reads. Alpha is dropped, 16-bit values are stretched from minimum and
maximum to 8 bit. An image with an orientation tag is refused, for programs disagree on whether boxes count
pixels before or after the turn; so is a file of several pages.

The boxes of a NIfTI, NRRD or MetaImage are x0 y0 z0 x1 y1 z1 in voxels along its axes as stored. Its values
become grey by `litemed.runtime.inputs.intensity`, and it is turned to be seen as
`litemed.runtime.inputs.view` says. So are those of a DICOM of several slices, a file or a folder NAME of one
series: in columns, rows, and slices upwards along their normal, or as they were taken if they have no place.
Of a DICOM of one image they are as of any image.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.boxes import MAX_BOXES, Boxes, is_image
from litemed.runtime.case import Case, check_spacing
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.dicom import Dicom, looks_like_dicom
from litemed.runtime.inputs.files import CASE_SUFFIXES, DICOM_SUFFIX, case_name, case_suffix, read_bytes
from litemed.runtime.inputs.intensity import to_grey
from litemed.runtime.inputs.nifti import Nifti
from litemed.runtime.inputs.npz import NpzReader
from litemed.runtime.inputs.pictures import MAX_PICTURE_BYTES, PICTURE_SUFFIXES, decode_picture, to_8_bits
from litemed.runtime.inputs.raster import Raster
from litemed.runtime.inputs.scaling import DEFAULT_SCALING, Scaling
from litemed.runtime.inputs.volumes import label_suffix, open_volume, volume_suffix, voxels_beside
from litemed.runtime.modalities import modality_of_name
from litemed.runtime.prompts.extents import Grid
from litemed.runtime.prompts.source import BoxSource, boxes_beside


def list_cases(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the case files that ``paths`` name, each once, in the order given.

    A folder stands for the files directly in it that have a case's suffix and no dot in front, by name, or is
    a case itself if it holds a DICOM series, see `is_series`.
    Raises UsageError if a path cannot be read or is of no kind that is read, or there is no case at all.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        try:
            path.stat()
            is_folder = path.is_dir()
            entries = sorted(path.glob("[!.]*")) if is_folder else [path]
            cases = [one for one in entries if case_suffix(one) and one.is_file()]
            if is_folder and is_series(path):
                cases = [path if path.name.strip(".") else path.resolve()]
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file or folder; check the path") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
        if not cases:
            what = "no case in this folder; put" if is_folder else "not a case; give"
            raise UsageError(f"{path}: {what} {', '.join(CASE_SUFFIXES)} files")
        for case in cases:
            # Not the file that it may be a link to: two names are two cases, each with boxes of its own.
            found.setdefault(case.parent.resolve() / case.name, case)
    if not found:
        raise UsageError("no cases given; name files or folders")
    return list(found.values())


def is_series(folder: Path) -> bool:
    """Return whether a folder is one case: DICOM files lie in it, of which none has boxes of its own."""
    files = [one for one in folder.glob("[!.]*") if case_suffix(one).lower() in ("", DICOM_SUFFIX)]
    files = [one for one in files if one.name != "DICOMDIR"]  # the index of what lies below
    boxes = {one.stem for one in files if one.suffix == ".json"}
    return not boxes & {case_name(one) for one in files if case_suffix(one)} and any(
        looks_like_dicom(one) for one in files if one.suffix != ".json"
    )


def result_suffix(path: Path, png: bool = False) -> str:
    """Return the suffix of the label map of a case's file; of DICOM the headers say which is possible.

    With `png` that of pictures, and of npz of one image, is ".png".
    """
    suffix = case_suffix(path).lower()
    if png and (suffix in PICTURE_SUFFIXES or (suffix == ".npz" and _is_image(path))):
        return ".png"
    if _is_dicom(path):
        try:
            return ".npz" if Dicom.open(path).no_seg else DICOM_SUFFIX
        except (InputError, OSError, ModuleNotFoundError):
            return ".npz"  # reading it will say why
    return label_suffix(path)


def _is_image(path: Path) -> bool:
    """Return whether an npz, which may be damaged, holds an image and no volume."""
    try:
        with NpzReader(path) as archive:
            return is_image(archive.header("imgs")[1])
    except InputError:
        return False  # reading it will say why


def case_files(path: Path, own_boxes: bool = True) -> tuple[Path, ...]:
    """Return every file that makes up the case: the npz, or the image or all of a folder and its sidecar.

    The sidecar only if the case's `own_boxes` are asked for.
    """
    files = (path, *voxels_beside(path))
    if path.is_dir():
        files = tuple(sorted(one for one in path.glob("[!.]*") if one.is_file()))
    return files if path.suffix.lower() == ".npz" or not own_boxes else (*files, _sidecar(path))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{case_name(path)}.json")


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or case_suffix(path).lower() == DICOM_SUFFIX


def read_case(
    path: str | os.PathLike[str], scaling: Scaling = DEFAULT_SCALING, prompts: BoxSource | None = None
) -> Case:
    """Read one case of any kind, see above; values that are not 8 bits become grey by `scaling`.

    Its boxes are those of `prompts`, by default its own.
    Raises InputError, which names the file, if it cannot be used.
    """
    path = Path(path)
    suffix, name = case_suffix(path).lower(), case_name(path)
    if suffix == ".npz":
        return _read_npz(path, prompts)
    if _is_dicom(path):
        return _read_dicom(path, name, scaling, prompts)
    if not suffix:
        raise InputError(f"{path}: not a case; give one of {', '.join(CASE_SUFFIXES)}")
    if volume_suffix(path):
        return _read_volume(path, name, scaling, prompts)
    picture = _read_picture(path)
    image = to_8_bits(picture, str(path))
    boxes = _boxes(path, prompts, Grid(image.shape[1::-1]))
    again = None if picture.dtype == image.dtype else functools.partial(_read_picture, path)
    return Case(name, image, boxes, source=path, read_values=again)


def _read_picture(path: Path) -> np.ndarray:
    return decode_picture(read_bytes(path, MAX_PICTURE_BYTES), str(path))


def _read_volume(path: Path, name: str, scaling: Scaling, prompts: BoxSource | None) -> Case:
    try:
        stored = open_volume(path, scaling.volume_index)
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: needs nibabel; in the checkout: pip install '.[medical]'") from error
    if 3 in stored.shape[:2]:
        raise InputError(f"{path}: its slices have a side of 3 voxels, as colours have; give larger ones")
    # The boxes first: a case that fails for them is not worth decompressing its image.
    affine = None if isinstance(stored, Nifti) and not stored.has_place else stored.affine_mm
    boxes = _boxes(path, prompts, _grid(stored, affine))
    image, rule = to_grey(stored.read(), modality_of_name(name), scaling, path)
    boxes = stored.view.show_boxes(boxes, stored.shape)
    spacing = None if stored.spacing is None else check_spacing(stored.spacing, path)
    return Case(name, image, boxes, spacing, path, rule, stored, stored.read)


def _read_dicom(path: Path, name: str, scaling: Scaling, prompts: BoxSource | None) -> Case:
    try:
        stored = Dicom.open(path)
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: needs pydicom; in the checkout: pip install '.[medical]'") from error
    if not stored.no_seg and importlib.util.find_spec("highdicom") is None:  # said now, not once it is done
        raise InputError(f"{path}: needs highdicom; in the checkout: pip install '.[medical]'")
    columns, rows, depth = stored.shape
    if depth > 1 and 3 in (columns, rows):
        raise InputError(f"{path}: slices with a side of 3 pixels are not segmented; give larger ones")
    grid = _grid(stored, stored.affine) if depth > 1 else Grid((columns, rows))
    boxes = _boxes(path, prompts, grid)
    image, rule = to_grey(stored.read(), stored.modality or modality_of_name(name), scaling, path)
    if depth > 1:
        boxes = stored.view.show_boxes(boxes, stored.shape)
    spacing = None if stored.spacing is None else check_spacing(stored.spacing, path)
    return Case(name, image, boxes, spacing, path, rule, stored, stored.read)


def _read_npz(path: Path, prompts: BoxSource | None) -> Case:
    with NpzReader(path) as archive:
        dtype, shape = archive.header("imgs")
        if dtype != np.uint8:
            raise InputError(f"{path}: imgs is {dtype}; window or stretch it to uint8 first")
        is_volume = len(shape) in (3, 4) and not is_image(shape)
        spacing = None
        if "spacing" in archive.names and is_volume:
            spacing = check_spacing(archive.read("spacing"), path)
        if prompts is not None:
            sides = shape[2::-1] if is_volume else shape[1::-1]
            boxes = prompts.boxes(path, Grid(sides, None, spacing and spacing[::-1])).widened()
            return Case(path.stem, archive.read("imgs"), boxes, spacing, path)
        if math.prod(of_boxes := archive.header("boxes")[1]) > 6 * MAX_BOXES:
            raise InputError(f"{path}: boxes have shape {of_boxes}; the most is {MAX_BOXES} boxes")
        # The boxes first: a case that fails for them is not worth decompressing its image.
        boxes = Boxes.parse(archive.read("boxes"), shape, source=str(path))
        return Case(path.stem, archive.read("imgs"), boxes, spacing, path)


def _grid(stored: Nifti | Raster | Dicom, affine: NDArray[np.float64] | None) -> Grid:
    """Return the voxels (i, j, k) of a volume, whose spacing may be known where its place is not."""
    if (shown := stored.spacing) is None:
        return Grid(stored.shape, affine)
    return Grid(stored.shape, affine, tuple(shown[stored.view.order.index(axis)] for axis in range(3)))


def _boxes(case: Path, prompts: BoxSource | None, grid: Grid) -> Boxes:
    """Return the boxes of a case, not turned to be seen yet."""
    boxes = _read_sidecar(case, grid) if prompts is None else prompts.boxes(case, grid)
    return boxes if boxes.z is not None else boxes.widened()


def _read_sidecar(case: Path, grid: Grid) -> Boxes:
    path = _sidecar(case)
    if not path.is_file():
        wanted = "[x0, y0, x1, y1]" if len(grid.shape) == 2 else "[x0, y0, z0, x1, y1, z1]"
        raise InputError(f'{case}: no boxes; write them to {path} as {{"boxes": [{wanted}, ...]}}')
    return boxes_beside(path, case, grid)

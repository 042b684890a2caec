"""Find cases and read them: ``NAME.npz``, or an image or a NIfTI with a sidecar ``NAME.json`` beside it.

The npz is in the challenge's layout: ``imgs`` uint8 (height, width), (height, width, 3) or (depth, height,
width); ``boxes`` (N, 4) as x0 y0 x1 y1 or, for a volume, (N, 6) as x0 y0 z0 x1 y1 z1, and where known
``spacing``, z y x in mm. The sidecar holds
``{"boxes": [[x0, y0, x1, y1], ...]}`` in pixels as stored, x to the right, y downwards; other keys
are free for notes. Alpha is dropped, 16-bit values are stretched from minimum and maximum to 8 bit. An image
with an orientation tag is refused, for programs disagree on whether boxes count pixels before or after the
turn; so is a file of several pages.

The boxes of a NIfTI are x0 y0 z0 x1 y1 z1 in voxels along its axes as stored. Its values become grey by
`litemed.runtime.intensity`, and it is turned to be seen as `litemed.runtime.view` says.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from litemed.runtime.boxes import MAX_BOXES, Boxes
from litemed.runtime.case import Case, check_spacing
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.intensity import to_grey
from litemed.runtime.modalities import modality_of_name
from litemed.runtime.nifti import NIFTI_SUFFIXES, Nifti
from litemed.runtime.npz import NpzReader
from litemed.runtime.pictures import MAX_PICTURE_BYTES, PICTURE_SUFFIXES, decode_image
from litemed.runtime.scaling import DEFAULT_SCALING, Scaling
from litemed.runtime.strict_json import parse_json

CASE_SUFFIXES = (".npz", *NIFTI_SUFFIXES, *PICTURE_SUFFIXES)

MAX_SIDECAR_BYTES = 4 * 2**20  # 65535 boxes of four six-digit numbers with generous white space


def list_cases(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the case files that ``paths`` name, each once, in the order given.

    A folder stands for the files directly in it that have a case's suffix and no dot in front, by name.
    Raises UsageError if a path cannot be read or is of no kind that is read, or there is no case at all.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        try:
            path.stat()
            is_folder = path.is_dir()
            entries = sorted(path.glob("[!.]*")) if is_folder else [path]
            cases = [one for one in entries if case_suffix(one) and one.is_file()]
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


def case_suffix(path: Path) -> str:
    """Return the suffix of a case's file, one of `CASE_SUFFIXES`, as it is spelt; "" if it is none's."""
    found = (suffix for suffix in CASE_SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[-len(suffix) :] if (suffix := next(found, "")) else ""


def case_name(path: Path) -> str:
    """Return the name of a case's file without its suffix."""
    return path.name.removesuffix(case_suffix(path))


def result_suffix(path: Path) -> str:
    """Return the suffix of the label map of a case's file."""
    return NIFTI_SUFFIXES[0] if case_suffix(path).lower() in NIFTI_SUFFIXES else ".npz"


def case_files(path: Path) -> tuple[Path, ...]:
    """Return every file that makes up the case: the npz, or the image and its sidecar."""
    return (path,) if path.suffix.lower() == ".npz" else (path, path.with_name(f"{case_name(path)}.json"))


def read_case(path: str | os.PathLike[str], scaling: Scaling = DEFAULT_SCALING) -> Case:
    """Read one case of any kind, see above; values that are not 8 bits become grey by `scaling`.

    Raises InputError, which names the file, if it cannot be used.
    """
    path = Path(path)
    suffix, name = case_suffix(path).lower(), case_name(path)
    if suffix == ".npz":
        return _read_npz(path)
    if not suffix:
        raise InputError(f"{path}: not a case; give one of {', '.join(CASE_SUFFIXES)}")
    if suffix in NIFTI_SUFFIXES:
        return _read_nifti(path, name, scaling)
    image = decode_image(read_bytes(path, MAX_PICTURE_BYTES), str(path))
    return Case(name, image, _read_sidecar(path, image.shape), source=path)


def _read_nifti(path: Path, name: str, scaling: Scaling) -> Case:
    try:
        stored = Nifti.open(path)
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: needs nibabel; in the checkout: pip install '.[medical]'") from error
    if 3 in stored.shape[:2]:
        raise InputError(f"{path}: its slices have a side of 3 voxels, as colours have; give larger ones")
    # The boxes first: a case that fails for them is not worth decompressing its image.
    boxes = _read_sidecar(path, stored.shape[::-1])
    image, rule = to_grey(stored.read(), modality_of_name(name), scaling, path)
    boxes = stored.view.show_boxes(boxes, stored.shape)
    return Case(name, image, boxes, check_spacing(stored.spacing, path), path, rule, stored)


def _read_npz(path: Path) -> Case:
    with NpzReader(path) as archive:
        dtype, shape = archive.header("imgs")
        if dtype != np.uint8:
            raise InputError(f"{path}: imgs is {dtype}; window or stretch it to uint8 first")
        if math.prod(of_boxes := archive.header("boxes")[1]) > 6 * MAX_BOXES:
            raise InputError(f"{path}: boxes have shape {of_boxes}; the most is {MAX_BOXES} boxes")
        # The boxes first: a case that fails for them is not worth decompressing its image.
        boxes = Boxes.parse(archive.read("boxes"), shape, source=str(path))
        spacing = None
        if "spacing" in archive.names and boxes.z is not None:
            spacing = check_spacing(archive.read("spacing"), path)
        return Case(path.stem, archive.read("imgs"), boxes, spacing, path)


def _read_sidecar(case: Path, shape: tuple[int, ...]) -> Boxes:
    """Return the boxes in the sidecar of a case whose image has a shape: (H, W), (H, W, 3) or (D, H, W)."""
    path = case_files(case)[-1]
    numbers, wanted = 4, "[x0, y0, x1, y1]"
    if case_suffix(case).lower() in NIFTI_SUFFIXES:
        numbers, wanted = 6, "[x0, y0, z0, x1, y1, z1]"
    if not path.is_file():
        raise InputError(f'{case}: no boxes; write them to {path} as {{"boxes": [{wanted}, ...]}}')
    try:
        content = parse_json(read_bytes(path, MAX_SIDECAR_BYTES).decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); correct it") from error
    boxes = content.get("boxes") if isinstance(content, dict) else None
    if not isinstance(boxes, list):
        raise InputError(f'{path}: no list of boxes; write {{"boxes": [{wanted}, ...]}}')
    for number, row in enumerate(boxes, start=1):
        # By type, because True is an int to isinstance.
        if not isinstance(row, list) or [type(one) in (int, float) for one in row] != [True] * numbers:
            count = {4: "four", 6: "six"}[numbers]
            raise InputError(f"{path}: box {number} is not {count} numbers; write it as {wanted}")
    return Boxes.parse(boxes, shape, source=str(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most ``limit`` bytes. Raises InputError where that is not possible."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not 0 < len(data) <= limit:
        raise InputError(f"{path}: the file is empty, or larger than {limit} bytes")
    return data

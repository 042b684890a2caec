"""How much memory a case takes at most, told from the headers of its files before it is read."""

import math
import re
from pathlib import Path
from typing import Final

import numpy as np

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.dicom import Dicom
from litemed.runtime.inputs.files import DICOM_SUFFIX, case_suffix, read_bytes
from litemed.runtime.inputs.nifti import Nifti
from litemed.runtime.inputs.npz import NpzReader
from litemed.runtime.inputs.pictures import MAX_PICTURE_BYTES, picture_size
from litemed.runtime.inputs.volumes import open_volume, volume_suffix

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MIB: Final = 2**20
# What the process takes for a case of no size, by engine: with the model that ships, on one thread, at most
# 336 and 816 MiB were seen, of 60 boxes on one image. Larger networks take more, by their graphs.
_ENGINES: Final = {"onnxruntime": 448 * _MIB, "openvino": 960 * _MIB}
_SHIPPED_GRAPHS: Final = 57 * _MIB
_PER_GRAPH_BYTE: Final = 6
_PIECES: Final = 24 * _MIB  # in which values become grey


def parse_size(text: str) -> int:
    """Return bytes of "2GB", "500M", "1.5 GiB" and the like, by 1024; raises UsageError for others."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not (size := int(float(found[1]) * _UNITS[found[2].upper()])):
        raise UsageError(f"--max-memory {text!r}: give a size such as 2GB or 500MB")
    return size


def engine_bytes(engine: str, graphs: int) -> int:
    """Return what the process takes at most without a case, with an engine and `graphs` bytes of a bundle."""
    return _ENGINES.get(engine, max(_ENGINES.values())) + _PER_GRAPH_BYTE * max(graphs - _SHIPPED_GRAPHS, 0)


def case_bytes(path: Path, volume_index: int | None = None) -> int:
    """Return what a case takes at most beside that: to be read, made grey, segmented, measured and drawn.

    Raises InputError where its files cannot be used, ModuleNotFoundError without what reads them.
    """
    suffix, packed = case_suffix(path).lower(), 0
    if suffix == ".npz":
        with NpzReader(path) as archive:
            shape = archive.header("imgs")[1]
        # The image, a label map of two bytes at most, and what is drawn.
        return 4 * math.prod(shape)
    if path.is_dir() or suffix == DICOM_SUFFIX:
        dicom = Dicom.open(path)
        shape, colour, item = dicom.shape, dicom.files[0].colour, np.dtype(dicom.dtype).itemsize
    elif volume_suffix(path):
        stored = open_volume(path, volume_index)
        shape, colour, item = stored.shape, stored.colour, stored.dtype.itemsize
        if isinstance(stored, Nifti) and stored.is_scaled:
            item = 8  # nibabel scales in float64
    else:
        shape, colour, item = picture_size(read_bytes(path, MAX_PICTURE_BYTES), str(path))
        packed = path.stat().st_size
    pixels = math.prod(shape)
    pieces = _PIECES if item > 1 else 0
    # Three copies at a time: as stored, as seen, and what percentiles are taken of; then the image of 8 bits,
    # a label map of two bytes, and in an image that is not small four for the logits that won.
    of_image = pixels * (3 if colour else 1) * (3 * item + 2)
    return of_image + pixels * (2 if len(shape) > 2 else 6) + packed + pieces


def check_memory(path: Path, limit: int, base: int, volume_index: int | None = None) -> None:
    """Raise InputError, which says how much is needed, if a case takes more than `limit` bytes."""
    try:
        need = base + case_bytes(path, volume_index)
    except ModuleNotFoundError:
        return  # reading it will say what to install
    if need > limit:
        sizes = f"may need {math.ceil(need / _MIB)} MiB of memory, and {limit // _MIB} are allowed"
        raise InputError(f"{path}: {sizes} by --max-memory; allow more, or cut it into parts")

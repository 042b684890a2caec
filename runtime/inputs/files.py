"""What the files of cases are called, and reading one whole."""

import os
from pathlib import Path

from litemed.runtime.errors import InputError
from litemed.runtime.files import open_input
from litemed.runtime.inputs.pictures import PICTURE_SUFFIXES
from litemed.runtime.inputs.volumes import VOLUMES

DICOM_SUFFIX = ".dcm"
CASE_SUFFIXES = (".npz", *VOLUMES, DICOM_SUFFIX, *PICTURE_SUFFIXES)


def case_suffix(path: Path) -> str:
    """Return the suffix of a case's file, one of `CASE_SUFFIXES`, as it is spelt; "" if it is none's."""
    found = (suffix for suffix in CASE_SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[-len(suffix) :] if (suffix := next(found, "")) else ""


def case_name(path: Path) -> str:
    """Return the name of a case's file without its suffix."""
    return path.name.removesuffix(case_suffix(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most ``limit`` bytes. Raises InputError where that is not possible."""
    try:
        with open_input(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit) + 1)  # it allocates what it is told
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not 0 < len(data) <= limit:
        raise InputError(f"{path}: the file is empty, or larger than {limit} bytes")
    return data

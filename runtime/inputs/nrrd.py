"""Read volumes of NRRD files, as Slicer keeps them: https://teem.sourceforge.net/nrrd/format.html ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.raster import Raster, beside, check, numbers, placed, read_header, reason
from litemed.runtime.inputs.view import View

NRRD_SUFFIXES: Final = (".nrrd", ".nhdr")
_TYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(
        ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"
    ),
    **{"float": "f4", "double": "f8"},
}
_LABEL_TYPES: Final = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int"}
# Signs that take the space's axes to right, front and top.
_SPACES: Final = {
    **dict.fromkeys(("right-anterior-superior", "RAS"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "LAS"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "LPS"), (-1, -1, 1)),
}
_MM: Final = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 0.001, "µm": 0.001}
_GEOMETRY: Final = (
    *("dimension", "space", "space dimension", "sizes", "space directions", "space origin", "space units"),
    *("spacings", "kinds", "measurement frame", "centers", "centerings", "thicknesses", "axis mins"),
    *("axis maxs", "axismins", "axismaxs"),
)
# Of these the first value belongs to the colours, where voxels have some.
_PER_AXIS: Final = (
    *("sizes", "space directions", "spacings", "kinds", "centers", "centerings", "thicknesses"),
    *("axis mins", "axis maxs", "axismins", "axismaxs"),
)
_SKIPS: Final = ("line skip", "byte skip")
_VECTOR: Final = re.compile(r"\([^()]*\)|[^\s()]+")


class Nrrd(Raster):
    """A NRRD file; of a colour volume the first axis is the colours."""

    wbits = 31  # gzip

    @classmethod
    def open(cls, path: Path, _: int | None = None) -> Self:
        """Read the header only.

        Raises InputError for what is no NRRD, has other than three axes (and one of three colours), is stored
        as text or as bzip2, is larger than what is read or its file, or has its voxels in another folder.
        """
        start = read_header(path)
        end = re.search(rb"\r?\n\r?\n", start)
        header = start[: end.start()] if end else start
        try:
            lines = header.decode("utf-8").splitlines()
            if not lines or not re.fullmatch(r"NRRD000[1-6]", lines[0]):
                raise ValueError("no line NRRD0001 to NRRD0006 at its begin")
            fields = _fields(lines[1:])
            with np.errstate(all="ignore"):
                raster = cls._of(path, lines[0], fields, end.end() if end else len(start))
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as NRRD ({reason(error)})") from error
        check(raster, "sizes")
        return raster

    @classmethod
    def _of(cls, path: Path, magic: str, fields: dict[str, str], start: int) -> Self:
        shape = [int(size) for size in fields["sizes"].split()]
        colour = len(shape) == 4 and shape[0] == 3 and not fields.get("kinds", "").startswith("list")
        if len(shape) != 3 + colour or int(fields["dimension"]) != len(shape):
            raise InputError(f"{path}: NRRD of sizes {shape}; give one volume of three axes, grey or RGB")
        if colour:
            fields = {name: _without_first(name, text) for name, text in fields.items()} | {"dimension": "3"}
        encoding = fields["encoding"].lower()
        if encoding not in ("raw", "gzip", "gz"):
            raise InputError(f"{path}: its voxels are encoded as {encoding}; save it as raw or gzip")
        data = fields.get("data file", fields.get("datafile"))
        skipped = [int(fields.get(name, fields.get(name.replace(" ", ""), "0"))) for name in _SKIPS]
        if any(skipped):
            raise InputError(f"{path}: skips lines or bytes of its voxels' file; save it without")
        endian = fields.get("endian", "little").lower()
        dtype = np.dtype({"little": "<", "big": ">"}[endian] + _TYPES[fields["type"].lower()])
        i, j, k = shape[colour:]
        return cls(
            path=path,
            kept=(magic, *(f"{name}: {fields[name]}" for name in fields if name in _GEOMETRY)),
            shape=(i, j, k),
            colour=colour,
            dtype=dtype,
            packed=encoding != "raw",
            data=(path, start) if data is None else (beside(path, data), 0),
            **_place(path, fields),
        )

    def label_header(self, dtype: np.dtype[Any], size: int) -> str:
        """Return the header of a label map."""
        own = f"type: {_LABEL_TYPES[dtype.itemsize]}", "encoding: gzip", "endian: little"
        return "\n".join((*self.kept, *own)) + "\n\n"


def _fields(lines: list[str]) -> dict[str, str]:
    """Return the fields of a header; what is free for notes, keys and comments, is none."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, text = line.partition(": ")
        if line.startswith("#") or not colon or ":=" in name:
            continue
        if name.lower() in fields:
            raise ValueError(f"two fields {name}")
        fields[name.lower()] = text.strip()
    return fields


def _without_first(name: str, text: str) -> str:
    return text[_VECTOR.match(text).end() :].strip() if name in _PER_AXIS and _VECTOR.match(text) else text  # type: ignore[union-attr]


def _place(path: Path, fields: dict[str, str]) -> dict[str, Any]:
    """Return view, affine and spacing, as fields of `Raster`."""
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    unit_mm = _MM.get(units[0], 1.0) if units else 1.0
    directions = fields.get("space directions")
    if directions is None:
        lengths = numbers(fields["spacings"], 3).tolist() if "spacings" in fields else [np.nan]
        spacing = View().show_lengths(lengths) if np.isfinite(lengths).all() else None
        return {"view": View(), "affine_mm": None, "spacing": spacing}
    axes = np.column_stack([_vector(one) for one in _VECTOR.findall(directions)])
    if axes.shape != (3, 3):
        raise ValueError("not three space directions")
    origin = _vector(fields["space origin"]) if "space origin" in fields else np.zeros(3)
    signs = _SPACES.get(fields.get("space", ""))
    turn = np.ones(3) if signs is None else np.array(signs)
    view, affine, spacing = placed(path, turn[:, np.newaxis] * axes, turn * origin, unit_mm)
    if signs is None:  # of a scanner's space nothing is known of the patient
        lengths = np.linalg.norm(axes, axis=0) * unit_mm
        return {"view": View(), "affine_mm": None, "spacing": View().show_lengths(lengths.tolist())}
    return {"view": view, "affine_mm": affine, "spacing": spacing}


def _vector(text: str) -> NDArray[np.float64]:
    return numbers(text.strip("() ").replace(",", " "), 3)

"""Read volumes of MetaImage files, as ITK keeps them: https://itk.org/Wiki/ITK/MetaIO/Documentation ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.raster import Raster, beside, check, numbers, placed, read_header, reason

METAIMAGE_SUFFIXES: Final = (".mha", ".mhd")
_TYPES: Final = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4"},
    **{
        "MET_UINT": "u4",
        "MET_LONG_LONG": "i8",
        "MET_ULONG_LONG": "u8",
        "MET_FLOAT": "f4",
        "MET_DOUBLE": "f8",
    },
}
_LABEL_TYPES: Final = {1: "MET_UCHAR", 2: "MET_USHORT", 4: "MET_UINT"}
_MM: Final = {"mm": 1.0, "um": 0.001, "cm": 10.0}
_DIRECTIONS: Final = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS: Final = ("Offset", "Position", "Origin")
_GEOMETRY: Final = (
    *("ObjectType", "NDims", "DimSize", "ElementSpacing", "ElementSize", "CenterOfRotation"),
    *("AnatomicalOrientation", "DistanceUnits", *_DIRECTIONS, *_ORIGINS),
)
_LAST: Final = re.compile(rb"^ElementDataFile[ \t]*=[^\n]*\n?", re.MULTILINE)
_YES: Final = ("True", "true", "TRUE", "T", "1")


class MetaImage(Raster):
    """A MetaImage; its space is left, back and top, whatever its AnatomicalOrientation says, as in ITK."""

    wbits = 15  # zlib

    @classmethod
    def open(cls, path: Path, _: int | None = None) -> Self:
        """Read the header only.

        Raises InputError for what is no MetaImage, has other than three axes, or values other than one or
        three, is stored as text, is larger than what is read or its file, or has voxels in another folder.
        """
        start = read_header(path)
        end = _LAST.search(start)
        header = start[: end.end()] if end else b""
        try:
            lines = [line.strip() for line in header.decode("utf-8").splitlines() if line.strip()]
            if not lines:
                raise ValueError("no line with ElementDataFile")
            pairs = [[part.strip() for part in line.split("=", 1)] for line in lines]
            fields = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
            if len(fields) != len(lines):
                raise ValueError("lines that are no fields, or repeated ones")
            with np.errstate(all="ignore"):
                raster = cls._of(path, fields, len(header))
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as MetaImage ({reason(error)})") from error
        check(raster, "DimSize")
        return raster

    @classmethod
    def _of(cls, path: Path, fields: dict[str, str], start: int) -> Self:
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        shape = [int(size) for size in fields["DimSize"].split()]
        if len(shape) != 3 or int(fields["NDims"]) != 3 or channels not in (1, 3):
            what = f"DimSize {fields['DimSize']} and {channels} values a voxel"
            raise InputError(f"{path}: MetaImage of {what}; give one volume of three axes, grey or RGB")
        if fields.get("BinaryData", "True") not in _YES or int(fields.get("HeaderSize", "0")) != 0:
            raise InputError(f"{path}: its voxels are text, or have a header; save it binary and without")
        big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")) in _YES
        name = fields["ElementDataFile"]
        matrix = next((fields[key] for key in _DIRECTIONS if key in fields), "1 0 0 0 1 0 0 0 1")
        origin = next((fields[key] for key in _ORIGINS if key in fields), "0 0 0")
        spacing = next((fields[key] for key in ("ElementSpacing", "ElementSize") if key in fields), "1 1 1")
        # Three numbers for each axis, to the left, back and top.
        axes = numbers(matrix, 9).reshape(3, 3).T * numbers(spacing, 3)
        flip = np.array([-1.0, -1.0, 1.0])
        unit = _MM.get(fields.get("DistanceUnits", "mm"), 1.0)
        view, affine, lengths = placed(path, flip[:, np.newaxis] * axes, flip * numbers(origin, 3), unit)
        i, j, k = shape
        return cls(
            path=path,
            kept=tuple(f"{key} = {text}" for key, text in fields.items() if key in _GEOMETRY),
            shape=(i, j, k),
            colour=channels == 3,
            dtype=np.dtype(_TYPES[fields["ElementType"]]).newbyteorder(">" if big else "<"),
            packed=fields.get("CompressedData", "False") in _YES,
            data=(path, start) if name.upper() == "LOCAL" else (beside(path, name), 0),
            view=view,
            affine_mm=affine,
            spacing=lengths,
        )

    def label_header(self, dtype: np.dtype[Any], size: int) -> str:
        """Return the header of a label map."""
        own = {
            **{"BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "True"},
            **{"CompressedDataSize": size, "ElementType": _LABEL_TYPES[dtype.itemsize]},
            "ElementDataFile": "LOCAL",
        }
        return "".join(f"{line}\n" for line in (*self.kept, *(f"{key} = {own[key]}" for key in own)))

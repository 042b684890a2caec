"""What a PNG, JPEG or TIFF says about itself, read before anything is decoded.

A decoder allocates the size that a header declares, applies an orientation tag or not, and takes the first of
several pages without a word. None of that may happen to a medical image unnoticed.

Sources: PNG (ISO/IEC 15948) chunks, JPEG (ITU T.81) markers, TIFF 6.0 and BigTIFF directories, Exif 2.32 tag
274 (Orientation).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from litemed.runtime.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXIF = b"Exif\0\0"
# Start-of-frame markers: C0 to CF but for the tables C4 (Huffman), C8 (reserved) and CC (arithmetic coding).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
_TAG_WIDTH, _TAG_HEIGHT, _TAG_ORIENTATION, _TAG_SAMPLES = 256, 257, 274, 277
# TIFF field types that hold one small unsigned number: BYTE, SHORT, LONG, LONG8.
_FIELD_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_FIELDS = 4096
# What reading past the end of the data raises, at small offsets and at ones beyond 63 bits.
_TOO_SHORT = (struct.error, IndexError, OverflowError)


@dataclass(frozen=True)
class ImageHeader:
    """Declared size of an image file.

    Attributes:
        width: pixels.
        height: pixels.
        samples: values per pixel, once decoded.
        orientation: Exif orientation: 2 to 8 turn or mirror the image, anything else leaves it as stored.
        pages: 1, or 2 if there is more than one.
    """

    width: int
    height: int
    samples: int
    orientation: int = 1
    pages: int = 1


def read_image_header(data: bytes, source: str) -> ImageHeader:
    """Read the header of a whole PNG, JPEG or TIFF file in memory.

    Args:
        data: the file's bytes.
        source: names the file in error messages.

    Raises:
        InputError: another format, or a file that is truncated or damaged as far as its structure shows.
    """
    try:
        if data.startswith(_PNG):
            return _read_png(data)
        if data.startswith(_JPEG):
            return _read_jpeg(data)
        if data.startswith(_TIFF):
            return _read_tiff(data)
    except (*_TOO_SHORT, _DamagedError) as error:
        reason = str(error) if isinstance(error, _DamagedError) else "it ends too early"
        raise InputError(f"{source}: not a readable image ({reason}); copy or save the file again") from error
    raise InputError(f"{source}: not a PNG, JPEG or TIFF image; convert it")


class _DamagedError(Exception):
    """The structure of an image file does not hold together."""


def _read_png(data: bytes) -> ImageHeader:
    width, height, _, colour_type = struct.unpack_from(">2L2B", data, 16)
    if data[12:16] != b"IHDR":
        raise _DamagedError("it has no IHDR chunk")
    samples = {0: 1, 2: 3, 3: 3}.get(colour_type, 4)  # grey, RGB, palette; the others have alpha
    orientation = 1
    position = len(_PNG)
    while True:
        (length,) = struct.unpack_from(">L", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">L", data, end)
        if zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            raise _DamagedError(f"the checksum of chunk {kind!r} is wrong")
        if kind == b"eXIf":
            orientation = _orientation(data[position + 8 : end])
        if kind == b"IEND":
            return ImageHeader(width, height, samples, orientation)
        position = end + 4


def _read_jpeg(data: bytes) -> ImageHeader:
    size: tuple[int, int, int] | None = None
    orientation = 1
    position = 2
    while True:
        if data[position] != 0xFF:
            raise _DamagedError("a marker is missing")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if marker in _FRAMES:
            height, width, samples = struct.unpack_from(">HHB", data, body + 1)
            size = (width, height, samples)
        elif marker == 0xE1 and data.startswith(_EXIF, body):
            orientation = _orientation(data[body + len(_EXIF) : position + 2 + length])
        elif marker == _START_OF_SCAN:
            break
        position += 2 + length
    if size is None:
        raise _DamagedError("it has no frame header")
    # Within coded data every FF is followed by 00 or a restart marker, so this is the true end.
    if data.find(_END_OF_IMAGE, position) < 0:
        raise _DamagedError("it ends too early")
    return ImageHeader(*size, orientation)


def _read_tiff(data: bytes) -> ImageHeader:
    fields, following = _directory(data)
    if _TAG_WIDTH not in fields or _TAG_HEIGHT not in fields:
        raise _DamagedError("it declares no size")
    return ImageHeader(
        width=fields[_TAG_WIDTH],
        height=fields[_TAG_HEIGHT],
        samples=fields.get(_TAG_SAMPLES, 1),
        orientation=fields.get(_TAG_ORIENTATION, 1),
        pages=2 if following else 1,
    )


def _orientation(exif: bytes) -> int:
    """Return the orientation in an Exif block, which is a small TIFF; a damaged block states none."""
    try:
        return _directory(exif)[0].get(_TAG_ORIENTATION, 1)
    except (*_TOO_SHORT, _DamagedError):
        return 1


def _directory(data: bytes) -> tuple[dict[int, int], int]:
    """Return the single numbers of a TIFF's first directory by tag, and where the second is (0: nowhere)."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (position,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, position)
    if count > _MAX_FIELDS:
        raise _DamagedError(f"it declares {count} fields")
    position += 8 if big else 2
    width_of_field, width_of_count, offset_of_value = (20, "Q", 12) if big else (12, "L", 8)
    fields: dict[int, int] = {}
    for start in range(position, position + count * width_of_field, width_of_field):
        tag, kind, values = struct.unpack_from(order + "HH" + width_of_count, data, start)
        if values == 1 and kind in _FIELD_FORMATS and (big or kind != 16):
            (fields[tag],) = struct.unpack_from(order + _FIELD_FORMATS[kind], data, start + offset_of_value)
    (following,) = struct.unpack_from(order + ("Q" if big else "L"), data, position + count * width_of_field)
    return fields, following

"""What a PNG, JPEG or TIFF says about itself, read before anything is decoded.

A decoder allocates the size that a header declares, applies an orientation tag or not, and takes the first of
several pages, all without a word. Sources: PNG (ISO/IEC 15948) chunks, JPEG (ITU T.81) markers, TIFF 6.0 and
BigTIFF directories, Exif 2.32 tag 274 (Orientation).
"""

import struct
import zlib
from typing import NamedTuple

from litemed.runtime.errors import InputError

_EXIF = b"Exif\0\0"
# Start-of-frame markers: C0 to CF but for the tables C4 (Huffman), C8 (reserved) and CC (arithmetic coding).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FIELD_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of TIFF: BYTE, SHORT, LONG, LONG8
_ORIENTATION = 274
# What reading past the end of the data raises, at small offsets and at ones beyond 63 bits.
_TOO_SHORT = (struct.error, IndexError, OverflowError)


class ImageHeader(NamedTuple):
    """What an image file declares."""

    width: int
    height: int
    samples: int  # values per pixel once decoded
    orientation: int = 1  # Exif's, of which 2 to 8 turn or mirror the image
    pages: int = 1  # 2 if there is more than one


def read_image_header(data: bytes, source: str) -> ImageHeader:
    """Return the header of a whole PNG, JPEG or TIFF file in memory; `source` names it in messages.

    Raises InputError for another format, or a file that is cut or damaged as far as its structure shows.
    """
    for magic, read in _READERS.items():
        if data.startswith(magic):
            try:
                return read(data)
            except (ValueError, *_TOO_SHORT) as error:
                why = error if isinstance(error, ValueError) else "it ends too early"
                raise InputError(f"{source}: not a readable image ({why}); copy or save it again") from error
    raise InputError(f"{source}: not a PNG, JPEG or TIFF image; convert it")


def _read_png(data: bytes) -> ImageHeader:
    width, height, _, colour_type = struct.unpack_from(">2L2B", data, 16)
    if data[12:16] != b"IHDR":
        raise ValueError("it has no IHDR chunk")
    samples = {0: 1, 2: 3, 3: 3}.get(colour_type, 4)  # grey, RGB, palette; the others have alpha
    orientation, position, kind = 1, 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">L4s", data, position)
        body, end = position + 8, position + 8 + length
        if struct.unpack_from(">L", data, end) != (zlib.crc32(memoryview(data)[position + 4 : end]),):
            raise ValueError(f"the checksum of chunk {kind!r} is wrong")
        if kind == b"eXIf":
            orientation = _orientation(data[body:end])
        position = end + 4
    return ImageHeader(width, height, samples, orientation)


def _read_jpeg(data: bytes) -> ImageHeader:
    size: tuple[int, int, int] | None = None
    orientation, position, marker = 1, 2, 0
    while marker != 0xDA:  # start of scan
        if data[position] != 0xFF:
            raise ValueError("a marker is missing")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body, position = position + 4, position + 2 + length
        if marker in _FRAMES:
            height, width, samples = struct.unpack_from(">HHB", data, body + 1)
            size = (width, height, samples)
        elif marker == 0xE1 and data.startswith(_EXIF, body):
            orientation = _orientation(data[body + len(_EXIF) : position])
    # Within coded data every FF is followed by 00 or a restart marker, so FF D9 is the true end.
    if size is None or data.find(b"\xff\xd9", position) < 0:
        raise ValueError("it ends too early")
    return ImageHeader(*size, orientation)


def _read_tiff(data: bytes) -> ImageHeader:
    fields, following = _directory(data)
    width, height, samples = (fields.get(tag, missing) for tag, missing in ((256, 0), (257, 0), (277, 1)))
    return ImageHeader(width, height, samples, fields.get(_ORIENTATION, 1), pages=2 if following else 1)


_READERS = {b"\x89PNG\r\n\x1a\n": _read_png, b"\xff\xd8\xff": _read_jpeg} | dict.fromkeys(
    (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _read_tiff
)


def _orientation(exif: bytes) -> int:
    """Return the orientation in an Exif block, which is a small TIFF; a damaged block states none."""
    try:
        return _directory(exif)[0].get(_ORIENTATION, 1)
    except (ValueError, *_TOO_SHORT):
        return 1


def _directory(data: bytes) -> tuple[dict[int, int], int]:
    """Return the single numbers of a TIFF's first directory by tag, and where the second is (0: nowhere)."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    pointer, count_format, field_length, value_at = ("Q", "Q", 20, 12) if big else ("L", "H", 12, 8)
    (position,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_format, data, position)
    if count > 4096:
        raise ValueError(f"it declares {count} fields")
    fields: dict[int, int] = {}
    position += struct.calcsize(order + count_format)
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + "HH" + pointer, data, position)
        if values == 1 and kind in _FIELD_FORMATS and (big or kind != 16):
            (fields[tag],) = struct.unpack_from(order + _FIELD_FORMATS[kind], data, position + value_at)
        position += field_length
    (following,) = struct.unpack_from(order + pointer, data, position)
    return fields, following

"""Read a PNG, JPEG or TIFF file: as an image to be seen, or as labels, which are the stored values.

Pillow tells what a file is, and has the values of TIFF and the indices of palettes. OpenCV decodes what
Pillow fills up in silence, PNG and JPEG that are damaged, or cuts to 8 bits: 16 bits in colour. Of damage in
mid-scan libjpeg and libtiff tell on stderr alone.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from litemed.runtime.errors import InputError, in_short
from litemed.runtime.inputs.npz import MAX_VOXELS

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PICTURE_BYTES = 2**30  # an uncompressed 16-bit image of the most voxels

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F", "P", "LA", "RGB", "RGBA")
# Fields of TIFF 6.
_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 274, 284, 338, 339
_MIN_IS_WHITE = 0
_LOSSY = ("jpeg", "tiff_jpeg")  # ways to compress a TIFF, as Pillow calls them
# What libjpeg and libtiff say of data that they make something of nevertheless.
_DAMAGE = re.compile(r"Corrupt JPEG|Premature end|Inconsistent progression|Invalid SOS|^[\w.]+: .*\.$")
_STDERR = threading.Lock()


def decode_image(data: bytes, source: str) -> npt.NDArray[np.uint8]:
    """Return a PNG, JPEG or TIFF file as uint8 (height, width) or (height, width, 3) in the order R G B.

    Raises InputError as `decode_picture` and `to_8_bits`.
    """
    return to_8_bits(decode_picture(data, source), source)


def to_8_bits(decoded: np.ndarray, source: str) -> npt.NDArray[np.uint8]:
    """Return what `decode_picture` gave in uint8, 16-bit values stretched; InputError for other values."""
    if decoded.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{source}: its values are {decoded.dtype}; save it with 8 or 16 bits per value")
    return np.ascontiguousarray(decoded if decoded.dtype == np.uint8 else _stretch(decoded))


def decode_picture(data: bytes, source: str) -> np.ndarray:
    """Return what a PNG, JPEG or TIFF shows: (height, width) or (height, width, 3) R G B, of any dtype.

    Alpha is dropped; where the least value is white, values are turned round; palettes give their colours.
    `source` names the file in messages. Raises InputError for another format, damage, too many values,
    several pages, an orientation tag other than 1, or channels that are neither colours nor alpha.
    """
    with _sound(source):
        image = _open(data, source, of_palette=3)
        values = _values(image, data, source)
        if image.mode == "P":
            colours = np.zeros((256, 1, 3), np.uint8)
            given = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 1, 3)
            colours[: len(given)] = given
            return cv2.applyColorMap(values, colours)
        if _min_is_white(image) and image.mode not in ("1", "L"):  # of these Pillow has done it
            if values.dtype != np.uint16:
                raise InputError(f"{source}: 0 is white and its values are {values.dtype}; save it as 16-bit")
            values = 65535 - values
    if values.ndim == 2:
        return values
    return values[:, :, 0] if values.shape[2] == 2 else values[:, :, :3]


def picture_size(data: bytes, source: str) -> tuple[tuple[int, int], bool, int]:
    """Return height and width of a picture, whether it is in colour, and the bytes of a value.

    Decodes nothing. Raises InputError as `decode_picture` for what its header shows.
    """
    with _sound(source):
        image = _open(data, source, of_palette=3)
        deep = image.mode.startswith(("I", "F")) or max(_tags(image).get(_BITS, (8,))) > 8
        deep = deep or (data.startswith(b"\x89PNG") and data[24:25] == b"\x10")  # colours, too
        colour = image.mode == "P" or len(image.getbands()) > 1
        item = 4 if image.mode in ("I", "F") else 2 if deep else 1
        return (image.height, image.width), colour, item


def decode_labels(data: bytes, source: str) -> np.ndarray:
    """Return the values that a PNG or TIFF stores, (height, width) of any dtype; of a palette the indices.

    Raises InputError as `decode_picture`, for lossy files, colours, and an alpha channel that is not uniform.
    """
    with _sound(source):
        image = _open(data, source)
        if image.format == "JPEG" or image.info.get("compression") in _LOSSY:
            raise InputError(f"{source}: a lossy file (JPEG) does not keep labels; save them as PNG")
        values = _values(image, data, source)
        if _min_is_white(image) and image.mode in ("1", "L"):
            values = 255 - values
    if values.ndim == 3 and values.shape[2] in (2, 4):
        if np.ptp(values[:, :, -1]):
            raise InputError(
                f"{source}: labels have alpha that is not the same everywhere; save them without"
            )
        values = values[:, :, :-1]
    if values.ndim == 3:
        if (values[:, :, :1] != values).any():
            raise InputError(f"{source}: labels are in colour; give one channel of integers")
        values = values[:, :, 0]
    return np.ascontiguousarray(values)


def _open(data: bytes, source: str, of_palette: int = 1) -> ImageFile:
    """Return a file whose header was checked, nothing decoded of it yet.

    `of_palette` is how many values a pixel will have where the file has a palette.
    """
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    # Not by Image.open, which has a limit of its own that is everybody's.
    kind: Any
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = PngImageFile
    elif data.startswith(b"\xff\xd8\xff"):
        kind = JpegImageFile
    elif data.startswith(_TIFF):
        kind = TiffImageFile
    else:
        raise InputError(f"{source}: not a PNG, JPEG or TIFF image; convert it")
    image = kind(io.BytesIO(data))
    samples = of_palette if image.mode == "P" else len(image.getbands())
    if not 0 < math.prod(image.size) * samples <= MAX_VOXELS:
        declared = f"{image.width} x {image.height} pixels of {samples} values"
        raise InputError(f"{source}: declares {declared}; the most is {MAX_VOXELS} values, split the image")
    if getattr(image, "is_animated", False):
        raise InputError(f"{source}: has several pages; save the one that is meant, or a volume as npz")
    tags = _tags(image)
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in image.tile)
    if kind is TiffImageFile and (not covered or covered % math.prod(image.size)):
        raise ValueError("its strips or tiles do not make up the image")  # Pillow leaves the rest black
    if 0 in tags.get(_EXTRA_SAMPLES, ()):
        raise InputError(f"{source}: has channels that are neither colours nor alpha; save it as grey or RGB")
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT) == (2,):
        raise InputError(f"{source}: its values are int8; save it with 8 or 16 bits per value, unsigned")
    if kind is PngImageFile:
        image.verify()  # checksums, up to the last chunk
        image = kind(io.BytesIO(data))
    turn = 1
    # Where a PNG states none Pillow would decode it all to look for it.
    if kind is not PngImageFile or b"eXIf" in data:
        with contextlib.suppress(Exception):  # damaged Exif states none
            turn = image.getexif().get(_ORIENTATION, 1)
    if turn in range(2, 9):
        why = f"its orientation tag is {turn}, so boxes can be meant in two ways"
        raise InputError(f"{source}: {why}; save it upright and without the tag")
    return image


def _tags(image: ImageFile) -> Any:
    """Return the fields of a TIFF by number; of other formats none."""
    return getattr(image, "tag_v2", {})


def _min_is_white(image: ImageFile) -> bool:
    return bool(_tags(image).get(_PHOTOMETRIC) == _MIN_IS_WHITE)


def _values(image: ImageFile, data: bytes, source: str) -> np.ndarray:
    """Decode a file: (height, width), or with 2 to 4 channels, the last of 2 or 4 being alpha."""
    deep = max(_tags(image).get(_BITS, (1,))) > 8
    colour = len(image.getbands()) > 1
    apart = _tags(image).get(_PLANAR) == 2
    if deep and colour and apart:  # Pillow cuts its bits, OpenCV mixes its pixels up
        raise InputError(f"{source}: stores channels of 16 bits apart (planar); save it with them together")
    # Pillow gets the only channel wrong that is said to be stored apart, and OpenCV colours under alpha.
    jpeg = image.info.get("compression") in _LOSSY and image.mode in ("L", "RGB")
    if image.format != "TIFF" or jpeg or (deep if colour else apart):
        decoded = _decode_by_opencv(data)
        if image.mode != "P":
            return decoded
    if image.mode not in _MODES:
        raise InputError(f"{source}: its colours are {image.mode}; save it as grey or RGB")
    values = np.asarray(image)
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _decode_by_opencv(data: bytes) -> np.ndarray:
    # The last scan of a JPEG ends with a marker; what follows an FF within a scan is none.
    if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("it ends too early")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ValueError("its data are damaged")
    return decoded if decoded.ndim == 2 else decoded[:, :, [2, 1, 0, 3][: decoded.shape[2]]]


@contextlib.contextmanager
def _lines_on_stderr() -> Iterator[list[str]]:
    """Collect what C libraries write to stderr, which Python cannot be told of in another way.

    What other threads write at the same time is lost.
    """
    lines: list[str] = []
    with _STDERR:
        reading, writing = os.pipe()
        with contextlib.suppress(AttributeError, OSError):
            os.set_blocking(writing, False)  # rather lose a line than wait for a reader
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            kept = -1
        try:
            os.dup2(writing, 2)
            yield lines
        finally:
            if kept < 0:
                os.close(2)
            else:
                os.dup2(kept, 2)
                os.close(kept)
            os.close(writing)
            with os.fdopen(reading, errors="replace") as stream:
                lines += stream.read().splitlines()


@contextlib.contextmanager
def _sound(source: str) -> Iterator[None]:
    """Turn whatever is raised or printed on bytes that are no sound image into an InputError."""
    try:
        with warnings.catch_warnings(), _lines_on_stderr() as lines:
            warnings.simplefilter("ignore")
            yield
        if damage := [line for line in lines if _DAMAGE.search(line)]:
            raise ValueError(damage[0])
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{source}: not a readable image ({in_short(error)}); copy it again, or save it as PNG"
        ) from error


def _stretch(image: np.ndarray) -> npt.NDArray[np.uint8]:
    """Map 16-bit values from their minimum and maximum to 0 and 255; a constant image becomes 0."""
    low, high = int(image.min()), int(image.max())
    levels = np.zeros(high + 1, np.uint8)  # those below the minimum are not asked for
    levels[low:] = np.rint(np.arange(high - low + 1) * (255 / max(high - low, 1)))
    return levels[image]

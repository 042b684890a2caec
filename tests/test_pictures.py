"""What pictures show and what they store: one right reading of every kind of file, or a refusal by name."""

import io
import re
import struct
import subprocess
import sys
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.pictures import decode_image, decode_labels, decode_picture

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 40), np.uint8)
RGB = RNG.integers(0, 256, (30, 40, 3), np.uint8)
LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:12, 5:15] = 1
LABELS[15:25, 20:35] = 2
DEEP = GREY.astype(np.uint16) * 257
HEIGHT, MIN_IS_WHITE, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 257, 262, 284, 338, 339


def save(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def edit_tiff(data: bytes, tag: int, value: int) -> bytes:
    """Change a field of a little-endian TIFF that is one number."""
    found = re.search(re.escape(tag.to_bytes(2, "little")) + rb"[\x03\x04]\x00\x01\x00\x00\x00", data)
    assert found
    return data[: found.end()] + value.to_bytes(2, "little") + data[found.end() + 2 :]


def with_palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(LABELS, "L")
    image.putpalette(colours)
    return image


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("values", [GREY, DEEP], ids=["8", "16"])
def test_where_the_least_value_is_white_images_are_turned_round_and_labels_are_not(values, compression):
    plain = save(values, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_picture(plain, "a"), values)
    for planar in (1, 2):  # of one channel both are the same
        turned = edit_tiff(edit_tiff(plain, MIN_IS_WHITE, 0), PLANAR, planar)
        np.testing.assert_array_equal(decode_picture(turned, "a"), np.iinfo(values.dtype).max - values)
        np.testing.assert_array_equal(decode_labels(turned, "a"), values)


@pytest.mark.parametrize("bilevel", [GREY > 100, GREY < 100])
def test_fax_pages_show_black_on_white(bilevel):
    data = save(bilevel, "TIFF", compression="group4")
    np.testing.assert_array_equal(decode_image(data, "a"), bilevel * 255)
    assert set(np.unique(decode_labels(data, "a"))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("second", [(200, 200, 200), (90, 90, 90), (255, 255, 255)])
def test_labels_of_a_palette_are_its_indices_whatever_the_colours(kind, second):
    data = save(with_palette([255] * 3 + [90] * 3 + list(second)), kind)
    np.testing.assert_array_equal(decode_labels(data, "a"), LABELS)
    shown = np.array([[255] * 3, [90] * 3, second], np.uint8)[LABELS]
    np.testing.assert_array_equal(decode_picture(data, "a"), shown)


def test_a_palette_counts_as_the_three_colours_that_a_pixel_becomes(monkeypatch):
    monkeypatch.setattr("litemed.runtime.inputs.pictures.MAX_VOXELS", 2 * LABELS.size)
    data = save(with_palette([255] * 3 + [90] * 3 + [9] * 3), "PNG")
    np.testing.assert_array_equal(decode_labels(data, "a"), LABELS)
    with pytest.raises(InputError, match="pixels of 3 values; the most is"):
        decode_picture(data, "a")


def test_an_index_that_the_palette_has_no_colour_of_is_black():
    data = save(with_palette([9] * 3 + [90] * 3 + [255] * 3), "PNG")
    start = data.index(b"PLTE")
    short = b"PLTE" + bytes([9] * 3 + [90] * 3)
    short = struct.pack(">L", 6) + short + struct.pack(">L", zlib.crc32(short))
    shown = np.array([[9] * 3, [90] * 3, [0] * 3], np.uint8)[LABELS]
    np.testing.assert_array_equal(
        decode_picture(data[: start - 4] + short + data[start + 4 + 9 + 4 :], "a"), shown
    )


def test_grey_labels_may_be_stored_as_colour_and_with_alpha_that_says_nothing():
    full = np.full_like(LABELS, 255)
    for stored in ((LABELS,) * 3, (LABELS, LABELS, LABELS, full), (LABELS, full)):
        for kind in ("PNG", "TIFF"):
            np.testing.assert_array_equal(decode_labels(save(np.dstack(stored), kind), "a"), LABELS)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (save(LABELS * 100, "JPEG", quality=100), "a lossy file"),
        (save(LABELS * 100, "TIFF", compression="jpeg"), "a lossy file"),
        (save(np.dstack([LABELS * 0] * 3 + [LABELS * 100]), "PNG"), "alpha"),
        (save(np.dstack([LABELS * 0, LABELS]), "TIFF"), "alpha"),
        (save(np.dstack([LABELS, LABELS, LABELS * 0]), "PNG"), "in colour"),
    ],
)
def test_labels_that_are_not_what_is_stored_in_one_channel_are_refused(data, why):
    with pytest.raises(InputError, match=f"^a: .*{why}"):
        decode_labels(data, "a")


def animated() -> bytes:
    return save(GREY, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])


@pytest.mark.parametrize("decode", [decode_picture, decode_labels])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (animated(), "several pages"),
        (save(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]), "several pages"),
        (edit_tiff(save(np.dstack([GREY, GREY]), "TIFF"), EXTRA_SAMPLES, 0), "neither colours nor alpha"),
        (edit_tiff(save(np.dstack([RGB, GREY]), "TIFF"), EXTRA_SAMPLES, 0), "neither colours nor alpha"),
        (edit_tiff(save(GREY, "TIFF", tiffinfo={SAMPLE_FORMAT: 1}), SAMPLE_FORMAT, 2), "int8"),
        (save(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "CMYK"),
        (edit_tiff(cv2.imencode(".tif", np.dstack([DEEP] * 3))[1].tobytes(), PLANAR, 2), "planar"),
    ],
)
def test_what_would_lose_a_page_or_channel_is_refused(data, why, decode):
    with pytest.raises(InputError, match=f"^a: .*{why}"):
        decode(data, "a")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "group4"}),
    ],
)
def test_data_damaged_in_mid_scan_fail_by_name_and_libraries_print_nothing(kind, options, capfd):
    fax = options.get("compression") == "group4"
    data = bytearray(save(GREY > 128 if fax else RGB, kind, **options))
    middle = len(data) // (5 if fax else 2)
    data[middle : middle + 20] = b"\xff" * 20 if fax else bytes(range(20))
    with pytest.raises(InputError, match=r"^a: not a readable image"):
        decode_picture(bytes(data), "a")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("longer", [31, 60, 90])
def test_a_tiff_of_which_strips_are_missing_is_refused(longer):
    data = edit_tiff(save(GREY, "TIFF"), HEIGHT, longer)
    with pytest.raises(InputError, match=r"^a: not a readable image"):
        decode_picture(data, "a")


@pytest.mark.parametrize("closed", ["2", "0, 2", "0, 1, 2"])
def test_pictures_are_read_where_there_is_no_stderr(closed, tmp_path):
    good, bad = save(GREY, "JPEG"), save(GREY, "JPEG")[:-100]
    code = f"""
import os, pathlib
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.pictures import decode_image
for one in ({closed},):
    os.close(one)
for _ in range(2):
    assert decode_image({good!r}, "a").shape == (30, 40)
    try:
        decode_image({bad!r}, "a")
    except InputError as error:
        pathlib.Path({str(tmp_path / "said")!r}).write_text(str(error))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (tmp_path / "said").read_text().startswith("a: not a readable image")


def test_alpha_is_dropped_and_colours_stay_as_they_are():
    for alpha in (GREY, np.zeros_like(GREY)):
        for kind in ("PNG", "TIFF"):
            np.testing.assert_array_equal(decode_image(save(np.dstack([RGB, alpha]), kind), "a"), RGB)
            shown = decode_image(save(np.dstack([GREY, alpha]), kind), "a")
            np.testing.assert_array_equal(shown[..., 0] if shown.ndim == 3 else shown, GREY)

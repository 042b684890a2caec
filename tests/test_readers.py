"""Reading cases: both kinds as documented, and every refusal by name."""

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from litemed.runtime.boxes import MAX_BOXES
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.cases import case_files, list_cases, read_case
from litemed.runtime.inputs.npz import MAX_VOXELS
from litemed.runtime.inputs.pictures import decode_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 40), np.uint8)
VOLUME = RNG.integers(0, 256, (5, 30, 40), np.uint8)
RGB = RNG.integers(0, 256, (30, 40, 3), np.uint8)


def encode(suffix: str, image: np.ndarray, *parameters: int) -> bytes:
    """Encode an image that is grey, or RGB or RGBA as we count channels."""
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0, 3][: image.shape[2]]]
    done, data = cv2.imencode(suffix, image, parameters)
    assert done
    return data.tobytes()


def write_image(folder: Path, name: str, image: np.ndarray, boxes: Any = ((1, 2, 20, 25),)) -> Path:
    path = folder / name
    path.write_bytes(encode(path.suffix, image))
    path.with_suffix(".json").write_text(json.dumps({"boxes": boxes}))
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes = b"", extra: bytes = b"") -> bytes:
    """Return an 8-bit grey PNG that declares whatever it is told to."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2L5B", width, height, 8, 0, 0, 0, 0))
    return start + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def exif(orientation: int, order: str = ">") -> bytes:
    magic = b"MM\0*" if order == ">" else b"II*\0"
    return magic + struct.pack(order + "LHHHLHHL", 8, 1, 274, 3, 1, orientation, 0, 0)


def jpeg_with(exif_block: bytes) -> bytes:
    plain = encode(".jpg", RGB)
    body = b"Exif\0\0" + exif_block
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


BOX2, BOX3 = [[0, 0, 5, 5]], [[0, 0, 1, 5, 5, 2]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imgs": GREY}, "no array 'boxes', only imgs"),
        ({"imgs": GREY.astype(np.float32), "boxes": BOX2}, "imgs is float32"),
        ({"imgs": GREY[0], "boxes": BOX2}, r"image of shape \(40,\)"),
        ({"imgs": RGB[None, None], "boxes": BOX2}, r"image of shape \(1, 1, 30, 40, 3\)"),
        ({"imgs": GREY[:0], "boxes": BOX2}, "outside the image of 40 x 0"),
        ({"imgs": np.zeros((5, 30, 40), np.uint8), "boxes": BOX2}, r"volume needs \(N, 6\)"),
        ({"imgs": GREY, "boxes": np.ones((1, 4), object)}, "pickled"),
        ({"imgs": GREY, "boxes": np.zeros((MAX_BOXES + 1, 4), int)}, "65536 boxes"),
        ({"imgs": GREY, "boxes": np.zeros((5, 100_000), np.complex128)}, r"shape \(5, 100000\); the most"),
        ({"imgs": np.zeros((1, 65_536), np.uint8), "boxes": [[0, 0, 5, 1]]}, "longest side is 65535"),
        ({"imgs": VOLUME, "boxes": BOX3, "spacing": [1.0, 1.0]}, "give z, y, x in mm"),
        ({"imgs": VOLUME, "boxes": BOX3, "spacing": [1.0, 0.0, 1.0]}, "each from 1e-06 to 100"),
        ({"imgs": VOLUME, "boxes": BOX3, "spacing": [1.0, 1.0, np.nan]}, "each from 1e-06 to 100"),
    ],
)
def test_an_npz_that_is_no_case_is_refused_by_name(arrays, message, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_case(tmp_path / "a.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'a.npz'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("image", [GREY, RGB, np.dstack([RGB, GREY])])
def test_a_lossless_image_is_read_as_it_stands_but_for_alpha(suffix, image, tmp_path):
    case = read_case(write_image(tmp_path, f"a{suffix}", image))
    np.testing.assert_array_equal(case.image, image[..., :3] if image.ndim == 3 else image)
    np.testing.assert_array_equal(case.boxes.xyxy, [[1, 2, 20, 25]])
    assert (case.name, case.is_volume) == ("a", False)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_a_jpeg_is_read_in_the_order_red_green_blue(suffix, tmp_path):
    red = np.tile(np.uint8([255, 0, 0]), (30, 40, 1))
    image = read_case(write_image(tmp_path, f"a{suffix}", red)).image
    assert image.shape == (30, 40, 3)
    assert image[..., 0].min() > 250 > 5 > image[..., 1:].max()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3)])
def test_16_bit_values_are_stretched_from_minimum_and_maximum(suffix, shape, tmp_path):
    deep = RNG.integers(1000, 5000, shape, np.uint16)
    low, high = int(deep.min()), int(deep.max())
    stretched = np.rint((deep.astype(float) - low) * 255 / (high - low))
    for stored, expected in ((deep, stretched), (np.full(shape, 65535, np.uint16), np.zeros(shape))):
        image = read_case(write_image(tmp_path, f"a{suffix}", stored)).image
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == np.uint8


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("turn", [2, 6, 8])
def test_an_orientation_tag_is_refused(turn, order):
    block = exif(turn, order)
    for data in (png(4, 3, b"\0" * 15, chunk(b"eXIf", block)), jpeg_with(block)):
        with pytest.raises(InputError, match=f"orientation tag is {turn}"):
            decode_image(data, "a")
    with io.BytesIO() as file:
        Image.fromarray(GREY).save(file, "TIFF", tiffinfo={274: turn})
        with pytest.raises(InputError, match=f"orientation tag is {turn}"):
            decode_image(file.getvalue(), "a")


@pytest.mark.parametrize("block", [exif(1), exif(0), b"", b"II*\0\xff\xff\xff\xff"])
def test_exif_that_states_no_turn_changes_nothing(block):
    np.testing.assert_array_equal(decode_image(jpeg_with(block), "a"), decode_image(encode(".jpg", RGB), "a"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_every_truncation_of_an_image_is_refused(suffix):
    data = encode(suffix, RGB)
    for length in range(0, len(data) - 4, 7):  # a PNG ends with the checksum of an empty chunk
        with pytest.raises(InputError, match=r"^a: not "):
            decode_image(data[:length], "a")


DAMAGED = bytearray(encode(".png", RGB))
DAMAGED[len(DAMAGED) // 2] ^= 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GIF89a", "not a PNG, JPEG or TIFF"),
        (b"BM" + b"\0" * 50, "not a PNG, JPEG or TIFF"),
        (DAMAGED, "broken PNG file .*IDAT"),
        (png(40, 30, b"\0" * 41), "not a readable image"),  # it has too few pixels
        (encode(".tif", GREY.astype(np.float32)), "values are float32"),
        (cv2.imencodemulti(".tif", [GREY, GREY])[1].tobytes(), "several pages"),
        (png(2**31 - 1, 2**31 - 1), "declares 2147483647 x 2147483647 pixels"),
        (png(MAX_VOXELS + 1, 1), f"declares {MAX_VOXELS + 1} x 1 pixels"),
        (png(0, 5), "not a readable image|declares 0 x 5 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_single_sound_image_of_possible_size_is_refused(data, why):
    with pytest.raises(InputError, match=f"^a: .*{why}"):
        decode_image(bytes(data), "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[[1, 2, 3, 4]]", "is none of COCO, .* and litemed's boxes"),
        ('{"boxes": [[1, 2, 3, 4], 5]}', "box 2 is not a list of four or six"),
        ('{"boxes": [[1, 2, 3, true]]}', "box 1 is not a list of four or six"),
        ('{"boxes": [[1, 2, 3, 4]], "units": "mm"}', "units 'mm'; give px, RAS, LPS"),
        ('{"boxes": [[1, 2, 3, 1e999]]}', "not a finite"),
        ('{"boxes": [[1, 2, 30000000000000000000, 4]]}', "dtype object|too large|outside"),
        ('{"boxes": [[1, 2, ' + "9" * 5000 + ", 4]]}", "not readable as JSON"),
        ('{"boxes": [[1, 2, 3, 4]], "boxes": [[1, 2, 3, 4]]}', "key stands twice"),
        ('{"boxes": ' + "[" * 100_000, "nested too deeply"),
        (" " * 200_001, "larger than 200000"),
    ],
)
def test_a_sidecar_that_holds_no_boxes_is_refused_by_name(text, message, tmp_path, monkeypatch):
    monkeypatch.setattr("litemed.runtime.prompts.annotations.MAX_TABLE_BYTES", 200_000)
    path = write_image(tmp_path, "a.png", GREY)
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=message) as caught:
        read_case(path)
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: ")
    assert "\n" not in str(caught.value)


def test_a_sidecar_is_asked_for_and_may_carry_other_keys_a_byte_order_mark_and_whole_floats(tmp_path):
    path = write_image(tmp_path, "a.png", GREY)
    (tmp_path / "a.json").write_text('{"note": "left", "boxes": [[1.0, 2, 3e0, 4]]}', encoding="utf-8-sig")
    np.testing.assert_array_equal(read_case(path).boxes.xyxy, [[1, 2, 3, 4]])
    (tmp_path / "a.json").unlink()
    with pytest.raises(InputError, match=r'no boxes; write them to .*a\.json as {"boxes"'):
        read_case(path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["boxes", "b"]), inner),
    )
)
def test_any_json_is_read_or_refused_by_our_own_error(tmp_path, content):
    path = write_image(tmp_path, "a.png", GREY, boxes=content)
    with contextlib.suppress(InputError):
        assert len(read_case(path).boxes) == len(content)


def test_files_and_folders_are_listed_in_the_order_given_and_each_case_once(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    for name in ("b.npz", "a.PNG", "a.json", "c.tif", "notes.txt", "._b.npz", ".hidden.png"):
        (folder / name).touch()
    (folder / "sub.npz").mkdir()
    (folder / "d.npz").symlink_to(folder / "b.npz")  # a name of its own, a result of its own
    listed = list_cases([folder / "c.tif", folder, link / "b.npz"])
    assert [path.name for path in listed] == ["c.tif", "a.PNG", "b.npz", "d.npz"]


def test_a_path_that_names_no_case_is_wrong_use(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for name in ("none.npz", "notes.txt", "empty"):
        with pytest.raises(UsageError, match=name):
            list_cases([tmp_path / name])
    with pytest.raises(UsageError, match="no cases"):
        list_cases([])


def test_the_files_of_a_case_include_its_sidecar_and_other_kinds_are_refused(tmp_path):
    assert case_files(tmp_path / "a.npz") == (tmp_path / "a.npz",)
    assert case_files(tmp_path / "a.b.png") == (tmp_path / "a.b.png", tmp_path / "a.b.json")
    with pytest.raises(InputError, match=r"a\.py: not a case"):
        read_case(tmp_path / "a.py")

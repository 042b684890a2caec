"""Label maps as PNG: the values are the labels, the colours those of the pictures."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import litemed.runtime
from litemed.runtime.errors import UsageError
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.pictures import decode_labels
from litemed.runtime.outputs.label_files import write_png
from litemed.runtime.outputs.overlay import colours

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


@pytest.fixture
def cases(tmp_path):
    """A picture, an image and a volume as npz."""
    folder = tmp_path / "cases"
    folder.mkdir()
    cv2.imwrite(str(folder / "photo.jpg"), NOISE)
    (folder / "photo.json").write_text('{"boxes": [[5, 5, 30, 30], [35, 10, 55, 38]]}')
    np.savez(folder / "image.npz", imgs=NOISE[..., None].repeat(3, 2), boxes=[[5, 5, 30, 30]])
    np.savez(folder / "volume.npz", imgs=np.stack([NOISE] * 4), boxes=[[5, 5, 1, 30, 30, 2]])
    return folder


@pytest.mark.parametrize("highest", [1, 2, 17, 255])
def test_up_to_255_labels_are_indices_of_the_colours_of_pictures(highest):
    labels = np.random.default_rng(0).integers(0, highest + 1, (30, 41)).astype(np.uint8)
    file = io.BytesIO()
    write_png(file, labels)
    image = Image.open(file)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colours(255)[labels, 0])
    np.testing.assert_array_equal(decode_labels(file.getvalue(), "a"), labels)


def test_more_labels_are_16_bits_of_grey():
    labels = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
    file = io.BytesIO()
    write_png(file, labels)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), labels)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), -1), labels)
    np.testing.assert_array_equal(decode_labels(file.getvalue(), "a"), labels)


def test_images_give_the_labels_of_their_npz_and_volumes_their_npz(cases, tmp_path, segmenter):
    plain, out = tmp_path / "plain", tmp_path / "out"
    run_cases([cases], plain, segmenter)
    reports = run_cases([cases], out, segmenter, png=True)
    assert [one.output.path for one in reports] == ["image.png", "photo.png", "volume.npz"]
    for name in ("image", "photo"):
        with np.load(plain / f"{name}.npz") as archive:
            np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.png")), archive["segs"])
    assert {one.status for one in run_cases([cases], out, segmenter, png=True)} == {"skipped"}
    again = run_cases([cases], out, segmenter)
    assert [one.status for one in again] == ["done", "done", "skipped"]


def test_what_lies_where_the_png_goes_is_not_replaced(cases, tmp_path, segmenter):
    """Not even if an earlier run of litemed wrote the npz beside it."""
    out = tmp_path / "out"
    run_cases([cases], out, segmenter)
    (out / "photo.png").write_bytes(b"mine")
    reports = {one.case: one for one in run_cases([cases], out, segmenter, png=True)}
    assert "photo.png: exists, and no earlier run wrote it" in str(reports["photo"].error)
    assert (out / "photo.png").read_bytes() == b"mine"
    assert reports["image"].status == "done"
    with pytest.raises(UsageError, match=r"photo\.png: would be label map and picture"):
        run_cases([cases / "photo.jpg"], out, segmenter, png=True, overlay=Path(out, ".", "."))

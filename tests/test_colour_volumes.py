"""Volumes in colour: grey ones stored as R G B give the grey one's labels, by every part of the method."""

import json

import cv2
import numpy as np
import pytest
from test_dicom import colour, save
from test_nifti import ball
from test_raster import write

import litemed.runtime
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.method import Method
from litemed.runtime.plan import Plan


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def grey():
    """A volume (20, 300, 310) with a ball that planes go through, and a dot so small that it gets a tile."""
    volume = np.random.default_rng(0).integers(0, 40, (20, 300, 310), np.uint8)
    z, y, x = np.indices(volume.shape, sparse=True)
    volume[(x - 100) ** 2 + (y - 120) ** 2 + (5 * (z - 9)) ** 2 < 45**2] += 150
    volume[5:8, 250:258, 250:258] += 150
    return volume


BOXES = np.array([[55, 75, 0, 146, 166, 18], [249, 249, 5, 259, 259, 7]])


def test_a_grey_volume_in_colours_has_the_same_labels_and_is_drawn(segmenter, grey, tmp_path):
    (tmp_path / "cases").mkdir()
    rgb = np.repeat(grey[..., np.newaxis], 3, -1)
    for name, image in (("grey", grey), ("rgb", rgb)):
        np.savez(tmp_path / "cases" / f"{name}.npz", imgs=image, boxes=BOXES)
    plan = Plan.of(read_case(tmp_path / "cases/rgb.npz"), Method(), 256)
    assert plan.plane_count[0] > 0
    assert len(plan.tiles) == 1
    reports = run_cases([tmp_path / "cases"], tmp_path / "segs", segmenter, overlay=tmp_path / "shown")
    assert [(report.status, report.error) for report in reports] == [("done", None)] * 2
    one, other = (np.load(tmp_path / "segs" / f"{name}.npz")["segs"] for name in ("grey", "rgb"))
    assert one.shape == grey.shape
    assert one.any()
    np.testing.assert_array_equal(one, other)
    shown, drawn = (cv2.imread(str(tmp_path / "shown" / f"{name}.png")) for name in ("grey", "rgb"))
    assert cv2.absdiff(shown, drawn).max() <= 1  # OpenCV rounds a value here and there by how memory lies
    encoded = segmenter.encode(rgb)
    np.testing.assert_array_equal(encoded.segment(BOXES), one)
    np.testing.assert_array_equal(segmenter.segment(rgb, BOXES), one)


def test_dicom_clips_and_nrrd_in_colours_are_segmented(segmenter, tmp_path):
    image = np.repeat((ball((40, 44, 6)) // 2 + 90).astype(np.uint8)[np.newaxis], 3, 0)
    write(tmp_path / "a.nrrd", image, boxes=[[5, 16, 3, 25, 36, 5]])
    about = {"PhotometricInterpretation": "RGB", "NumberOfFrames": 6}
    save(colour(np.ascontiguousarray(image.transpose(3, 2, 1, 0)), **about), tmp_path / "clip.dcm")
    (tmp_path / "clip.json").write_text(json.dumps({"boxes": [[5, 16, 3, 25, 36, 5]]}))
    np.savez(tmp_path / "c.npz", imgs=image[0].transpose(2, 1, 0), boxes=[[5, 16, 3, 25, 36, 5]])
    reports = run_cases([tmp_path], tmp_path / "out", segmenter, method=Method(volume="box"))
    assert [report.error for report in reports] == [None] * 3
    assert "label map is npz" in reports[2].warnings[0]
    clip, npz = (np.load(tmp_path / "out" / f"{name}.npz")["segs"] for name in ("clip", "c"))
    assert npz.any()
    np.testing.assert_array_equal(clip, npz)

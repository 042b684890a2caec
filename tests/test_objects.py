"""What is measured of objects: values worked out by hand, in the input's own axes, units and values."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from test_dicom import PATIENT, dataset_of, save, write_series
from test_nifti import LPS, ORIENTATIONS, ends, oriented

import litemed.runtime
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.errors import InputError
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.scaling import Scaling, Window
from litemed.runtime.method import Method
from litemed.runtime.outputs.objects import ObjectStatistics, measure
from litemed.runtime.predicted_iou import PredictedIou
from litemed.runtime.report import REPORT, load_report

NO_IOU = np.full(9, np.nan)


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ball(shape: tuple[int, ...], radius: float, at: tuple[float, ...], size: tuple[float, ...]) -> np.ndarray:
    """Return a ball of a radius in mm as a mask; voxels have a size in mm."""
    places = np.indices(shape).transpose(1, 2, 3, 0)
    return np.asarray((((places - at) * size) ** 2).sum(axis=-1) <= radius**2)


def test_a_ball_has_the_volume_of_a_ball():
    size, radius = (2.0, 0.5, 0.8), 15.0
    mask = ball((20, 70, 50), radius, (9, 33, 24), size)
    image = np.where(mask, 100, 7).astype(np.uint8)
    image[mask.nonzero()[0][0], :, :] = 40
    boxes = Boxes.parse([[0, 0, 0, 50, 70, 19], [0, 0, 0, 5, 5, 5]], image.shape)
    one, empty = measure(Case("a", image, boxes, size), mask.astype(np.uint8), np.array([0.875, np.nan]))
    assert one.volume_ml == pytest.approx(4 / 3 * math.pi * 1.5**3, rel=0.02)
    assert one.volume_ml == pytest.approx(mask.sum() * 2 * 0.5 * 0.8 / 1000)
    assert (one.pixels, one.area_mm2, list(one.extent)) == (mask.sum(), None, ends(mask))
    # 30 mm across: 37 columns of 0.8 mm have their centres within, 61 rows of 0.5 and 15 slices of 2.
    assert one.extent_mm == pytest.approx((37 * 0.8, 61 * 0.5, 15 * 2))
    assert (one.mean, one.sd) == pytest.approx((image[mask].mean(), image[mask].std()))
    assert one.predicted_iou == 0.875
    assert empty == ObjectStatistics(2, 0, volume_ml=0.0)


def test_of_an_image_the_pixels_are_counted_and_colours_averaged():
    image = np.zeros((10, 12, 3), np.uint8)
    image[2:5, 3:8] = 30, 60, 120  # mean 70
    image[2, 3:8] = 100, 100, 100
    labels = np.zeros((10, 12), np.uint16)
    labels[2:5, 3:8] = 2
    boxes = Boxes.parse([[0, 0, 3, 3], [3, 2, 7, 4]], image.shape)
    empty, one = measure(Case("a", image, boxes), labels, NO_IOU)
    assert empty == ObjectStatistics(1, 0)
    # 5 pixels of 100 and 10 of 70.
    assert one == ObjectStatistics(2, 15, extent=(3, 2, 7, 4), mean=80.0, sd=one.sd)
    assert one.sd == pytest.approx(math.sqrt((5 * 20**2 + 10 * 10**2) / 15))


def test_large_numbers_keep_their_spread_and_what_is_not_finite_does_not_count():
    image = np.zeros((3, 1100, 1000), np.uint8)  # more than is taken at once
    values = np.full(image.shape, 1e9, np.float32)
    values[1] += 128
    values[2, 5:], values[0, 0, 0], values[0, 0, 1] = np.nan, np.inf, -np.inf
    case = Case("a", image, Boxes.parse([[0, 0, 0, 1000, 1100, 2]], image.shape), read_values=lambda: values)
    (one,) = measure(case, np.ones(image.shape, np.uint8), NO_IOU)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert (one.pixels, one.mean) == (image.size, pytest.approx(finite.mean(), rel=1e-15))
    assert one.sd == pytest.approx(finite.std(), rel=1e-9)
    nothing = dataclasses.replace(case, read_values=lambda: np.full(image.shape, np.nan))
    assert [(one.mean, one.sd) for one in measure(nothing, np.ones(image.shape, np.uint8), NO_IOU)] == [
        (None, None)
    ]
    with pytest.raises(InputError, match="a: changed while it was segmented"):
        dataclasses.replace(case, read_values=lambda: values[:2]).values()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_extent_is_along_the_stored_axes_whichever_way_they_run(codes, tmp_path):
    stored = np.zeros((9, 8, 6), np.int16)
    stored[2:6, 1:7, 3:5] = 50
    stored[0] = 10
    path = tmp_path / "CT_a.nii"
    affine = oriented(codes, (0.2, -0.3), stored.shape)
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)
    path.with_suffix(".json").write_text(json.dumps({"boxes": [[2, 1, 3, 5, 6, 4]]}))
    case = read_case(path)
    (one,) = measure(case, (case.values() == 50).astype(np.uint8), NO_IOU)
    assert (one.extent, one.mean, one.sd) == ((2, 1, 3, 5, 6, 4), 50, 0)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    assert one.extent_mm == pytest.approx(lengths * (4, 6, 2), rel=1e-5)
    assert one.volume_ml == pytest.approx(48 * 0.7 * 0.8 * 2.5 / 1000, rel=1e-5)


def test_a_nifti_with_slope_and_intercept_gives_hounsfield_units_and_a_run_keeps_its_rows(
    tmp_path, segmenter
):
    """Sheared voxels in micrometres: the volume is the determinant's, not the product of the lengths."""
    stored = np.zeros((40, 44, 12), np.int16)
    stored[10:20, 10:30, 3:9] = 600
    stored[10:20, 10:30, 3:6] = 200
    affine = LPS * ([1000] * 3 + [1])
    affine[1, 2] = 900  # gantry tilt
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(0.25, -20)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "CT_a.nii.gz")
    raw = nibabel.load(tmp_path / "CT_a.nii.gz")
    assert float(raw.dataobj.slope) == 0.25
    hounsfield = np.asarray(raw.dataobj)
    (tmp_path / "CT_a.json").write_text(json.dumps({"boxes": [[9, 9, 2, 21, 31, 9], [0, 0, 0, 40, 44, 11]]}))
    (tmp_path / "bad.png").write_bytes(b"none")
    cases, out, method = (
        [tmp_path / "CT_a.nii.gz", tmp_path / "bad.png"],
        tmp_path / "out",
        Method(volume="box"),
    )
    reports = run_cases(cases, out, segmenter, method=method)
    assert [one.status for one in reports] == ["done", "failed"]
    labels = np.asarray(nibabel.load(out / "CT_a.nii.gz").dataobj)
    first, second = reports[0].objects
    for one in (first, second):
        inside = labels == one.label
        assert one.pixels == inside.sum() > 0
        assert (one.mean, one.sd) == pytest.approx((hounsfield[inside].mean(), hounsfield[inside].std()))
        assert list(one.extent) == ends(inside.T)
        assert one.volume_ml == pytest.approx(inside.sum() * 0.7 * 0.8 * 2.5 / 1000, rel=1e-6)
        # The graph's answer is the largest distance to an edge, in pixels of the network: well above 1 here.
        assert one.predicted_iou > 1
    assert 0 < reports[0].seconds["measure"] < reports[0].seconds["total"]
    assert load_report(out / REPORT)[0] == reports[0]
    rows = rows_of(out)
    assert [(row["case"], row["label"]) for row in rows] == [("CT_a", "1"), ("CT_a", "2")]
    assert float(rows[0]["mean"]) == pytest.approx(first.mean, rel=1e-5)
    assert [int(rows[0][name]) for name in ("x0", "y0", "z0", "x1", "y1", "z1")] == list(first.extent)
    assert float(rows[0]["z_mm"]) == pytest.approx(first.extent_mm[2], rel=1e-5)
    assert rows[0]["area_mm2"] == ""
    again = run_cases(cases, out, segmenter, method=method)
    assert again[0] == dataclasses.replace(reports[0], status="skipped")
    assert rows_of(out) == rows


def test_a_single_dicom_image_has_an_area_and_a_series_the_values_of_its_slices(tmp_path, segmenter):
    pixels = np.full((30, 40), 1000, np.int16)
    pixels[5:15, 10:30] = 1100
    image = dataset_of(pixels, PixelSpacing=[0.5, 0.25], RescaleSlope=2, RescaleIntercept=-2000, **PATIENT)
    path = save(image, tmp_path / "one.dcm")
    path.with_suffix(".json").write_text(json.dumps({"boxes": [[10, 5, 29, 14]]}))
    case = read_case(path)
    (one,) = measure(case, (pixels == 1100).astype(np.uint8), NO_IOU)
    assert (one.pixels, one.area_mm2, one.volume_ml) == (200, 25.0, None)
    assert (one.extent, one.extent_mm) == ((10, 5, 29, 14), (5.0, 5.0))
    assert (one.mean, one.sd) == (200, 0)
    volume = np.arange(4, dtype=np.int16).reshape(-1, 1, 1) * 100 + pixels
    slopes = [1, 2, 1, 1]
    series = write_series(tmp_path / "series", volume, RescaleSlope=slopes, RescaleIntercept=-5, **PATIENT)
    (tmp_path / "series.json").write_text(json.dumps({"boxes": [[10, 5, 1, 29, 14, 2]]}))
    case = read_case(series, Scaling(window=Window(1500, 3000)))
    labels = np.zeros(case.shape, np.uint8)
    labels[1:3, 5:15, 10:30] = 1
    (one,) = measure(case, labels, NO_IOU)
    # Half of it 2 x 1200 - 5, half 1300 - 5; slices 2.5 mm apart, whatever they say.
    assert (one.mean, one.sd) == (1845, 550)
    assert one.volume_ml == pytest.approx(400 * 0.5 * 0.75 * 2.5 / 1000)
    assert one.extent == (10, 5, 1, 29, 14, 2)


def test_a_picture_of_16_bits_is_measured_in_its_own_values(tmp_path, segmenter):
    values = np.full((50, 60), 1000, np.uint16)
    values[10:30, 10:40] = 40000
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    (tmp_path / "deep.json").write_text('{"boxes": [[12, 12, 36, 26]]}')
    (report,) = run_cases([tmp_path / "deep.png"], tmp_path / "out", segmenter)
    assert (report.objects[0].mean, report.objects[0].sd) == (40000, 0)
    row = rows_of(tmp_path / "out")[0]
    assert (row["z0"], row["z1"], row["x_mm"], row["volume_ml"]) == ("", "", "", "")


def test_the_predicted_iou_of_a_volume_is_weighted_by_pixels():
    labels = np.zeros((3, 10, 10), np.uint8)
    labels[0, 0, :8], labels[2, :2] = 1, 1
    labels[1, :4] = 2
    predicted = PredictedIou(3)
    for position, boxes, iou in ((2, [0], [0.5]), (0, [0, 2], [0.9, 0.7]), (1, [1, 2], [0.25, 0.7])):
        predicted.add(position, np.array(boxes), np.array(iou, np.float32))
    found = predicted.mean(labels)
    np.testing.assert_allclose(found[:2], [(8 * 0.9 + 20 * 0.5) / 28, 0.25], rtol=1e-6)
    assert np.isnan(found[2])


@pytest.mark.parametrize("method", [Method(), Method(propagate=True), Method(zoom="off")])
def test_the_result_gives_what_the_decoder_said(method, segmenter):
    """In the tests' graphs that is the greatest distance to the box's edges: half its shorter side."""
    image = np.zeros((256, 256), np.uint8)
    case = Case("a", image, Boxes.parse([[10, 20, 50, 120], [100, 100, 220, 200]], image.shape))
    result = segmenter.run(case, method)
    np.testing.assert_allclose(result.predicted_iou, [20, 50])
    first, second = result.objects(case)
    assert (first.predicted_iou, second.label, second.mean) == (20, 2, 0)
    assert first.pixels == (result.labels == 1).sum()

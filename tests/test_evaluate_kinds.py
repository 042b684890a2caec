"""`litemed-eval` on label maps of every kind that litemed-run writes: scored as the npz, or a named fault."""

import csv
import json
import pathlib

import nibabel
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_dicom import PATIENT, dataset_of, save, write_series

import litemed.runtime
from litemed.benchmarks.evaluate.cli import main
from litemed.benchmarks.evaluate.label_maps import read_labels
from litemed.runtime.errors import InputError
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.npz import NpzReader

BOX = [5, 16, 3, 25, 36, 9]


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


@pytest.fixture
def kinds(tmp_path, segmenter):
    """One phantom as a DICOM series, NIfTI and npz, each run, and ground truth as NIfTI and npz."""
    k, j, i = np.indices((12, 44, 40))
    ball = (i - 15) ** 2 + (j - 26) ** 2 + (3 * (k - 6)) ** 2 < 90
    image, sidecar = np.where(ball, 120, 0).astype(np.int16), json.dumps({"boxes": [BOX]})
    affine = np.diag([-0.75, -0.5, 2.5, 1])
    affine[:3, 3] = 10, -20, 5
    for folder in ("dicom", "nifti", "true_nifti", "npz", "true_npz"):
        (tmp_path / folder).mkdir()
    write_series(tmp_path / "dicom" / "CT_a", image, **PATIENT)
    nibabel.save(nibabel.Nifti1Image(image.T, affine), tmp_path / "nifti/CT_a.nii.gz")
    # As many tools write masks: floats, and here with axes that run the other way.
    flipped = affine @ np.diag([-1, -1, 1, 1])
    flipped[:3, 3] += affine[:3, :3] @ (39, 43, 0)
    truth = ball.T[::-1, ::-1].astype(np.float64)
    nibabel.save(nibabel.Nifti1Image(truth, flipped), tmp_path / "true_nifti/CT_a.nii.gz")
    for folder in ("dicom", "nifti"):
        (tmp_path / folder / "CT_a.json").write_text(sidecar)
    seen = read_case(tmp_path / "nifti/CT_a.nii.gz")
    np.savez(tmp_path / "npz/CT_a.npz", imgs=seen.image, boxes=[BOX], spacing=seen.spacing)
    np.savez(tmp_path / "true_npz/CT_a.npz", gts=ball.astype(np.uint8), spacing=seen.spacing)
    for kind, name in (("dicom", "CT_a"), ("nifti", "CT_a.nii.gz"), ("npz", "CT_a.npz")):
        (report,) = run_cases([tmp_path / kind / name], tmp_path / f"{kind}_out", segmenter)
        assert report.error is None
    return tmp_path


def evaluate(*arguments: object, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, [*map(str, arguments), "--workers", "1", "--strict"])
    assert done.exit_code == expect, done.output
    return done


def rows_of(folder: pathlib.Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_kind_has_the_same_scores_against_every_kind_of_truth(kinds):
    runs = ["--run", kinds / "dicom_out", "--run", kinds / "npz_out"]
    for truth in ("true_nifti", "true_npz"):
        evaluate(kinds / "nifti_out", kinds / truth, "-o", kinds / "scores", *runs)
        rows = rows_of(kinds / "scores")
        assert [row["case"] for row in rows] == ["CT_a"] * 3
        assert {row["problem"] for row in rows} == {""}
        assert len({(row["dsc"], row["nsd"]) for row in rows}) == 1
        assert 0.3 < float(rows[0]["dsc"]) < 0.9


def shifted(path: pathlib.Path) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 0.75
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)


def wider(path: pathlib.Path) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine * [1.1, 1, 1, 1]), path)


def shorter(path: pathlib.Path) -> None:
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., 1:], image.affine), path)


@pytest.mark.parametrize(
    ("change", "truth", "said"),
    [
        (shifted, "true_nifti", "its voxels lie up to 1 voxels from those of"),
        (shorter, "true_nifti", "labels have shape (11, 44, 40), the ground truth (12, 44, 40)"),
        (wider, "true_npz", "spacing 2.5, 0.5, 0.825 mm (z, y, x)"),
        (lambda path: path.write_bytes(b"none"), "true_npz", "cannot be read as NIfTI"),
        (lambda path: path.with_name("CT_a.png").write_bytes(b"b"), "true_npz", "two predictions; leave one"),
    ],
)
def test_other_voxels_and_damage_count_as_0_and_are_named(kinds, change, truth, said):
    change(kinds / "nifti_out/CT_a.nii.gz")
    done = evaluate(kinds / "nifti_out", kinds / truth, "-o", kinds / "scores", expect=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "nifti_out/CT_a.nii.gz" in line
    assert said in line
    assert float(rows_of(kinds / "scores")[0]["dsc"]) == 0


def test_a_truth_that_is_there_twice_is_wrong_use(kinds):
    (kinds / "true_npz/CT_a.png").write_bytes(b"a")
    done = evaluate(kinds / "npz_out", kinds / "true_npz", "-o", kinds / "scores", expect=2)
    assert "has CT_a as several kinds of files; leave one" in done.stderr


def test_png_and_seg_of_single_images(tmp_path, segmenter):
    pixels = np.full((30, 40), 1000, np.int16)
    pixels[5:15, 10:30] = 1100
    dicom = save(
        dataset_of(pixels, PixelSpacing=[0.5, 0.25], RescaleIntercept=-1000, **PATIENT), tmp_path / "CT_b.dcm"
    )
    Image.fromarray(np.uint8(pixels - 1000)).save(tmp_path / "CT_c.png")
    truths = tmp_path / "gts"
    truths.mkdir()
    for name in ("CT_b", "CT_c"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"boxes": [[10, 5, 29, 14], [0, 20, 9, 29]]}))
        labels = np.zeros((30, 40), np.uint8)
        labels[5:15, 10:30], labels[20:, :10] = 1, 2
        np.savez(truths / f"{name}.npz", gts=labels)
    run_cases([dicom, tmp_path / "CT_c.png"], tmp_path / "out", segmenter, png=True)
    evaluate(tmp_path / "out", truths, "-o", tmp_path / "scores")
    scores = [float(row["dsc"]) for row in rows_of(tmp_path / "scores")]
    assert scores[0] == scores[1] > 0.8
    run_cases([tmp_path / "CT_c.png"], tmp_path / "plain", segmenter)
    with NpzReader(tmp_path / "plain/CT_c.npz") as archive:
        expected = archive.read("segs")
    for name in ("CT_b.dcm", "CT_c.png"):
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / name, "segs").labels, expected)


def test_a_dicom_that_is_no_segmentation_or_declares_too_much_is_named(tmp_path, kinds):
    with pytest.raises(InputError, match=r"0\.dcm: is no DICOM segmentation"):
        read_labels(kinds / "dicom/CT_a/0.dcm", "segs")
    seg = pydicom.dcmread(kinds / "dicom_out/CT_a.dcm")
    seg.NumberOfFrames, seg.Rows, seg.Columns = 4000, 60000, 60000
    seg.save_as(tmp_path / "large.dcm")
    with pytest.raises(InputError, match=r"large\.dcm: "):
        read_labels(tmp_path / "large.dcm", "segs")

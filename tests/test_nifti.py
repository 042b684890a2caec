"""NIfTI in and out: every orientation there and back, to the last bit of the header."""

import gzip
import itertools
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

import litemed.runtime
from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.folder import run_cases
from litemed.runtime.inputs.cases import list_cases, read_case
from litemed.runtime.inputs.files import case_name
from litemed.runtime.inputs.nifti import Nifti
from litemed.runtime.inputs.scaling import Scaling, parse_window
from litemed.runtime.method import Method
from litemed.runtime.report import REPORT, Settings, load_report

LPS = np.diag([-0.7, -0.8, 2.5, 1.0])
AXES = itertools.permutations(("LR", "PA", "IS"))
ORIENTATIONS = ["".join(codes) for axes in AXES for codes in itertools.product(*axes)]
# What a label map must have from its image, to the last bit.
GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def write(
    path: Path, stored: np.ndarray, affine: np.ndarray = LPS, boxes=((1, 1, 1, 3, 3, 2),), codes=(1, 2)
) -> Path:
    """Write a volume, stored as (i, j, k), with its sidecar."""
    image = nibabel.Nifti1Image(stored, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    path.with_name(f"{case_name(path)}.json").write_text(json.dumps({"boxes": boxes}))
    return path


def ends(mask: np.ndarray) -> list[int]:
    """Return x0 y0 z0 x1 y1 z1 of a mask (D, H, W): first and last voxels."""
    low, high = (
        [np.flatnonzero(mask.any(axis=rest))[end] for rest in ((0, 1), (0, 2), (1, 2))] for end in (0, -1)
    )
    return [*map(int, low), *map(int, high)]


def oriented(codes: str, angles: tuple[float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """Return the affine of a volume of a shape (i, j, k) whose axes run as the codes say, turned."""
    a, b = angles
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turned = np.eye(4)
    turned[:3, :3] = about_z @ about_x
    turned[:3, 3] = 12.3, -45.6, 0.1
    change = ornt_transform(axcodes2ornt(tuple(codes)), axcodes2ornt(("L", "P", "S")))
    shape_lps = tuple(shape[int(np.flatnonzero(change[:, 0] == axis)[0])] for axis in range(3))
    back = ornt_transform(axcodes2ornt(("L", "P", "S")), axcodes2ornt(tuple(codes)))
    return turned @ LPS @ inv_ornt_aff(back, shape_lps)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    st.sampled_from([(1, 0), (0, 2), (3, 4), (1, 1)]),
    st.sampled_from([".nii", ".nii.gz"]),
    st.data(),
)
def test_labels_and_boxes_go_there_and_back_exactly(tmp_path_factory, codes, angles, forms, suffix, data):
    folder = tmp_path_factory.mktemp("there")
    shape = data.draw(st.tuples(st.integers(4, 9), st.integers(4, 9), st.integers(1, 6)))
    stored = np.random.default_rng(0).integers(-9, 999, shape, np.int16)
    low = [data.draw(st.integers(0, side - 2 if axis < 2 else side - 1)) for axis, side in enumerate(shape)]
    high = [data.draw(st.integers(first + (axis < 2), shape[axis] - 1)) for axis, first in enumerate(low)]
    path = write(folder / f"case{suffix}", stored, oriented(codes, angles, shape), codes=forms)
    found = Nifti.open(path)
    shown = found.read()
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = 7
    boxes = found.view.show_boxes(Boxes.parse([[*low, *high]], shape[::-1]), shape)
    assert ends(found.view.show(mask)) == [
        *boxes.xyxy[0, :2],
        boxes.z[0, 0],
        *boxes.xyxy[0, 2:],
        boxes.z[0, 1],
    ]
    with (folder / "labels.nii.gz").open("wb") as file:
        found.write_labels((shown > 500).astype(np.uint8), file)
    labels, image = nibabel.load(folder / "labels.nii.gz"), nibabel.load(path)
    assert (np.asarray(labels.dataobj) == (stored > 500)).all()
    assert labels.get_data_dtype() == np.uint8
    assert labels.affine.tobytes() == image.affine.tobytes()
    for field in GEOMETRY:
        assert labels.header[field].tobytes() == image.header[field].tobytes(), field


def test_a_box_of_one_voxel_stays_at_its_voxel_whichever_way_axes_run(tmp_path):
    for codes in ("LPS", "RAI", "PLS"):
        path = write(tmp_path / "one.nii", np.zeros((6, 7, 5), np.int16), oriented(codes, (0, 0), (6, 7, 5)))
        view = Nifti.open(path).view
        for i, j in ((0, 0), (3, 4), (5, 6)):
            mask = np.zeros((6, 7, 5), np.uint8)
            mask[i, j, 2] = 1
            x0, y0, z0, x1, y1, z1 = ends(view.show(mask))
            boxes = view.show_boxes(Boxes.parse([[i, j, 2, i + 1, j + 1, 2]], (5, 7, 6)), (6, 7, 5))
            (left, top, right, low), (first, last) = boxes.xyxy[0], boxes.z[0]
            assert (first, last) == (z0, z1)
            assert left <= x0 <= x1 <= right <= left + 1
            assert top <= y0 <= y1 <= low <= top + 1


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


def ball(shape: tuple[int, int, int] = (40, 44, 12)) -> np.ndarray:
    """Return CT (i, j, k) with a bright ball in water."""
    i, j, k = np.indices(shape)
    return np.where((i - 15) ** 2 + (j - 26) ** 2 + (3 * (k - 6)) ** 2 < 90, 120, 0).astype(np.int16)


def test_the_same_volume_gives_the_same_labels_in_whichever_order_it_is_stored(segmenter, tmp_path):
    lps = ball()
    box = [5, 16, 3, 25, 36, 9]
    (tmp_path / "cases").mkdir()
    mask = np.zeros(lps.shape, np.uint8)
    mask[5:26, 16:37, 3:10] = 1
    for codes in ("LPS", "RAS", "RAI", "PLS", "ARI"):
        change = ornt_transform(axcodes2ornt(("L", "P", "S")), axcodes2ornt(tuple(codes)))
        stored, where = apply_orientation(lps, change), apply_orientation(mask, change)
        stored_box = ends(np.ascontiguousarray(where.transpose(2, 1, 0)))
        write(
            tmp_path / "cases" / f"CT_{codes}.nii.gz",
            stored,
            LPS @ inv_ornt_aff(change, lps.shape),
            [stored_box],
        )
    assert ends(mask.transpose(2, 1, 0)) == box
    reports = run_cases([tmp_path / "cases"], tmp_path / "segs", segmenter)
    assert [report.status for report in reports] == ["done"] * 5
    assert {report.intensity for report in reports} == {"CT, level 50, width 400"}
    results = [
        nibabel.load(tmp_path / "segs" / f"CT_{codes}.nii.gz")
        for codes in ("LPS", "RAS", "RAI", "PLS", "ARI")
    ]
    first = nibabel.as_closest_canonical(results[0])
    assert first.get_fdata().any()
    for other in results[1:]:
        assert (nibabel.as_closest_canonical(other).get_fdata() == first.get_fdata()).all()
        assert np.allclose(nibabel.as_closest_canonical(other).affine, first.affine, atol=1e-4)


def test_results_hold_until_window_or_modality_changes(segmenter, tmp_path):
    path = write(tmp_path / "liver.nii.gz", ball(), boxes=[[5, 16, 3, 25, 36, 9]])
    (failed,) = run_cases([path], tmp_path / "segs", segmenter)
    assert "modality unknown" in failed.error
    assert "--modality" in failed.error
    statuses = []
    for scaling in (Scaling("CT"), Scaling("ct"), Scaling("CT", parse_window("60,160")), Scaling("MRI")):
        (report,) = run_cases([path], tmp_path / "segs", segmenter, scaling=scaling)
        statuses.append((report.status, report.intensity))
    percentiles = "MR, percentiles 0.5 to 99.5 of what is not 0"
    assert statuses == [
        ("done", "CT, level 50, width 400"),
        ("skipped", "CT, level 50, width 400"),
        ("done", "CT, level 60, width 160"),
        ("done", percentiles),
    ]
    assert load_report(tmp_path / "segs" / REPORT)[0].intensity == percentiles
    whole = (tmp_path / "segs/liver.nii.gz").read_bytes()
    run_cases([path], tmp_path / "segs", segmenter, scaling=Scaling("MRI"), overwrite=True)
    assert (tmp_path / "segs/liver.nii.gz").read_bytes() == whole  # no time of writing in it
    assert gzip.decompress(whole)[344:347] == b"n+1"


def test_a_case_has_spacing_grey_levels_and_boxes_as_seen(tmp_path):
    case = read_case(write(tmp_path / "3DBox_CT_a.nii.gz", ball(), boxes=[[5, 16, 3, 25, 36, 9]]))
    assert case.name == "3DBox_CT_a"
    assert case.image.shape == (12, 44, 40)
    assert case.image.dtype == np.uint8
    assert set(np.unique(case.image)) == {round(150 * 255 / 400), round(270 * 255 / 400)}
    assert case.spacing == pytest.approx((2.5, 0.8, 0.7), rel=1e-6)
    assert case.boxes.xyxy.tolist() == [[5, 16, 25, 36]]
    assert case.boxes.z.tolist() == [[3, 9]]
    stored = read_case(write(tmp_path / "b.nii", ball().astype(np.uint8)))
    assert stored.intensity == "as stored"
    assert (stored.image == ball().T).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.with_name("MR_a.json").unlink(), ["MR_a.nii.gz", "no boxes", "MR_a.json", "z0"]),
        (lambda path: write(path, ball(), boxes=[[1, 2, 3, 4]]), ["MR_a.json", "box 1", "no z"]),
        (lambda path: write(path, ball(), boxes=[[90, 2, 3, 99, 4, 5]]), ["MR_a.json", "box 1", "40 x 44"]),
        (
            lambda path: write(path, ball((5, 6, 4))[..., None].repeat(2, 3)),
            ["MR_a.nii.gz", "2 volumes", "--volume-index 0 to 1"],
        ),
        (lambda path: write(path, ball((3, 6, 4))), ["MR_a.nii.gz", "3 voxels"]),
        (lambda path: write(path, ball() + np.nan), ["MR_a.nii.gz", "no finite value"]),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), ["MR_a.nii.gz"]),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_file(tmp_path, change, said):
    path = write(tmp_path / "MR_a.nii.gz", ball())
    read_case(path)
    change(path)
    with pytest.raises(InputError) as error:
        read_case(path)
    assert all(part in str(error.value) for part in said)
    assert "\n" not in str(error.value)


def test_without_nibabel_the_line_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "MR_a.nii", ball())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InputError, match=r"MR_a\.nii: needs nibabel; .*pip install '\.\[medical\]'"):
        read_case(path)


def test_an_unknown_modality_is_wrong_use():
    with pytest.raises(UsageError, match="'Xray film'"):
        Scaling("Xray film")


def test_a_folder_lists_them_and_one_name_is_one_case(tmp_path, segmenter):
    for name in ("a.nii", "a.nii.gz", "b.NII.GZ", ".hidden.nii"):
        (tmp_path / name).write_bytes(b"x")
    assert [case_name(path) for path in list_cases([tmp_path])] == ["a", "a", "b"]
    reports = run_cases([tmp_path], tmp_path / "out", segmenter)
    assert ["would have the name" in report.error for report in reports] == [True, True, False]


def test_axes_that_all_but_run_the_same_way_are_refused(tmp_path):
    affine = LPS.copy()
    affine[2, 1] = 1e16
    with pytest.raises(InputError, match=r"MR_a\.nii: affine is singular"):
        read_case(write(tmp_path / "MR_a.nii", ball(), affine, codes=(0, 2)))


def test_one_volume_of_several_is_taken_by_its_index(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 99, (6, 7, 5, 3), np.int16)
    for suffix, slope in ((".nii", None), (".nii.gz", 0.5)):
        path = write(tmp_path / f"MR_a{suffix}", volumes)
        if slope:
            image = nibabel.Nifti1Image(volumes, LPS)
            image.header.set_slope_inter(slope, 1)
            nibabel.save(nibabel.Nifti1Image(volumes * slope + 1, LPS, image.header), path)
        for index in range(3):
            found = Nifti.open(path, index)
            expected = found.view.show(volumes[..., index] * (slope or 1) + (1 if slope else 0))
            assert np.allclose(found.read(), expected, atol=0.01)
            with (tmp_path / "labels.nii.gz").open("wb") as file:
                found.write_labels((found.read() > 30).astype(np.uint8), file)
            labels = nibabel.load(tmp_path / "labels.nii.gz")
            assert labels.shape == (6, 7, 5)
            assert labels.affine.tobytes() == nibabel.load(path).affine.tobytes()
        with pytest.raises(InputError, match=r"3 volumes; name one, --volume-index 0 to 2"):
            read_case(path, Scaling(volume_index=3))
    case = read_case(path, Scaling(volume_index=1))
    assert case.image.shape == (5, 7, 6)
    assert Settings("0", "b", "0", "e", "p", Method(), Scaling()).sha256 != (
        Settings("0", "b", "0", "e", "p", Method(), Scaling(volume_index=1)).sha256
    )


def test_rgb24_is_a_volume_in_colour(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 3), np.uint8)
    stored = values.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    case = read_case(write(tmp_path / "a.nii.gz", stored))
    assert (case.image == values.transpose(2, 1, 0, 3)).all()
    assert (case.shape, case.intensity) == ((5, 7, 6), "as stored")

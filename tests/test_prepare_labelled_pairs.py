"""Every kind of file becomes image and labels in one frame, or one line that says why not."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from litemed.runtime.errors import InputError
from litemed.train.prepare.labelled_pairs import Labelled, check_labels, read_pair
from litemed.train.prepare.sources import Pair

LPS = np.diag([-0.7, -0.8, 2.5, 1.0])


def read(image: Path, label: Path | None) -> Labelled:
    return read_pair(Pair("MR", "source", "case", "train", image, label))


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = LPS, unit: str = "mm") -> Path:
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units(unit)
    if affine is None:
        image.header.set_zooms((0.5, 0.6, 2))
    nibabel.save(image, path)
    return path


def write_image(path: Path, array: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), array)
    return path


def numbered(shape: tuple[int, int, int]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


AXES = itertools.permutations(("LR", "PA", "IS"))
ORIENTATIONS = ["".join(codes) for axes in AXES for codes in itertools.product(*axes)]


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("oblique", [0.0, 0.25])
def test_every_orientation_comes_out_in_the_usual_view(tmp_path: Path, codes: str, oblique: float) -> None:
    shape_xyz = (5, 6, 4)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(oblique), -np.sin(oblique)], [np.sin(oblique), np.cos(oblique)]]
    affine = turn @ LPS
    change = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(codes)))
    stored = apply_orientation(numbered(shape_xyz), change)
    path = write_nifti(tmp_path / "i.nii.gz", stored, affine @ inv_ornt_aff(change, shape_xyz))
    found = read(path, path)
    assert found.labels.ndim == 3
    assert (found.labels == found.image).all()
    # Each voxel's number tells where it was, in steps towards left, back and up.
    places = np.stack(np.unravel_index(found.image, shape_xyz), axis=-1)
    left, back, up = np.eye(3, dtype=int)
    views = {"SI": (up, back, left), "AP": (back, -up, left), "LR": (left, -up, back)}
    steps = next(view for ends, view in views.items() if codes[2] in ends)
    for axis, step in enumerate(steps):
        assert (np.diff(places, axis=axis) == step).all()
    spacing = [float(np.abs(step) @ (0.7, 0.8, 2.5)) for step in steps]
    assert found.spacing_zyx == pytest.approx(spacing, rel=1e-5)


def test_a_volume_without_orientation_is_taken_as_stored_and_its_spacing_in_mm(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "i.nii", numbered((5, 6, 4)), None)
    found = read(path, path)
    assert (found.image == numbered((5, 6, 4)).T).all()
    assert found.spacing_zyx == pytest.approx((2, 0.6, 0.5))
    path = write_nifti(path, numbered((5, 6, 4)), np.diag([-0.0007, -0.0008, 0.0025, 1]), "meter")
    assert read(path, path).spacing_zyx == pytest.approx((2.5, 0.8, 0.7), rel=1e-4)


def test_slope_and_intercept_and_byte_order_are_heeded(tmp_path: Path) -> None:
    stored = numbered((5, 6, 4))
    scaled = write_nifti(tmp_path / "i.nii", stored)
    # nibabel resets the slope on saving integers; set it in the file.
    raw = bytearray(scaled.read_bytes())
    raw[112:120] = np.array([2, -1000], "<f4").tobytes()
    scaled.write_bytes(bytes(raw))
    big = nibabel.Nifti1Image(stored, LPS, nibabel.Nifti1Header(endianness=">"))
    big.set_data_dtype(np.int16)
    nibabel.save(big, tmp_path / "l.nii")
    assert (tmp_path / "l.nii").read_bytes()[:4] == (348).to_bytes(4)
    found = read(scaled, tmp_path / "l.nii")
    assert (found.image == stored.transpose(2, 1, 0) * 2.0 - 1000).all()
    assert (found.labels == stored.transpose(2, 1, 0)).all()


def test_header_rounding_is_no_mismatch_but_a_shift_is(tmp_path: Path) -> None:
    data = numbered((50, 60, 4))
    image = write_nifti(tmp_path / "i.nii", data)
    near, far = LPS.copy(), LPS.copy()
    near[:3, 3] = 0.01
    far[2, 3] = 2.5
    read(image, write_nifti(tmp_path / "near.nii", data, near))
    for other in (far, np.diag([0.7, -0.8, 2.5, 1])):
        with pytest.raises(InputError, match=r"far\.nii: lies up to .* away from its image \(affines differ"):
            read(image, write_nifti(tmp_path / "far.nii", data, other))


@pytest.mark.parametrize(
    ("offset", "values", "message"),
    [
        # More than is read, more than there is, no extent, four axes; NaN and zeros in the affine.
        (42, np.array([32000, 32000, 32000], "<i2"), "declares shape"),
        (42, np.array([50, 60, 40], "<i2"), "declares shape"),
        (42, np.array([0, 6, 4], "<i2"), "declares shape|cannot be read"),
        (40, np.array([4, 5, 2, 4, 3], "<i2"), "one volume of three axes"),
        (280, np.array([np.nan], "<f4"), "affine is singular or not finite"),
        (280, np.zeros(12, "<f4"), "affine is singular or not finite"),
        # Voxels that are colours, complex, or of no type that there is.
        (70, np.array([128, 24], "<i2"), "voxels of type"),
        (70, np.array([32, 64], "<i2"), "voxels of type|declares shape"),
        (70, np.array([21, 16], "<i2"), "cannot be read"),
    ],
)
def test_hostile_nifti_headers_are_refused(
    tmp_path: Path, offset: int, values: np.ndarray, message: str
) -> None:
    label = write_nifti(tmp_path / "l.nii", numbered((5, 6, 4)))
    raw = bytearray(label.read_bytes())
    raw[offset : offset + values.nbytes] = values.tobytes()
    (tmp_path / "i.nii").write_bytes(bytes(raw))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "i.nii", label)
    assert "i.nii" in str(caught.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), max_size=8),
    st.one_of(st.none(), st.integers(0, 400)),
    st.booleans(),
)
def test_fuzzed_nifti_raises_nothing_but_our_own(
    tmp_path: Path, changes: list[tuple[int, int]], end: int | None, zipped: bool
) -> None:
    label = tmp_path / "l.nii"
    if not label.exists():
        write_nifti(label, numbered((5, 6, 4)))
    raw = bytearray(label.read_bytes())
    for place, value in changes:
        raw[place] = value
    image = tmp_path / ("f.nii.gz" if zipped else "f.nii")
    image.write_bytes(gzip.compress(bytes(raw))[:end] if zipped else bytes(raw)[:end])
    try:
        read(image, label)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_pictures_are_read_as_stored_without_alpha_and_grey_as_grey(tmp_path: Path) -> None:
    rgb = np.zeros((10, 20, 3), np.uint8)
    rgb[:, :10] = (250, 20, 30)
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    stacked = np.stack([grey, grey, grey, 255 - grey], axis=-1)
    deep, real = grey.astype(np.uint16) * 300, grey.astype(np.float32) / 7
    for labels in (deep, stacked[:, :, :3]):
        label = write_image(tmp_path / "l.png", labels)
        for name, stored, expected in (
            ("rgb.png", rgb[:, :, ::-1], rgb),
            ("rgb.tif", rgb[:, :, ::-1], rgb),
            ("rgba.png", stacked, grey),
            ("16.png", deep, deep),
            ("32.tif", real, real),
        ):
            found = read(write_image(tmp_path / name, stored), label)
            assert found.spacing_zyx is None
            assert found.image.dtype == expected.dtype
            assert (found.image == expected).all()
            assert (found.labels == (deep if labels is deep else grey)).all()
    found = read(write_image(tmp_path / "rgb.jpg", rgb[:, :, ::-1]), label)
    assert np.abs(found.image[:, :8].astype(int) - (250, 20, 30)).max() <= 8


def test_training_npz_without_pickles_and_with_labels(tmp_path: Path) -> None:
    for image, labels in (((7, 8), (7, 8)), ((7, 8, 3), (7, 8)), ((4, 7, 8),) * 2, ((4, 7, 3),) * 2):
        arrays = {"imgs": np.zeros(image, np.uint8), "gts": np.ones(labels), "spacing": [2.5, 0.7, 0.8]}
        np.savez_compressed(tmp_path / "CT_1.npz", **arrays)
        found = read(tmp_path / "CT_1.npz", None)
        assert found.image.shape == image
        assert (found.labels == np.ones(labels)).all()
        assert found.spacing_zyx == ((2.5, 0.7, 0.8) if len(labels) == 3 else None)
    for arrays in ({"imgs": np.array([{}], object), "gts": np.ones(1)}, {"imgs": np.ones((8, 9))}):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(InputError, match=r"bad\.npz"):
            read(tmp_path / "bad.npz", None)


def test_labels_are_whole_numbers_of_any_type_and_nothing_else() -> None:
    for value in (0.5, np.nan, np.inf, -2, -2.0, 2**31, 1j):
        with pytest.raises(InputError, match=r"file: labels (hold|are complex)"):
            check_labels(np.array([[0, value]]), "file")
    with pytest.raises(InputError, match=r"file: .* of shape \(0, 4\)"):
        check_labels(np.zeros((0, 4), np.uint8), "file")
    for dtype in (np.bool_, np.uint8, np.int64, np.float32, np.float64):
        checked = check_labels(np.array([[0, 1]], dtype), "file")
        assert checked.dtype.kind in "iu"
        assert checked.tolist() == [[0, 1]]


NOISE = np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("truncated.png", cv2.imencode(".png", NOISE)[1].tobytes()[:2000]),
        ("shape.png", cv2.imencode(".png", NOISE[:9, :8, 0])[1].tobytes()),
        ("colour.png", cv2.imencode(".png", NOISE[:8, :9])[1].tobytes()),
        ("pages.tif", cv2.imencodemulti(".tif", [NOISE[:8, :9, 0]] * 2)[1].tobytes()),
        ("text.png", b"this is not a picture"),
        ("empty.png", b""),
        ("missing.png", None),
        ("unknown.gif", b"GIF89a"),
        ("mixed.nii", b"of another kind than the image"),
    ],
)
def test_a_bad_label_is_one_line_that_names_the_file(tmp_path: Path, name: str, stored: bytes | None) -> None:
    image = write_image(tmp_path / "good.png", np.ones((8, 9), np.uint8))
    if stored is not None:
        (tmp_path / name).write_bytes(stored)
    with pytest.raises(InputError, match=name) as caught:
        read(image, tmp_path / name)
    assert "\n" not in str(caught.value)

"""Which pairs a source holds; how each becomes image and labels in one frame, or one line why not."""

import itertools
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.modalities import MODALITIES, find_modality, modality_of_name, parse_modality
from litemed.train.prepare.cli import main
from litemed.train.prepare.labelled_pairs import Labelled, check_labels, read_pair
from litemed.train.prepare.sources import Pair, SourceOptions, find_pairs, select


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_index(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_modalities_are_known_by_every_spelling():
    assert len(MODALITIES) == 11
    assert [parse_modality(name.upper()) for name in MODALITIES] == list(MODALITIES)
    texts = ("X-Ray", "x_ray", "Microscope", "MRI", " us ")
    assert [find_modality(text) for text in texts] == ["XRay", "XRay", "Microscopy", "MR", "US"]
    names = ("CT_Abd_0001", "2DBox_X-Ray_0053", "3DBox_MR_0121", "X_Ray_7", "CT", "scan_CT_1")
    assert [modality_of_name(name) for name in names] == ["CT", "XRay", "MR", "XRay", None, None]
    with pytest.raises(InputError, match="row 3: unknown modality 'Thermo'; use one of CT, MR"):
        parse_modality("Thermo", "row 3")


def test_folders_say_modality_source_and_split(tmp_path):
    pairs = ("CT/{}/a.nii.gz", "X-Ray/chest/{}/b.png", "val/US/{}/c.png", "validation/OCT/{}/d.tif")
    touch(*(tmp_path / "s" / pair.format(part) for pair in pairs for part in ("images", "labels")))
    touch(tmp_path / "s/Microscope/cells.npz", tmp_path / "s/MR_Brain_01.npz")
    found = find_pairs([tmp_path / "s"], SourceOptions(val_fraction=0))
    assert [(p.modality, p.source, p.split, p.case, p.label is None) for p in found.pairs] == [
        ("CT", "s", "train", "a", False),
        ("MR", "s", "train", "MR_Brain_01", True),
        ("Microscopy", "s", "train", "cells", True),
        ("OCT", "s", "val", "d", False),
        ("US", "s", "val", "c", False),
        ("XRay", "chest", "train", "b", False),
    ]
    assert found.problems == ()


@pytest.mark.parametrize("nothing", ["missing", "empty", "notes.txt", "head.csv", "CT/flat"])
def test_a_source_without_pairs_or_modality_is_refused(tmp_path, nothing):
    (tmp_path / "empty").mkdir()
    # Folders above the source say nothing.
    touch(tmp_path / "notes.txt", tmp_path / "CT/flat/images/a.png", tmp_path / "CT/flat/labels/a.png")
    (tmp_path / "head.csv").write_text("modality,image,label\n")
    with pytest.raises(UsageError, match=nothing):
        find_pairs([tmp_path / nothing], SourceOptions())
    (pair,) = find_pairs([tmp_path / "CT/flat"], SourceOptions(modality="OCT")).pairs
    assert pair.modality == "OCT"


def test_an_index_says_everything(tmp_path):
    place = {"modality": "X-Ray", "source": "src", "case": "c1", "split": "val"}
    terms = {"licence": "CC0", "attribution": "A. Nonymous", "licence_status": "stated"}
    row = place | {"image": "i/a.png", "label": "l/a.png"} | terms
    files = (tmp_path / "i/a.png", tmp_path / "l/a.png")
    expected = (Pair("XRay", "src", "c1", "val", *files, *terms.values()),)
    index = write_index(tmp_path / "index.csv", [row])
    assert find_pairs([index], SourceOptions()).pairs == expected
    assert find_pairs([tmp_path], SourceOptions()).pairs == expected


def test_bad_rows_are_named_by_line_and_the_rest_goes_on(tmp_path):
    good = {"modality": "CT", "image": "a", "label": "b", "split": "val"}
    bad = [{"modality": "Thermo"}, {"split": "holdout"}, {"label": ""}]
    # Some file systems take A for a.
    rows = [*(good | change for change in bad), good, good | {"image": "A"}]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    assert len(found.pairs) == 1
    assert all(f"line {n}: " in problem for n, problem in enumerate(found.problems[:3], start=2))
    words = ("'Thermo'", "'holdout'", "no image", "like")
    for word, problem in zip(words, found.problems, strict=True):
        assert word in problem
    with pytest.raises(UsageError, match="no column image, label"):
        find_pairs([write_index(tmp_path / "i.csv", [{"modality": "CT"}])], SourceOptions())


def test_files_of_one_name_in_several_folders_are_cases_of_their_own(tmp_path):
    rows = [
        {"modality": "CT", "image": f"k/case_{i}/imaging.nii", "label": f"k/case_{i}/seg.nii"} for i in "012"
    ]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    assert [pair.case for pair in found.pairs] == [f"case_{i}_imaging" for i in "012"]
    assert len({pair.split for pair in found.pairs}) == 1  # drawn for the name that they share
    places = [f"s/{split}/US/{kind}/1.png" for split in ("train", "val") for kind in ("images", "labels")]
    touch(*(tmp_path / place for place in places))
    found = find_pairs([tmp_path / "s"], SourceOptions())
    assert [pair.case for pair in found.pairs] == ["train_US_images_1", "val_US_images_1"]
    assert found.problems == ()


def test_only_rows_of_a_licence_status_that_was_asked_for(tmp_path):
    rows = [
        {"modality": "CT", "image": f"{i}.png", "label": f"{i}l.png", "licence_status": status}
        for i, status in enumerate(["stated", "known", "unclear", ""])
    ]
    index = write_index(tmp_path / "i.csv", rows)
    found = find_pairs([index], SourceOptions(licence_status=("stated", "known")))
    assert [pair.licence_status for pair in found.pairs] == ["stated", "known"]
    assert len(find_pairs([index], SourceOptions()).pairs) == 4
    with pytest.raises(UsageError, match="no pair"):
        find_pairs([index], SourceOptions(licence_status=("signed",)))


def test_the_drawn_split_has_the_share_and_does_not_move_when_cases_are_added(tmp_path):
    rows = [{"modality": "CT", "image": f"{i}.png", "label": f"{i}_l.png", "source": "s"} for i in range(999)]
    options = SourceOptions(val_fraction=0.2)
    few = find_pairs([write_index(tmp_path / "few.csv", rows[::2])], options)
    many = find_pairs([write_index(tmp_path / "many.csv", rows)], options)
    # 999 draws at 0.2: 200, standard deviation 13.
    assert 130 < sum(pair.split == "val" for pair in many.pairs) < 270
    assert {(p.case, p.split) for p in few.pairs} < {(p.case, p.split) for p in many.pairs}


def test_files_of_no_kind_that_is_read_are_listed_for_each_folder(tmp_path):
    read = [tmp_path / "CT" / part / "a.png" for part in ("images", "labels")]
    others = [tmp_path / "b.dcm", tmp_path / "CT/images/c.svg", tmp_path / "CT/d.png"]
    touch(*read, *others, tmp_path / "CT/.hidden")
    ((folder, found),) = find_pairs([tmp_path], SourceOptions()).unread.items()
    assert (folder, set(found)) == (tmp_path, set(others))
    done = CliRunner().invoke(main, [str(tmp_path), "-o", str(tmp_path / "out"), "--strict"])
    assert done.exit_code == 2
    assert "3 in it are of no kind that is read there and were left out: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_select_takes_turns_between_sources_and_keeps_to_splits(tmp_path):
    rows = [
        {"modality": m, "source": s, "image": f"{s}{i}", "label": "l", "split": "train" if i % 2 else "val"}
        for m, s, count in (("CT", "big", 5), ("CT", "small", 1), ("US", "echo", 3))
        for i in range(count)
    ]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    chosen = select(found, limit=2).pairs
    assert [(p.modality, p.source) for p in chosen] == [("CT", "big"), ("CT", "small")] + [("US", "echo")] * 2
    assert [p.split for p in select(found, ["val"]).pairs] == ["val"] * 6
    assert [p.split for p in select(found, ["val", "train"], limit=1).pairs] == ["val", "val"]
    assert {p.source for p in select(found, exclude=["big", "echo"]).pairs} == {"small"}
    for nothing in ({"splits": ["test"]}, {"exclude": ["big", "small", "echo"]}):
        with pytest.raises(UsageError, match="is left of 9"):
            select(found, **nothing)
    # A name that is misspelt would leave in what should be out.
    with pytest.raises(UsageError, match="'Big' to exclude"):
        select(found, exclude=["Big"])


# What is in a pair

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
def test_every_orientation_comes_out_in_the_usual_view(tmp_path, codes, oblique):
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


def test_a_volume_without_orientation_is_taken_as_stored_and_its_spacing_in_mm(tmp_path):
    path = write_nifti(tmp_path / "i.nii", numbered((5, 6, 4)), None)
    found = read(path, path)
    assert (found.image == numbered((5, 6, 4)).T).all()
    assert found.spacing_zyx == pytest.approx((2, 0.6, 0.5))
    path = write_nifti(path, numbered((5, 6, 4)), np.diag([-0.0007, -0.0008, 0.0025, 1]), "meter")
    assert read(path, path).spacing_zyx == pytest.approx((2.5, 0.8, 0.7), rel=1e-4)


def test_slope_and_intercept_and_byte_order_are_heeded(tmp_path):
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


def test_header_rounding_is_no_mismatch_but_a_shift_is(tmp_path):
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
        (40, np.array([4, 5, 2, 4, 3], "<i2"), "3 volumes; name one"),
        (280, np.array([np.nan], "<f4"), "affine is singular or not finite"),
        (280, np.zeros(12, "<f4"), "affine is singular or not finite"),
        # Voxels that are complex, or of no type that there is.
        (70, np.array([32, 64], "<i2"), "voxels of type|declares shape"),
        (70, np.array([21, 16], "<i2"), "cannot be read"),
    ],
)
def test_hostile_nifti_headers_are_refused(tmp_path, offset, values, message):
    label = write_nifti(tmp_path / "l.nii", numbered((5, 6, 4)))
    raw = bytearray(label.read_bytes())
    raw[offset : offset + values.nbytes] = values.tobytes()
    (tmp_path / "i.nii").write_bytes(bytes(raw))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "i.nii", label)
    assert "i.nii" in str(caught.value)


def test_pictures_are_read_as_stored_without_alpha_and_grey_as_grey(tmp_path):
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


def test_training_npz_without_pickles_and_with_labels(tmp_path):
    for image, labels in (((7, 8), (7, 8)), ((7, 8, 3), (7, 8)), ((4, 7, 8),) * 2, ((4, 7, 3),) * 2):
        truth = np.arange(np.prod(labels)).reshape(labels)
        arrays = {"imgs": np.zeros(image, np.uint8), "gts": truth, "spacing": [2.5, 0.7, 0.8]}
        np.savez_compressed(tmp_path / "CT_1.npz", **arrays)
        found = read(tmp_path / "CT_1.npz", None)
        assert found.image.shape == image
        assert (found.labels == truth).all()
        assert found.spacing_zyx == ((2.5, 0.7, 0.8) if len(labels) == 3 else None)
    for arrays in ({"imgs": np.array([{}], object), "gts": np.ones(1)}, {"imgs": np.ones((8, 9))}):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(InputError, match=r"bad\.npz"):
            read(tmp_path / "bad.npz", None)


def test_labels_are_whole_numbers_of_any_type_and_nothing_else():
    for value in (0.5, np.nan, np.inf, -2, -2.0, 2**31, 1j):
        with pytest.raises(InputError, match=r"file: labels (hold|are complex)"):
            check_labels(np.array([[0, value]]), "file")
    with pytest.raises(InputError, match=r"file: labels have no background"):
        check_labels(np.array([[1, 2]]), "file")
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
def test_a_bad_label_is_one_line_that_names_the_file(tmp_path, name, stored):
    image = write_image(tmp_path / "good.png", np.ones((8, 9), np.uint8))
    if stored is not None:
        (tmp_path / name).write_bytes(stored)
    with pytest.raises(InputError, match=name) as caught:
        read(image, tmp_path / name)
    assert "\n" not in str(caught.value)

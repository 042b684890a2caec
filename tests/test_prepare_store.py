"""Intensities, objects, slices and cases are right, go to disk and come back, and damage is noticed."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.intensity import to_uint8
from litemed.runtime.inputs.scaling import WINDOWS, Window, parse_window
from litemed.runtime.preprocess import preprocess
from litemed.train.prepare.objects import boxes_of, keep, number, number_sharp
from litemed.train.prepare.pipeline import prepare
from litemed.train.prepare.slices import (
    Settings,
    case_name,
    make_slices,
    move_edges,
    resize_image,
    resize_labels,
    write_case,
)
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import Slices


def npz_pair(
    path: Path, image: np.ndarray, labels: np.ndarray, modality: str = "CT", split: str = "train"
) -> Pair:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, imgs=image, gts=labels, spacing=[2.5, 0.7, 0.8])
    return Pair(modality, path.parent.name, path.stem, split, path, None)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def blocks(*shape: int) -> np.ndarray:
    """Return labels 1 and 2 in two quarters of each slice."""
    labels = np.zeros(shape, np.uint8)
    labels[..., : shape[-2] // 2, : shape[-1] // 2] = 1
    labels[..., shape[-2] // 2 :, shape[-1] // 2 :] = 2
    return labels


MANY = np.arange(512).reshape(16, 32).repeat(16, axis=0).repeat(8, axis=1) + 1
MANY[::16] = MANY[:, ::8] = 0


@pytest.fixture
def prepared(tmp_path):
    pairs = (
        npz_pair(tmp_path / "a/volume.npz", noise(5, 60, 50), blocks(5, 60, 50)),
        npz_pair(tmp_path / "b/colour.npz", noise(80, 300, 3), blocks(80, 300), "US", "val"),
        npz_pair(tmp_path / "b/many.npz", noise(256, 256), MANY, "US"),
    )
    prepare(Found(pairs), tmp_path / "data", Settings(min_area_pixels=1))
    return tmp_path / "data"


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 700), st.floats(0, 1), st.booleans())
def test_labels_change_where_half_of_a_pixel_is_covered(length, width, share, upright):
    labels = np.zeros((length, width), np.uint8)
    labels[: round(share * length)] = 1
    labels = labels if upright else labels.T.copy()
    covered = resize_image(labels * np.uint8(255)) / 255
    small = resize_labels(labels)
    assert covered.shape == small.shape
    assert max(small.shape) == 256
    assert small.dtype == labels.dtype
    # The centre may lie anywhere within one pixel of the original.
    tolerance = 0.5 * min(1, 256 / max(length, width)) + 0.01
    assert (small[covered > 0.5 + tolerance] == 1).all()
    assert (small[covered < 0.5 - tolerance] == 0).all()


@settings(deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.booleans())
def test_the_network_sees_the_same_from_a_slice_as_from_its_original(h, w, colour):
    image = noise(h, w, 3) if colour else noise(h, w)
    assert (preprocess(resize_image(image))[0] == preprocess(image)[0]).all()


def test_a_volume_gives_the_slices_that_show_an_object(tmp_path):
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[1:4, 10:30, 10:30] = 7
    labels[3, 40:60, 40:60] = 2
    labels[5, 0, 0:4] = 9
    pair = npz_pair(tmp_path / "v.npz", noise(6, 64, 64), labels)
    slices, counts = make_slices(pair, Settings(min_volume_voxels=5))
    assert [(part.z, len(part.objects)) for part in slices] == [(1, 1), (2, 1), (3, 2)]
    # 2 comes before 7 on the slice that shows both; sizes are at four times the scale.
    assert slices[2].objects.labels[: 4 * 30, : 4 * 30].max() == 2
    assert slices[2].objects.sizes.tolist() == [6400, 6400]
    assert list(counts.values()) == [3, 4, 1, 0, 3, 0]


def test_the_area_limit_counts_at_256_and_objects_that_vanish(tmp_path):
    labels = np.zeros((1024, 1024), np.uint8)
    labels[0:16, 0:16] = 1
    labels[100:115, 100:116] = 2
    labels[500, 500] = 3
    pair = npz_pair(tmp_path / "i.npz", noise(1024, 1024), labels)
    for minimum, sizes, expected in ((16, [[16, 16]], [1, 2, 0, 1, 0, 0]), (17, [], [0, 0, 0, 3, 1, 1])):
        slices, counts = make_slices(pair, Settings(min_area_pixels=minimum))
        assert [part.objects.sizes.tolist() for part in slices] == sizes
        assert list(counts.values()) == expected


def test_what_is_stored_comes_back_whole_or_in_part(prepared):
    slices = Slices.open(prepared)
    assert len(slices) == 7
    infos = [slices.info(i) for i in range(7)]
    volume = [("volume", "train", z, 2) for z in range(5)]
    others = [("colour", "val", 0, 2), ("many", "train", 0, 512)]
    assert [(info.case, info.split, info.z, info.objects) for info in infos] == volume + others
    assert [info.of_volume for info in infos] == [True] * 5 + [False] * 2
    for i, image, labels in (
        (4, noise(5, 60, 50)[4], blocks(60, 50)),
        (5, noise(80, 300, 3), blocks(80, 300)),
        (6, noise(256, 256), MANY),
    ):
        assert (slices[i][0] == resize_image(image)).all()
        assert (slices[i][1] == resize_labels(labels)).all()
        assert slices[i][0].dtype == np.uint8
        assert slices[i][1].dtype == (np.uint16 if i == 6 else np.uint8)
    numbers = {name: found.tolist() for name, found in slices.indices_by_modality().items()}
    assert numbers == {"CT": [0, 1, 2, 3, 4], "US": [5, 6]}
    assert len(Slices.open(prepared, split="train")) == 6
    assert len(Slices.open(prepared, split="test")) == 0
    assert slices.info(-1) == slices.info(6)
    slices[0][0][:] = 0  # a copy
    copy = pickle.loads(pickle.dumps(slices))  # noqa: S301
    assert (copy[0][0] == slices[0][0]).all()
    assert slices[0][0].any()
    with pytest.raises(IndexError):
        slices[7]


def test_what_version_0_1_prepared_is_read(prepared):
    before = Slices.open(prepared)
    for path in prepared.glob("*/*.json"):
        shard = json.loads(path.read_text())
        rest = {name: shard.pop(name) for name in ("format", "cases", "tally", "failed")}
        index = {"slices": rest["tally"]["slices"], "index_bytes": 1, "index_sha256": ""}
        path.write_text(json.dumps({**rest, "terms": [], "entry": shard | index}))
    assert Slices.open(prepared).info(5) == before.info(5)


@pytest.mark.parametrize("suffix", [".npy", ".index.npy", ".json"])
@pytest.mark.parametrize("harm", ["truncated", "removed", "of something else"])
def test_a_damaged_shard_is_refused_when_opened(prepared, suffix, harm):
    path = prepared / f"CT/a-train-00000{suffix}"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif harm == "removed":
        path.unlink()
    else:
        path.write_text('{"format": 1, "entry": 5}')
    with pytest.raises(InputError, match=r"a-train-00000.*run litemed-prepare"):
        Slices.open(prepared)
    assert len(Slices.open(prepared, split="val")) == 1


def test_a_shard_changed_after_opening_is_no_crash(prepared):
    path = prepared / "CT/a-train-00000.npy"
    whole, data = path.read_bytes(), np.load(path)
    for array in (data[:1000], np.append(data, data), data.astype(np.int16)):
        path.write_bytes(whole)
        slices = Slices.open(prepared)
        np.save(path, array)
        with pytest.raises(InputError, match="a-train-00000"):
            slices[0]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"format": 2, "shards": []}', '{"format": 1, "shards": [{}]}']
)
def test_a_manifest_that_is_none_is_refused(prepared, content):
    manifest = prepared / "manifest.json"
    whole = manifest.read_text()
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json.*to its end"):
        Slices.open(prepared)
    manifest.write_text(whole.replace("CT/a-train-00000.npy", "../a.npy"))
    with pytest.raises(InputError, match="outside the folder"):
        Slices.open(prepared)


# Test cases: what the runtime reads and the evaluation compares


def make_case(path: Path, labels: np.ndarray, **chosen: float) -> tuple[Case, np.ndarray]:
    """The test case that is made of labels, and its ground truth."""
    pair = npz_pair(path, noise(*labels.shape), labels)
    write_case(pair, path.parent, Settings(cases=True, **chosen))
    name = f"{case_name(pair, labels.ndim == 3)}.npz"
    with np.load(path.parent / "gts" / name) as archive:
        return read_case(path.parent / "cases" / name), archive["gts"]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(4, 9)),
        elements=st.sampled_from([0, 0, 3, 200]),
    ),
    st.booleans(),
)
def test_the_runtime_reads_what_is_written_and_box_i_is_label_i(tmp_path, labels, volume):
    labels = labels if volume else labels[0]
    labels.flat[0] = 0
    found = Found((npz_pair(tmp_path / "src/c.npz", noise(*labels.shape), labels),))
    made = prepare(found, tmp_path / "out", Settings(cases=True, min_area_pixels=1, min_volume_voxels=1))
    assert made.failed == []
    name = f"{'3D' if volume else '2D'}Box_CT_src_c.npz"
    assert (tmp_path / "out/cases" / name).exists() == bool(labels.any())
    if not labels.any():
        assert made.total == {"cases": 0, "boxes": 0, "cases_without_object": 1}
        return
    case = read_case(tmp_path / "out/cases" / name)
    with np.load(tmp_path / "out/gts" / name) as archive:
        truth = archive["gts"]
        assert ("spacing" in archive) == volume
        assert not volume or archive["spacing"].tolist() == [2.5, 0.7, 0.8]
    assert case.boxes.clipped == ()
    assert truth.shape == case.image.shape == labels.shape
    assert len(case.boxes) == truth.max() == len(set(np.unique(labels)) - {0})
    columns = [0, 1, 3, 4] if volume else [0, 1, 2, 3]
    assert (case.boxes.xyxy == boxes_of(number(truth))[:, columns]).all()
    assert ((truth > 0) == (labels > 0)).all()


def test_small_objects_are_left_out_by_area_at_256_and_by_volume_and_the_largest_kept(tmp_path):
    labels = np.zeros((512, 512), np.uint8)
    for value, side in ((1, 9), (2, 3), (3, 12), (4, 8), (5, 7)):
        labels[15 * value - 15 : 15 * value - 15 + side, 0:side] = value
    case, _ = make_case(tmp_path / "c.npz", labels, min_area_pixels=16)
    assert case.boxes.xyxy.tolist() == [[0, 0, 8, 8], [0, 30, 11, 41], [0, 45, 7, 52]]
    case, truth = make_case(tmp_path / "c.npz", labels, min_area_pixels=1, max_boxes=2)
    assert case.boxes.xyxy.tolist() == [[0, 0, 8, 8], [0, 30, 11, 41]]
    assert np.unique(truth).tolist() == [0, 1, 2]
    volume = np.zeros((4, 20, 20), np.uint8)
    volume[:, 0:5, 0:5] = 1
    volume[0:3, 10:15, 10:16] = 2
    case, _ = make_case(tmp_path / "v.npz", volume, min_volume_voxels=100)
    assert case.boxes.xyxy.tolist() == [[0, 0, 4, 4]]


def test_a_volume_is_cropped_to_the_slices_that_show_most(tmp_path):
    labels = np.zeros((20, 16, 16), np.uint8)
    labels[2:4, 0:4, 0:4] = 1
    labels[11:15, 2:12, 2:12] = 2
    labels[14, 13:15, 13:15] = 3
    case, truth = make_case(tmp_path / "c.npz", labels, min_volume_voxels=1, max_slices=3)
    with np.load(tmp_path / "c.npz") as archive:
        assert (case.image == archive["imgs"][12:15]).all()
    assert case.boxes.xyxy.tolist() == [[2, 2, 11, 11], [13, 13, 14, 14]]
    assert case.boxes.z.tolist() == [[0, 2], [2, 2]]
    assert (truth == np.where(labels[12:15] == 3, 2, labels[12:15] == 2)).all()


def test_names_that_would_collide_or_leave_the_folder_do_not(tmp_path):
    labels = np.eye(40, dtype=np.uint8)
    first, second = (npz_pair(tmp_path / "src" / name, labels, labels) for name in ("a b.npz", "A_B.npz"))
    with pytest.raises(UsageError, match=r"CT/src/a b: another pair would share"):
        prepare(Found((first, second)), tmp_path / "out", Settings(cases=True))
    evil = Pair("CT", "src/../../..", "../../evil", "val", first.image, None)
    prepare(Found((evil,)), tmp_path / "out", Settings(cases=True))
    names = [path.name for path in (tmp_path / "out/cases").iterdir()]
    assert names == ["2DBox_CT_src_.._.._.._.._.._evil.npz"]


def test_no_case_is_left_of_a_pair_that_can_no_longer_be_read(tmp_path):
    labels = np.eye(40, dtype=np.uint8)
    first, second = (npz_pair(tmp_path / name, labels, labels) for name in ("a.npz", "b.npz"))
    prepare(Found((first, second)), tmp_path / "out", Settings(cases=True))
    second.image.write_bytes(b"damaged")
    assert len(prepare(Found((first, second)), tmp_path / "out", Settings(cases=True)).failed) == 1
    for folder in ("cases", "gts"):
        assert [path.stem for path in (tmp_path / "out" / folder).iterdir()] == [case_name(first, False)]


def test_labels_with_soft_edges_are_refused_and_tiny_or_crowded_objects_are_not(tmp_path):
    disc = (np.hypot(*np.ogrid[-32:32, -32:32]) < 20).astype(np.float32)
    smooth = np.rint(cv2.GaussianBlur(disc, (0, 0), 1) * 255).astype(np.uint8)
    _, jpeg = cv2.imencode(".jpg", (disc * 255).astype(np.uint8))
    volume = np.stack([np.zeros_like(smooth), smooth, smooth])
    soft = {
        "smooth": smooth,
        "was a jpeg": cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED),
        "volume": volume,
    }
    for name, labels in soft.items():
        pair = npz_pair(tmp_path / f"{name}.npz", noise(*labels.shape), labels)
        for use in (make_slices, lambda pair, settings: write_case(pair, tmp_path, settings)):
            with pytest.raises(InputError, match=rf"{name}\.npz: labels have soft edges"):
                use(pair, Settings())
    points = np.zeros((64, 64), np.uint8)
    points[::4, ::4] = np.arange(256).reshape(16, 16)
    rings = np.clip(30 - np.hypot(*np.ogrid[-32:32, -32:32]), 0, 20) // 5
    for labels in (points, rings.astype(np.uint8), blocks(64, 64)):
        number_sharp(labels, "labels")


# Objects and boxes

ABDOMEN = WINDOWS["abdomen"]
LABELS = st.one_of(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(0, 5)),
    hnp.arrays(np.int32, (6, 9), elements=st.sampled_from([0, 1, 300, 2**31 - 1])),
    hnp.arrays(np.int32, (2, 2), elements=st.sampled_from([7, 300, 2**31 - 1])),
)


def ascending_sets(labels: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(labels == value)) for value in np.unique(labels) if value != 0]


@given(LABELS, st.integers(1, 20))
def test_objects_keep_their_order_and_small_ones_are_left_out_whole(labels, minimum):
    objects = number(labels)
    kept = keep(objects, objects.sizes >= minimum)
    expected = [part for part in ascending_sets(labels) if len(part) >= minimum]
    assert ascending_sets(kept.labels) == expected
    assert set(np.unique(kept.labels)) <= set(range(len(expected) + 1))
    assert kept.sizes.tolist() == [len(part) for part in expected]


def test_the_smallest_dtype_that_holds_the_labels():
    for count, dtype in ((0, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32)):
        objects = number(np.arange(count + 1).reshape(1, -1))
        assert objects.labels.dtype == dtype
        assert objects.labels.max() == count == len(objects)
    assert boxes_of(number(np.zeros((3, 3), np.uint8))).shape == (0, 4)


@given(LABELS)
def test_boxes_are_tight_have_an_area_and_are_what_the_runtime_takes(labels):
    objects = number(labels)
    if not len(objects) or (labels.ndim == 3 and labels.shape[2] == 3):
        return
    boxes = boxes_of(objects)
    parsed = Boxes.parse(boxes, labels.shape)
    assert parsed.clipped == ()
    for label, (x0, y0, x1, y1) in enumerate(parsed.xyxy, start=1):
        *z, y, x = np.nonzero(objects.labels == label)
        assert (x0, y0) == (x.min(), y.min())
        assert (x1, y1) == (max(x.max(), x.min() + 1), max(y.max(), y.min() + 1))
        if z:
            assert parsed.z[label - 1].tolist() == [z[0].min(), z[0].max()]


@settings(max_examples=50)
@given(
    hnp.arrays(np.uint8, (2, 8, 10), elements=st.integers(0, 4)),
    st.booleans(),
    st.floats(0, 0.99),
    st.text(max_size=5),
    st.booleans(),
)
def test_moved_edges_stay_valid_and_near(labels, volume, fraction, seed, outwards):
    objects = number(labels if volume else labels[0])
    if not len(objects):
        return
    boxes = boxes_of(objects)
    moved = move_edges(boxes, objects.labels.shape, fraction, seed, outwards)
    assert Boxes.parse(moved, objects.labels.shape).clipped == ()
    assert (moved == move_edges(boxes, objects.labels.shape, fraction, seed, outwards)).all()
    shift, half = np.abs(moved - boxes), boxes.shape[1] // 2
    sides = boxes[:, half : half + 2] - boxes[:, :2]
    most = np.maximum(fraction * np.tile(sides, 2), 1) + outwards / 2
    assert (shift[:, [0, 1, half, half + 1]] <= most).all()
    assert not volume or not shift[:, [2, 5]].any()
    assert not outwards or ((moved - boxes) * np.repeat([-1, 1], half) >= 0).all()
    many = np.array([[100, 100, 300, 300]] * 20)
    one, two = (move_edges(many, (400, 400), 0.1, text, outwards) for text in (seed, f"{seed}+"))
    assert (one != many).mean() > 0.8 < (one != two).mean()


def test_loose_edges_move_by_shares_of_their_own():
    boxes = np.array([[400, 450, 600, 550]] * 3000)
    moved = (move_edges(boxes, (1000, 1000), 0.4, "name", outwards=True) - boxes) / [-200, -100, 200, 100]
    assert np.abs(np.quantile(moved, [0, 0.25, 0.5, 1], axis=0).T - [0, 0.1, 0.2, 0.4]).max() < 0.03
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.2


def test_the_boxes_of_a_name_are_the_same_everywhere():
    boxes, expected = np.array([[40, 50, 60, 70]]), {False: [37, 54, 62, 77], True: [35, 44, 67, 75]}
    for outwards, box in expected.items():
        assert move_edges(boxes, (100, 100), 0.4, "0/name", outwards).tolist() == [box]


# Intensities


@pytest.mark.parametrize("name", ["abdomen", "lung", "bone", "brain", "mediastinum", "soft tissue"])
def test_a_window_maps_its_edges_to_0_and_255_and_its_level_to_the_middle(name):
    window = parse_window(name)
    low, high = window.level - window.width / 2, window.level + window.width / 2
    hu = np.array([-5000, low, window.level, high, 5000], np.float32)
    assert to_uint8(hu, "CT", window).tolist() == [0, 0, 128, 255, 255]


def test_a_window_may_be_given_by_level_and_width():
    assert parse_window("40,400") == Window(40, 400)
    for text in ("liver", "40", "40,0", "40,-1", "nan,400", "40,inf", "1,2,3"):
        with pytest.raises(UsageError, match=r"window '.*'"):
            parse_window(text)


@given(hnp.arrays(np.int16, st.integers(1, 200)))
def test_ct_never_falls_where_hounsfield_units_rise(hu):
    hu = np.sort(np.append(hu, [-1000, 1000]).astype(np.int16))
    assert (np.diff(to_uint8(hu, "CT", ABDOMEN).astype(int)) >= 0).all()


@pytest.mark.parametrize("modality", ["MR", "XRay"])
def test_percentiles_of_the_non_zero_values_become_black_and_white(modality):
    # Without the zeros: 0.5 and 99.5 percentiles are 5 and 995 of 0..1000; with them they would differ.
    inside = np.arange(1, 1001, dtype=np.float32)
    image = np.concatenate([np.zeros(5000, np.float32), inside])
    low, high = np.percentile(inside, [0.5, 99.5])
    result = to_uint8(image, modality, ABDOMEN)
    assert (result[:5000] == 0).all()
    expected = np.rint(np.clip((inside - low) / (high - low), 0, 1) * 255)
    assert np.abs(result[5000:] - expected).max() <= 1
    assert result.max() == 255
    assert to_uint8(np.array([-100, 0, 100, 300], np.int16), modality, ABDOMEN)[1] == 0


def test_eight_bits_stay_and_nan_infinity_and_constant_images_are_background():
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = np.arange(1, 101, dtype=np.float32)
    broken = np.concatenate([image, [np.nan, np.inf, -np.inf]]).astype(np.float32)
    for modality in ("MR", "CT"):
        assert (to_uint8(colour, modality, ABDOMEN) == colour).all()
        result = to_uint8(broken, modality, ABDOMEN)
        assert (result[:100] == to_uint8(image, modality, ABDOMEN)).all()
        assert (result[100:] == 0).all()
    for value in (0, 7, -3.5):
        assert (to_uint8(np.full((4, 4), value, np.float32), "MR", ABDOMEN) == 0).all()


def test_images_that_hold_nothing_are_refused_with_what_they_hold():
    for modality in ("MR", "CT"):
        with pytest.raises(InputError, match=r"scan\.nii: has no finite value"):
            to_uint8(np.array([[np.nan, -np.inf]], np.float32), modality, ABDOMEN, "scan.nii")
    scaled = np.linspace(0, 1, 100, dtype=np.float32)
    for image, levels in (
        (scaled, "from 0 to 1 has 1 of 256 grey levels"),
        (6 * scaled - 3, "from -3 to 3 has 5 of 256 grey levels"),
        (scaled * 0 - 1000, "from -1000 to -1000 has 1 of 256 grey levels"),
    ):
        with pytest.raises(InputError, match=rf"scan\.nii: CT {levels} in the window from -150 to 250"):
            to_uint8(image, "CT", ABDOMEN, "scan.nii")
        to_uint8(image, "MR", ABDOMEN, "scan.nii")


def test_ct_in_unsigned_integers_is_refused():
    with pytest.raises(InputError, match=r"scan\.png: CT in uint16 is not in Hounsfield units"):
        to_uint8(np.zeros((4, 4), np.uint16), "CT", ABDOMEN, "scan.png")

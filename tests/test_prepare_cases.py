"""Test cases in the challenge's layout: what the runtime reads and the evaluation compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.errors import UsageError
from litemed.runtime.readers import read_case
from litemed.train.prepare.cases import case_name, make_case
from litemed.train.prepare.objects import boxes_of, number
from litemed.train.prepare.pipeline import prepare_cases
from litemed.train.prepare.settings import CaseSettings
from litemed.train.prepare.sources import Found, Pair

EVERYTHING = CaseSettings(min_area_pixels=1, min_volume_voxels=1)


def npz_pair(path: Path, labels: np.ndarray, kind: str = "class", modality: str = "CT") -> Pair:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, labels.shape).astype(np.uint8)
    np.savez(path, imgs=image, gts=labels, spacing=[2.5, 0.7, 0.8])
    return Pair(modality, "src", path.stem, "val", kind, path, None)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(4, 9)),
        elements=st.sampled_from([0, 0, 3, 200]),
    ),
    st.booleans(),
)
def test_the_runtime_reads_what_is_written_and_box_i_is_label_i(
    tmp_path: Path, labels: np.ndarray, volume: bool
) -> None:
    labels = labels if volume else labels[0]
    found = Found((npz_pair(tmp_path / "c.npz", labels),))
    summary = prepare_cases(found, tmp_path / "out", EVERYTHING, overwrite=True)
    assert summary.failed == ()
    name = f"{'3D' if volume else '2D'}Box_CT_src_c.npz"
    assert (tmp_path / "out/cases" / name).exists() == bool(labels.any())
    if not labels.any():
        manifest = json.loads((tmp_path / "out/manifest.json").read_text())
        assert manifest["total"] == {"cases": 0, "boxes": 0, "cases_without_object": 1}
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


def test_classes_stay_whole_unless_components_are_asked_for(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[0:9, 0:9] = labels[30:40, 30:40] = 5
    for kind, components, boxes in (
        ("class", False, 1),
        ("class", True, 2),
        ("binary", True, 2),
        ("instance", True, 1),
    ):
        case = make_case(npz_pair(tmp_path / "c.npz", labels, kind), CaseSettings(components=components))
        assert case is not None
        assert len(case.boxes) == boxes


def test_small_objects_are_left_out_by_area_at_256_and_by_volume(tmp_path: Path) -> None:
    labels = np.zeros((512, 512), np.uint8)
    labels[0:8, 0:8] = 1
    labels[100:107, 100:109] = 2
    case = make_case(npz_pair(tmp_path / "c.npz", labels), CaseSettings(min_area_pixels=16))
    assert case is not None
    assert case.boxes.tolist() == [[0, 0, 7, 7]]
    volume = np.zeros((4, 20, 20), np.uint8)
    volume[:, 0:5, 0:5] = 1
    volume[0:3, 10:15, 10:16] = 2
    case = make_case(npz_pair(tmp_path / "v.npz", volume), CaseSettings(min_volume_voxels=100))
    assert case is not None
    assert case.boxes.tolist() == [[0, 0, 0, 4, 4, 3]]


def test_a_volume_is_cropped_to_the_slices_that_show_most(tmp_path: Path) -> None:
    labels = np.zeros((20, 16, 16), np.uint8)
    labels[2:4, 0:4, 0:4] = 1
    labels[11:15, 2:12, 2:12] = 2
    labels[14, 13:15, 13:15] = 3
    pair = npz_pair(tmp_path / "c.npz", labels)
    case = make_case(pair, CaseSettings(min_volume_voxels=1, max_slices=3))
    assert case is not None
    with np.load(pair.image) as archive:
        assert (case.image == archive["imgs"][12:15]).all()
    assert case.boxes.tolist() == [[2, 2, 0, 11, 11, 2], [13, 13, 2, 14, 14, 2]]
    assert (case.labels == np.where(labels[12:15] == 3, 2, labels[12:15] == 2)).all()


def test_the_largest_objects_are_kept_in_the_order_of_their_labels(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.uint8)
    for value, side in ((1, 9), (2, 3), (3, 12), (4, 6)):
        labels[15 * value - 15 : 15 * value - 15 + side, 0:side] = value
    case = make_case(npz_pair(tmp_path / "c.npz", labels), CaseSettings(min_area_pixels=1, max_boxes=2))
    assert case is not None
    assert case.boxes.tolist() == [[0, 0, 8, 8], [0, 30, 11, 41]]
    assert np.unique(case.labels).tolist() == [0, 1, 2]


def test_sloppy_boxes_keep_the_truth_and_follow_from_the_seed(tmp_path: Path) -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[50:150, 50:150] = 1
    pair = npz_pair(tmp_path / "c.npz", labels)
    exact, one, again, two = (
        make_case(pair, CaseSettings(jitter=jitter, seed=seed))
        for jitter, seed in ((0.0, 1), (0.1, 1), (0.1, 1), (0.1, 2))
    )
    assert exact is not None
    assert one is not None
    assert again is not None
    assert two is not None
    assert (one.labels == exact.labels).all()
    assert one.boxes.tolist() == again.boxes.tolist()
    assert one.boxes.tolist() != two.boxes.tolist()
    assert 0 < np.abs(one.boxes - exact.boxes).max() <= 10


def test_the_same_input_gives_the_same_bytes_in_parallel_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = tuple(npz_pair(tmp_path / f"{i}.npz", rng.integers(0, 3, (40, 40))) for i in range(5))
    prepare_cases(Found(pairs), tmp_path / "one", CaseSettings(jitter=0.1))
    prepare_cases(Found(pairs), tmp_path / "two", CaseSettings(jitter=0.1), workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 12


def test_names_that_would_collide_are_reported(tmp_path: Path) -> None:
    labels = np.ones((40, 40), np.uint8)
    pairs = (npz_pair(tmp_path / "a b.npz", labels), npz_pair(tmp_path / "A_B.npz", labels))
    reported: list[str] = []
    summary = prepare_cases(
        Found(pairs),
        tmp_path / "out",
        CaseSettings(),
        on_failure=lambda failure: reported.append(failure.error),
    )
    assert summary.made == 1
    assert len(reported) == 1
    assert "A_B.npz: would share its name with CT/src/a b" in reported[0]


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    pair = npz_pair(tmp_path / "c.npz", np.ones((40, 40), np.uint8))
    evil = Pair("CT", "src/../../..", "../../evil", "val", "class", pair.image, None)
    prepare_cases(Found((evil,)), tmp_path / "out", CaseSettings())
    assert [path.name for path in (tmp_path / "out/cases").iterdir()] == [
        "2DBox_CT_src_.._.._.._.._.._evil.npz"
    ]


def two_pairs(folder: Path) -> tuple[Pair, Pair]:
    labels = np.ones((40, 40), np.uint8)
    return npz_pair(folder / "a.npz", labels), npz_pair(folder / "b.npz", labels)


def test_cases_of_other_input_are_not_mixed_in(tmp_path: Path) -> None:
    first, second = two_pairs(tmp_path)
    prepare_cases(Found((first,)), tmp_path / "out", CaseSettings())
    with pytest.raises(UsageError, match="of input that is not given now"):
        prepare_cases(Found((second,)), tmp_path / "out", CaseSettings())
    prepare_cases(Found((second,)), tmp_path / "out", CaseSettings(), overwrite=True)
    for folder in ("cases", "gts"):
        assert [path.stem for path in (tmp_path / "out" / folder).iterdir()] == [case_name(second, False)]


def test_the_case_of_a_pair_that_can_no_longer_be_read_is_removed(tmp_path: Path) -> None:
    first, second = two_pairs(tmp_path)
    prepare_cases(Found((first, second)), tmp_path / "out", CaseSettings())
    second.image.write_bytes(b"damaged")
    summary = prepare_cases(Found((first, second)), tmp_path / "out", CaseSettings())
    assert len(summary.failed) == 1
    for folder in ("cases", "gts"):
        assert [path.stem for path in (tmp_path / "out" / folder).iterdir()] == [case_name(first, False)]


@pytest.mark.parametrize(
    "wrong", [{"jitter": -0.1}, {"jitter": 1.0}, {"max_slices": 0}, {"max_boxes": 0}, {"min_area_pixels": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", " ")):
        CaseSettings(**wrong)

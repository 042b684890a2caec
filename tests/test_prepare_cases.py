"""Test cases in the challenge's layout: what the runtime reads and the evaluation compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.case import Case
from litemed.runtime.errors import UsageError
from litemed.runtime.readers import read_case
from litemed.train.prepare.objects import boxes_of, number
from litemed.train.prepare.pipeline import prepare
from litemed.train.prepare.slices import Settings, case_name, write_case
from litemed.train.prepare.sources import Found, Pair


def npz_pair(path: Path, labels: np.ndarray) -> Pair:
    image = np.random.default_rng(0).integers(0, 256, labels.shape).astype(np.uint8)
    np.savez(path, imgs=image, gts=labels, spacing=[2.5, 0.7, 0.8])
    return Pair("CT", "src", path.stem, "val", path, None)


def make_case(path: Path, labels: np.ndarray, **chosen: float) -> tuple[Case, np.ndarray]:
    """The test case that is made of labels, and its ground truth."""
    pair = npz_pair(path, labels)
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
def test_the_runtime_reads_what_is_written_and_box_i_is_label_i(
    tmp_path: Path, labels: np.ndarray, volume: bool
) -> None:
    labels = labels if volume else labels[0]
    found = Found((npz_pair(tmp_path / "c.npz", labels),))
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


def test_small_objects_are_left_out_by_area_at_256_and_by_volume_and_the_largest_kept(tmp_path: Path) -> None:
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


def test_a_volume_is_cropped_to_the_slices_that_show_most(tmp_path: Path) -> None:
    labels = np.zeros((20, 16, 16), np.uint8)
    labels[2:4, 0:4, 0:4] = 1
    labels[11:15, 2:12, 2:12] = 2
    labels[14, 13:15, 13:15] = 3
    case, truth = make_case(tmp_path / "c.npz", labels, min_volume_voxels=1, max_slices=3)
    with np.load(tmp_path / "c.npz") as archive:
        assert (case.image == archive["imgs"][12:15]).all()
    assert case.boxes.xyxy.tolist() == [[2, 2, 11, 11], [13, 13, 14, 14]]
    assert case.boxes.z is not None
    assert case.boxes.z.tolist() == [[0, 2], [2, 2]]
    assert (truth == np.where(labels[12:15] == 3, 2, labels[12:15] == 2)).all()


def test_names_that_would_collide_or_leave_the_folder_do_not(tmp_path: Path) -> None:
    labels = np.ones((40, 40), np.uint8)
    first, second = (npz_pair(tmp_path / name, labels) for name in ("a b.npz", "A_B.npz"))
    with pytest.raises(UsageError, match=r"CT/src/a b: another pair would share"):
        prepare(Found((first, second)), tmp_path / "out", Settings(cases=True))
    evil = Pair("CT", "src/../../..", "../../evil", "val", first.image, None)
    prepare(Found((evil,)), tmp_path / "out", Settings(cases=True))
    names = [path.name for path in (tmp_path / "out/cases").iterdir()]
    assert names == ["2DBox_CT_src_.._.._.._.._.._evil.npz"]


def test_no_case_is_left_of_other_input_or_of_a_pair_that_can_no_longer_be_read(tmp_path: Path) -> None:
    first, second = (npz_pair(tmp_path / name, np.ones((40, 40), np.uint8)) for name in ("a.npz", "b.npz"))
    prepare(Found((first, second)), tmp_path / "out", Settings(cases=True))
    with pytest.raises(UsageError, match="was not made of the same"):
        prepare(Found((second,)), tmp_path / "out", Settings(cases=True))
    second.image.write_bytes(b"damaged")
    assert len(prepare(Found((first, second)), tmp_path / "out", Settings(cases=True)).failed) == 1
    for folder in ("cases", "gts"):
        assert [path.stem for path in (tmp_path / "out" / folder).iterdir()] == [case_name(first, False)]

"""From labels to objects and boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.boxes import Boxes
from litemed.train.prepare.cases import jitter_boxes
from litemed.train.prepare.objects import Objects, boxes_of, find_objects, keep, number, split_components

LABELS = st.one_of(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=12), elements=st.integers(0, 5)),
    hnp.arrays(np.int32, (6, 9), elements=st.sampled_from([0, 1, 300, 2**31 - 1])),
)


def ascending_sets(labels: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(labels == value)) for value in np.unique(labels) if value != 0]


@given(LABELS)
def test_numbering_keeps_the_objects_and_their_order(labels: np.ndarray) -> None:
    objects = number(labels)
    assert ascending_sets(objects.labels) == ascending_sets(labels)
    assert set(np.unique(objects.labels)) <= set(range(len(objects) + 1))
    assert objects.sizes.tolist() == [len(part) for part in ascending_sets(labels)]


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32)]
)
def test_the_smallest_dtype_that_holds_the_labels(count: int, dtype: type) -> None:
    objects = number(np.arange(count + 1).reshape(1, -1))
    assert objects.labels.dtype == dtype
    assert objects.labels.max() == count == len(objects)


@given(LABELS, st.integers(1, 20))
def test_keep_leaves_out_small_objects_whole_and_no_others(labels: np.ndarray, minimum: int) -> None:
    objects = number(labels)
    kept = keep(objects, objects.sizes >= minimum)
    expected = [part for part in ascending_sets(labels) if len(part) >= minimum]
    assert ascending_sets(kept.labels) == expected
    assert kept.sizes.tolist() == [len(part) for part in expected]


def test_components_touch_by_corners_and_never_across_values() -> None:
    labels = np.array([[1, 0, 1, 2], [0, 1, 0, 2], [0, 0, 0, 0], [1, 0, 2, 0]])
    parts = split_components(labels)
    assert parts.tolist() == [[1, 0, 1, 3], [0, 1, 0, 3], [0, 0, 0, 0], [2, 0, 4, 0]]


def test_components_join_through_slices() -> None:
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 3, 3] = 1
    assert len(find_objects(labels, "class", components=True)) == 2


@pytest.mark.parametrize(("kind", "expected"), [("binary", 2), ("class", 2), ("instance", 1)])
def test_instances_are_never_split(kind: str, expected: int) -> None:
    labels = np.array([[5, 0, 5]])
    assert len(find_objects(labels, kind, components=True)) == expected
    assert len(find_objects(labels, kind, components=False)) == 1


@given(LABELS)
def test_boxes_are_tight_have_an_area_and_are_what_the_runtime_takes(labels: np.ndarray) -> None:
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
            assert parsed.z is not None
            assert parsed.z[label - 1].tolist() == [z[0].min(), z[0].max()]


@given(
    hnp.arrays(np.uint8, (4, 10, 14), elements=st.integers(0, 4)),
    st.booleans(),
    st.floats(0, 0.99),
    st.text(max_size=5),
)
def test_jittered_boxes_stay_valid_and_near(
    labels: np.ndarray, volume: bool, fraction: float, seed: str
) -> None:
    objects = number(labels if volume else labels[0])
    if not len(objects):
        return
    boxes = boxes_of(objects)
    moved = jitter_boxes(boxes, objects.labels.shape, fraction, seed)
    assert Boxes.parse(moved, objects.labels.shape).clipped == ()
    assert (moved == jitter_boxes(boxes, objects.labels.shape, fraction, seed)).all()
    half = boxes.shape[1] // 2
    sides = (boxes[:, half:] - boxes[:, :half])[:, :2]
    shift = np.abs(moved - boxes)
    assert (shift[:, :2] <= np.maximum(fraction * sides, 1)).all()
    assert (shift[:, half : half + 2] <= np.maximum(fraction * sides, 1)).all()
    if volume:
        assert (moved[:, [2, 5]] == boxes[:, [2, 5]]).all()


def test_jitter_moves_boxes_and_differs_by_seed() -> None:
    boxes = np.array([[100, 100, 300, 300]] * 20)
    one, two = (jitter_boxes(boxes, (400, 400), 0.1, seed) for seed in "ab")
    assert (one != boxes).mean() > 0.8
    assert (one != two).mean() > 0.8
    assert (jitter_boxes(boxes, (400, 400), 0, "a") == boxes).all()


def test_no_objects_at_all() -> None:
    objects = number(np.zeros((3, 3), np.uint8))
    assert len(objects) == 0
    assert boxes_of(objects).shape == (0, 4)
    assert isinstance(keep(objects, np.zeros(0, np.bool_)), Objects)

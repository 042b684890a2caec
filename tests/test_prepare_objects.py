"""From labels to objects and boxes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.boxes import Boxes
from litemed.train.prepare.objects import boxes_of, keep, number
from litemed.train.prepare.slices import jitter_boxes

LABELS = st.one_of(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(0, 5)),
    hnp.arrays(np.int32, (6, 9), elements=st.sampled_from([0, 1, 300, 2**31 - 1])),
    hnp.arrays(np.int32, (2, 2), elements=st.sampled_from([7, 300, 2**31 - 1])),
)


def ascending_sets(labels: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(labels == value)) for value in np.unique(labels) if value != 0]


@given(LABELS, st.integers(1, 20))
def test_objects_keep_their_order_and_small_ones_are_left_out_whole(labels: np.ndarray, minimum: int) -> None:
    objects = number(labels)
    kept = keep(objects, objects.sizes >= minimum)
    expected = [part for part in ascending_sets(labels) if len(part) >= minimum]
    assert ascending_sets(kept.labels) == expected
    assert set(np.unique(kept.labels)) <= set(range(len(expected) + 1))
    assert kept.sizes.tolist() == [len(part) for part in expected]


def test_the_smallest_dtype_that_holds_the_labels() -> None:
    for count, dtype in ((0, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32)):
        objects = number(np.arange(count + 1).reshape(1, -1))
        assert objects.labels.dtype == dtype
        assert objects.labels.max() == count == len(objects)
    assert boxes_of(number(np.zeros((3, 3), np.uint8))).shape == (0, 4)


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


@settings(max_examples=50)
@given(
    hnp.arrays(np.uint8, (2, 8, 10), elements=st.integers(0, 4)),
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
    shift, half = np.abs(moved - boxes), boxes.shape[1] // 2
    sides = boxes[:, half : half + 2] - boxes[:, :2]
    assert (shift[:, [0, 1, half, half + 1]] <= np.maximum(fraction * np.tile(sides, 2), 1)).all()
    assert not volume or not shift[:, [2, 5]].any()
    many = np.array([[100, 100, 300, 300]] * 20)
    one, two = (jitter_boxes(many, (400, 400), 0.1, text) for text in (seed, f"{seed}+"))
    assert (one != many).mean() > 0.8 < (one != two).mean()

"""From labels to objects and boxes, and what scanner units become in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError, UsageError
from litemed.train.prepare.intensity import WINDOWS, Window, parse_window, to_uint8
from litemed.train.prepare.objects import boxes_of, keep, number
from litemed.train.prepare.slices import jitter_boxes

ABDOMEN = WINDOWS["abdomen"]
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


# Intensities


@pytest.mark.parametrize("name", ["abdomen", "lung", "bone", "brain", "mediastinum", "soft tissue"])
def test_a_window_maps_its_edges_to_0_and_255_and_its_level_to_the_middle(name: str) -> None:
    window = parse_window(name)
    low, high = window.level - window.width / 2, window.level + window.width / 2
    hu = np.array([-5000, low, window.level, high, 5000], np.float32)
    assert to_uint8(hu, "CT", window).tolist() == [0, 0, 128, 255, 255]


def test_a_window_may_be_given_by_level_and_width() -> None:
    assert parse_window("40,400") == Window(40, 400)
    for text in ("liver", "40", "40,0", "40,-1", "nan,400", "40,inf", "1,2,3"):
        with pytest.raises(UsageError, match=r"window '.*'"):
            parse_window(text)


@given(hnp.arrays(np.int16, st.integers(1, 200)))
def test_ct_never_falls_where_hounsfield_units_rise(hu: np.ndarray) -> None:
    hu = np.sort(hu)
    assert (np.diff(to_uint8(hu, "CT", ABDOMEN).astype(int)) >= 0).all()


@pytest.mark.parametrize("modality", ["MR", "XRay"])
def test_percentiles_of_the_non_zero_values_become_black_and_white(modality: str) -> None:
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


def test_eight_bits_stay_and_nan_infinity_and_constant_images_are_background() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = np.arange(1, 101, dtype=np.float32)
    broken = np.concatenate([image, [np.nan, np.inf, -np.inf]]).astype(np.float32)
    for modality in ("MR", "CT"):
        assert (to_uint8(colour, modality, ABDOMEN) == colour).all()
        result = to_uint8(broken, modality, ABDOMEN)
        assert (result[:100] == to_uint8(image, modality, ABDOMEN)).all()
        assert (result[100:] == 0).all()
    for value in (0, 7, -3.5, np.nan):
        assert (to_uint8(np.full((4, 4), value, np.float32), "MR", ABDOMEN) == 0).all()


def test_ct_in_unsigned_integers_is_refused() -> None:
    with pytest.raises(InputError, match=r"scan\.png: CT in uint16 is not in Hounsfield units"):
        to_uint8(np.zeros((4, 4), np.uint16), "CT", ABDOMEN, "scan.png")

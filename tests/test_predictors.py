"""What a box alone gives: the trivial predictors on shapes whose answer is known."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.predictors import Trivial, box_region, predict
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label


def make_case(image: NDArray[np.uint8], boxes: Sequence[Sequence[int]]) -> Case:
    return Case("case", np.ascontiguousarray(image), Boxes.parse(np.array(boxes), image.shape))


def dsc(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(dice_by_label(first, second, 1)[0])


def tight_box(mask: NDArray[np.bool_]) -> list[int]:
    """Return the challenge's box of a mask: first and last pixel, both inclusive, x first."""
    places = [
        np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis}))) for axis in range(mask.ndim)
    ]
    return [int(place[0]) for place in places[::-1]] + [int(place[-1]) for place in places[::-1]]


def disc(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]
) -> NDArray[np.bool_]:
    rows, columns = np.indices(shape)
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


def textured(
    mask: NDArray[np.bool_], inside: int, outside: int, noise: int, seed: int = 0
) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    image = np.where(mask, inside, outside) + random.integers(-noise, noise + 1, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_filled_box_covers_its_first_and_last_pixel() -> None:
    mask = np.zeros((40, 50), np.bool_)
    mask[5:20, 7:31] = True
    case = make_case(textured(mask, 200, 50, 10), [tight_box(mask)])
    np.testing.assert_array_equal(predict(case, Trivial.BOX), mask)


def test_filled_box_of_a_volume_covers_its_slices_and_no_other() -> None:
    mask = np.zeros((9, 40, 50), np.bool_)
    mask[2:7, 5:20, 7:31] = True
    case = make_case(textured(mask, 200, 50, 10), [tight_box(mask)])
    np.testing.assert_array_equal(predict(case, Trivial.BOX), mask)


def test_box_that_reaches_the_far_side_stays_inside() -> None:
    case = make_case(np.zeros((10, 12), np.uint8), [[8, 6, 12, 10]])
    labels = predict(case, Trivial.BOX)
    assert box_region(case.boxes, 0, case.shape) == (slice(6, 10), slice(8, 12))
    assert labels[6:, 8:].all()
    assert np.count_nonzero(labels) == 16


def test_ellipse_is_the_inscribed_one() -> None:
    mask = disc((120, 160), (60, 80), (40.5, 60.5))
    labels = predict(make_case(textured(mask, 200, 50, 10), [tight_box(mask)]), Trivial.ELLIPSE)
    assert dsc(labels == 1, mask) > 0.99
    assert np.count_nonzero(labels) / (81 * 121) == pytest.approx(math.pi / 4, abs=0.01)


def test_ellipse_of_a_volume_is_the_inscribed_ellipsoid() -> None:
    case = make_case(np.zeros((40, 60, 50), np.uint8), [[5, 10, 4, 44, 49, 33]])
    labels = predict(case, Trivial.ELLIPSE)
    assert np.count_nonzero(labels) / (30 * 40 * 40) == pytest.approx(math.pi / 6, abs=0.01)
    assert np.count_nonzero(labels[4]) < np.count_nonzero(labels[18])


@pytest.mark.parametrize(("inside", "outside"), [(200, 60), (60, 200)])
@pytest.mark.parametrize("colour", [False, True])
def test_otsu_finds_bright_and_dark_objects(inside: int, outside: int, colour: bool) -> None:
    mask = disc((90, 90), (45, 45), (30, 20))
    image = textured(mask, inside, outside, 20)
    image = np.stack([image] * 3, axis=2) if colour else image
    labels = predict(make_case(image, [tight_box(mask)]), Trivial.OTSU)
    assert dsc(labels == 1, mask) > 0.99


def test_otsu_tells_an_object_by_what_surrounds_it() -> None:
    # A dark ring: most of its box, the middle too, is as bright as the surroundings.
    mask = disc((100, 100), (50, 50), (30, 30)) & ~disc((100, 100), (50, 50), (24, 24))
    labels = predict(make_case(textured(mask, 60, 200, 20), [tight_box(mask)]), Trivial.OTSU)
    assert dsc(labels == 1, mask) > 0.99


def test_otsu_of_a_volume() -> None:
    plane = disc((60, 70), (30, 35), (20, 25))
    mask = np.stack([np.zeros_like(plane), plane, plane, np.zeros_like(plane)])
    labels = predict(make_case(textured(mask, 180, 70, 15), [tight_box(mask)]), Trivial.OTSU)
    assert dsc(labels == 1, mask) > 0.99


@pytest.mark.parametrize("size", [1, 5])
def test_grabcut_finds_an_object_that_is_no_ellipse(size: int) -> None:
    # Size 5 makes a scene far larger than what GrabCut is given.
    mask = np.zeros((120 * size, 160 * size), np.bool_)
    mask[30 * size : 90 * size, 40 * size : 60 * size] = mask[
        70 * size : 90 * size, 40 * size : 120 * size
    ] = True
    case = make_case(textured(mask, 190, 70, 25), [tight_box(mask)])
    found = dsc(predict(case, Trivial.GRABCUT) == 1, mask)
    assert found > 0.95
    assert found > dsc(predict(case, Trivial.ELLIPSE) == 1, mask) + 0.2


def test_grabcut_of_a_volume_goes_slice_by_slice() -> None:
    slices = [disc((64, 64), (32, 32), (radius, radius)) for radius in (10, 20, 12)]
    mask = np.stack(slices)
    labels = predict(make_case(textured(mask, 200, 60, 15), [tight_box(mask)]), Trivial.GRABCUT)
    for found, expected in zip(labels, slices, strict=True):
        assert dsc(found == 1, expected) > 0.95


def test_grabcut_is_repeatable() -> None:
    random = np.random.default_rng(3)
    image = random.integers(0, 255, (80, 90, 3)).astype(np.uint8)
    case = make_case(image, [[10, 12, 70, 60]])
    first = predict(case, Trivial.GRABCUT)
    cv2.setRNGSeed(987)
    np.testing.assert_array_equal(first, predict(case, Trivial.GRABCUT))


@pytest.mark.parametrize("predictor", list(Trivial))
@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((30, 30), [0, 0, 29, 29]),
        ((30, 30), [0, 0, 30, 30]),
        ((30, 30), [4, 4, 5, 5]),
        ((1, 2), [0, 0, 1, 1]),
        ((600, 3), [0, 10, 1, 590]),
        ((3, 30, 30), [5, 5, 0, 20, 20, 2]),
    ],
)
def test_constant_images_and_extreme_boxes_give_something(
    predictor: Trivial, shape: tuple[int, ...], box: list[int]
) -> None:
    case = make_case(np.full(shape, 90, np.uint8), [box])
    labels = predict(case, predictor)
    assert labels.shape == shape
    assert labels.any()
    outside = np.ones(shape, np.bool_)
    outside[box_region(case.boxes, 0, case.shape)] = False
    assert not labels[outside].any()


def test_the_smaller_box_is_on_top() -> None:
    for boxes in ([[2, 2, 30, 30], [10, 10, 15, 15]], [[10, 10, 15, 15], [2, 2, 30, 30]]):
        labels = predict(make_case(np.zeros((40, 40), np.uint8), boxes), Trivial.BOX)
        small = boxes.index([10, 10, 15, 15]) + 1
        assert (labels[10:16, 10:16] == small).all()
        assert labels[3, 3] == 3 - small


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_smallest_dtype_that_holds_the_labels(count: int, dtype: type[np.unsignedinteger]) -> None:
    boxes = [[2 * (i % 20), 2 * (i // 20), 2 * (i % 20) + 1, 2 * (i // 20) + 1] for i in range(count)]
    labels = predict(make_case(np.zeros((40, 40), np.uint8), boxes), Trivial.BOX)
    assert labels.dtype == dtype
    assert labels.max() == count


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_each_object_stays_inside_its_box(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    corners = st.tuples(
        st.integers(0, width - 3), st.integers(0, height - 3), st.integers(1, width), st.integers(1, height)
    )
    boxes = [
        [x, y, min(x + w, width), min(y + h, height)]
        for x, y, w, h in data.draw(st.lists(corners, min_size=1, max_size=3))
    ]
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    case = make_case(random.integers(0, 255, (height, width, 3)).astype(np.uint8), boxes)
    for predictor in Trivial:
        labels = predict(case, predictor)
        for label in range(1, len(boxes) + 1):
            rows, columns = np.nonzero(labels == label)
            x0, y0, x1, y1 = boxes[label - 1]
            assert ((rows >= y0) & (rows <= y1) & (columns >= x0) & (columns <= x1)).all()


def test_ellipse_on_real_objects_is_the_rival_to_beat(shared: Callable[[str], pathlib.Path]) -> None:
    """On validation images the ellipse reaches what was measured elsewhere."""
    folder = shared("data/open")
    with (folder / "index.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "val" and row["labels"] == "binary"]
    for modality, expected in (("Dermoscopy", 0.92), ("Fundus", 0.96), ("Endoscopy", 0.88)):
        scores: list[float] = []
        for row in rows:
            if row["modality"] == modality:
                labels = cv2.imread(str(folder / row["label"]), cv2.IMREAD_UNCHANGED)
                mask = np.asarray(labels, np.int64) > 0
                case = make_case(np.zeros(mask.shape, np.uint8), [tight_box(mask)])
                scores.append(dsc(predict(case, Trivial.ELLIPSE) == 1, mask))
        assert np.mean(scores) == pytest.approx(expected, abs=0.06), modality

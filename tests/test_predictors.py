"""What a box alone gives: the trivial predictors on shapes whose answer is known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.predictors import Trivial, predict
from litemed.benchmarks.phantoms import boxes_of
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label

Mask = NDArray[np.bool_]


def make_case(image: NDArray[np.uint8], boxes: npt.ArrayLike) -> Case:
    return Case("case", np.ascontiguousarray(image), Boxes.parse(np.array(boxes), image.shape))


def dsc(first: Mask, second: Mask) -> float:
    return float(dice_by_label(first, second, 1)[0])


def disc(shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]) -> Mask:
    rows, columns = np.indices(shape)
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


def textured(mask: Mask, inside: int, outside: int, noise: int) -> NDArray[np.uint8]:
    grains = np.random.default_rng(0).integers(-noise, noise + 1, mask.shape)
    return np.clip(np.where(mask, inside, outside) + grains, 0, 255).astype(np.uint8)


def test_filled_box_covers_its_first_and_last_pixel_and_slice() -> None:
    for mask in (np.zeros((40, 50), np.bool_), np.zeros((9, 40, 50), np.bool_)):
        mask[..., 5:20, 7:31] = True
        if mask.ndim == 3:
            mask[[0, 1, 7, 8]] = False
        case = make_case(np.zeros(mask.shape, np.uint8), boxes_of(mask, 1))
        np.testing.assert_array_equal(predict(case, Trivial.BOX), mask)


def test_ellipse_is_the_inscribed_one_and_an_ellipsoid_in_a_volume() -> None:
    mask = disc((120, 160), (60, 80), (40.5, 60.5))
    labels = predict(make_case(np.zeros(mask.shape, np.uint8), boxes_of(mask, 1)), Trivial.ELLIPSE)
    assert dsc(labels == 1, mask) > 0.99
    assert np.count_nonzero(labels) / (81 * 121) == pytest.approx(math.pi / 4, abs=0.01)
    volume = make_case(np.zeros((40, 60, 50), np.uint8), [[5, 10, 4, 44, 49, 33]])
    labels = predict(volume, Trivial.ELLIPSE)
    assert np.count_nonzero(labels) / (30 * 40 * 40) == pytest.approx(math.pi / 6, abs=0.01)
    assert np.count_nonzero(labels[4]) < np.count_nonzero(labels[18])


OVAL, RING = disc((90, 90), (45, 45), (30, 20)), disc((90, 90), (45, 45), (30, 30))
RING &= ~disc((90, 90), (45, 45), (24, 24))
PLANE = disc((60, 70), (30, 35), (20, 25))


@pytest.mark.parametrize(
    ("mask", "inside", "outside", "colour"),
    [
        (OVAL, 200, 60, False),
        (OVAL, 60, 200, True),
        # Most of the box, the middle too, is as bright as the surroundings.
        (RING, 60, 200, False),
        (np.stack([PLANE & False, PLANE, PLANE, PLANE & False]), 180, 70, False),
    ],
)
def test_otsu_tells_an_object_by_what_surrounds_it(
    mask: Mask, inside: int, outside: int, colour: bool
) -> None:
    image = textured(mask, inside, outside, 20)
    image = np.stack([image] * 3, axis=2) if colour else image
    labels = predict(make_case(image, boxes_of(mask, 1)), Trivial.OTSU)
    assert dsc(labels == 1, mask) > 0.99


# Size 5 makes a scene far larger than what GrabCut is given.
@pytest.mark.parametrize("size", [1, 5])
def test_grabcut_finds_an_object_that_is_no_ellipse(size: int) -> None:
    mask = np.zeros((120, 160), np.bool_)
    mask[30:90, 40:60] = mask[70:90, 40:120] = True
    mask = mask.repeat(size, axis=0).repeat(size, axis=1)
    case = make_case(textured(mask, 190, 70, 25), boxes_of(mask, 1))
    found = dsc(predict(case, Trivial.GRABCUT) == 1, mask)
    assert found > 0.95
    assert found > dsc(predict(case, Trivial.ELLIPSE) == 1, mask) + 0.2


def test_grabcut_goes_slice_by_slice_and_is_repeatable() -> None:
    mask = np.stack([disc((64, 64), (32, 32), (radius, radius)) for radius in (10, 20, 12)])
    case = make_case(textured(mask, 200, 60, 15), boxes_of(mask, 1))
    first = predict(case, Trivial.GRABCUT)
    assert all(dsc(found == 1, expected) > 0.95 for found, expected in zip(first, mask, strict=True))
    cv2.setRNGSeed(987)
    np.testing.assert_array_equal(first, predict(case, Trivial.GRABCUT))


@pytest.mark.parametrize("predictor", list(Trivial))
@pytest.mark.parametrize(
    ("shape", "box"),
    [
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
    labels = predict(make_case(np.full(shape, 90, np.uint8), [box]), predictor)
    assert labels.shape == shape
    assert labels.any()


def test_the_smaller_box_is_on_top() -> None:
    for boxes in ([[2, 2, 30, 30], [10, 10, 15, 15]], [[10, 10, 15, 15], [2, 2, 30, 30]]):
        labels = predict(make_case(np.zeros((40, 40), np.uint8), boxes), Trivial.BOX)
        small = boxes.index([10, 10, 15, 15]) + 1
        assert (labels[10:16, 10:16] == small).all()
        assert labels[3, 3] == 3 - small


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_each_object_stays_inside_its_box(drawn: list[tuple[int, ...]], seed: int) -> None:
    boxes = [[x, y, min(x + w, 25), min(y + h, 33)] for x, y, w, h in drawn]
    case = make_case(np.random.default_rng(seed).integers(0, 255, (33, 25, 3)).astype(np.uint8), boxes)
    for predictor in Trivial:
        labels = predict(case, predictor)
        for label, (x0, y0, x1, y1) in enumerate(boxes, start=1):
            labels[y0 : y1 + 1, x0 : x1 + 1][labels[y0 : y1 + 1, x0 : x1 + 1] == label] = 0
        assert not labels.any()

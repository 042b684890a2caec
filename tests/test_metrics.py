"""DSC and NSD: published values and the challenge's own; the trivial predictors on shapes that are known."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.metrics import ClassScore, Mask, Spacing, nsd, score_classes
from litemed.benchmarks.evaluate.predictors import Trivial, predict
from litemed.benchmarks.phantoms import boxes_of
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label

# What the published surface-distance 0.1 gives for noise and the same noise with a part emptied, in which all
# 256 neighbourhoods occur: spacing, tolerance, NSD.
PUBLISHED = (
    ((1.0, 1.0, 1.0), 1.0, 0.8745650738394678),
    ((0.7, 1.3, 3.1), 0.8, 0.8561424005310545),
    ((3.0, 0.5, 2.0), 1.1, 0.829253549710747),
    ((2.5, 0.8, 0.8), 2.0, 0.8666298033265705),
    ((0.4, 2.0, 1.0), 0.5, 0.8551377624825396),
)
# Mean DSC and NSD that the challenge's script, run on the published surface-distance 0.1 (numpy's retired
# names put back), gives for golden label maps: case, the prediction beside plain_argmax, DSC, NSD.
CHALLENGE_SCORES = (
    ("2DBox_Golden_five", "plain_sequential", 0.1384310178928698, 0.0),
    ("2DBox_Golden_upscaled", "plain_sequential", 0.32529291676814776, 0.750821747157307),
    ("3DBox_Golden_three", "plain_sequential", 0.5151453367249731, 0.7770775313114697),
    ("3DBox_Golden_three", "loralib_argmax", 0.9006483225630842, 0.9994456510555053),
)
Labels = NDArray[np.uint8]
SPACING = (2.0, 0.7, 1.1)


def challenge_scores(truth: Labels, prediction: Labels, spacing: Spacing | None) -> tuple[float, float]:
    """Return DSC and NSD of a case as the challenge's script has them: means over labels 1 to the top."""
    classes = [(truth == label, prediction == label) for label in range(1, int(truth.max()) + 1)]
    dice = np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in classes])
    if dice <= 0.2:
        return float(dice), 0.0
    if spacing is None:
        classes = [(np.expand_dims(a, -1), np.expand_dims(b, -1)) for a, b in classes]
    return float(dice), float(np.mean([nsd(a, b, spacing or (1.0, 1.0, 1.0), 2.0) for a, b in classes]))


def means(scores: Sequence[ClassScore]) -> tuple[float, float]:
    return float(np.mean([s.dsc for s in scores])), float(np.mean([s.nsd for s in scores]))


def two_objects(shape: tuple[int, ...]) -> Labels:
    labels = np.zeros(shape, np.uint8)
    labels[..., 2:8, 2:9] = 1
    labels[..., 11:16, 4:20] = 2
    return labels


# Surface distance


@pytest.mark.parametrize("seed", range(len(PUBLISHED)))
def test_surfaces_are_the_published_ones(seed):
    spacing, tolerance, expected = PUBLISHED[seed]
    noise = np.random.default_rng(seed).random((12, 13, 14)) < 0.5
    emptied = noise.copy()
    emptied[7:, :, 3:] = False
    assert nsd(noise, emptied, spacing, tolerance) == pytest.approx(expected, abs=1e-12)


def test_two_voxels_two_millimetres_apart_and_empty_masks():
    # Each has eight surface elements; four of them lie 1 mm from the other voxel's, four 2 mm.
    nothing, first, second = np.zeros((3, 9, 9, 12), np.bool_)
    first[5, 6, 7] = second[5, 6, 9] = True
    shares = [nsd(first, second, (3, 2, 1), tolerance) for tolerance in (0.9, 1, 1.9, 2)]
    assert shares == pytest.approx([0, 0.5, 0.5, 1])
    assert math.isnan(nsd(nothing, nothing, SPACING, 2.0))
    assert nsd(nothing, first, SPACING, 99.0) == nsd(first, nothing, SPACING, 99.0) == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_only_the_shapes_count(data):
    """Which mask is first, background round both, order and direction of axes, and the unit do not."""
    masks = data.draw(arrays(np.bool_, (2, 4, 5, 6)))
    padding = data.draw(arrays(np.int8, (3, 2), elements=st.integers(0, 3))).tolist()
    order, mirrored = data.draw(st.permutations(range(3))), data.draw(st.integers(0, 2))
    factor = data.draw(st.sampled_from([0.5, 2.0, 4.0]))
    expected = nsd(*masks, SPACING, 1.0)
    assert math.isnan(expected) or 0 <= expected <= 1 + 1e-12
    turned = [np.flip(np.pad(mask, padding), mirrored).transpose(order) for mask in masks[::-1]]
    first, second, third = (SPACING[axis] * factor for axis in order)
    assert nsd(*turned, (first, second, third), factor) == pytest.approx(expected, nan_ok=True)


# Dice


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_dice_is_twice_what_is_common_over_the_sum(data):
    shape = data.draw(st.sampled_from([(5, 6), (2, 3, 4)]))
    dtypes = st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, np.uint64])
    first, second = (
        data.draw(arrays(np.uint8, shape, elements=st.integers(0, 4))).astype(data.draw(dtypes))
        for _ in range(2)
    )
    count = data.draw(st.integers(1, 5))
    for label, dice in enumerate(dice_by_label(first, second, count), start=1):
        one, other = first == label, second == label
        total = one.sum() + other.sum()
        assert dice == 2 * (one & other).sum() / total if total else np.isnan(dice)


# Scores of a case

SHAPES = ((32, 40), (12, 20, 24))


def test_tolerance_is_in_millimetres_in_3d_and_pixels_in_2d():
    truth, prediction = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
    truth[4:16, 4:16, 4:14] = prediction[4:16, 4:16, 4:16] = 1
    assert score_classes(truth, prediction, (1.0, 1.0, 1.0))[0].nsd == 1
    assert score_classes(truth, prediction, (1.0, 1.0, 1.5))[0].nsd < 1
    assert score_classes(truth[8], prediction[8], (9.0, 9.0, 9.0))[0].nsd == 1


@pytest.mark.parametrize("column", [0, 100], ids=["found", "missed"])
def test_the_size_is_the_longest_side_across_the_slice_as_the_network_sees_it(column):
    truth = np.zeros((256, 200), np.uint8)
    truth[0:7, 0:3] = 1
    truth[20:24, 0:15] = 2
    truth[100:140, 0:9] = truth[145, 0:2] = 4  # in two parts
    prediction = np.roll(truth, column, axis=1)
    prediction[200:210, 150:199] = 3
    scores = score_classes(truth, prediction, None)
    assert [(s.label, s.size) for s in scores] == [(1, 7), (2, 15), (3, None), (4, 46)]
    assert [s.dsc for s in scores] == ([0, 0, 0, 0] if column else [1, 1, 0, 1])
    # Its length in z does not count, nor does that of the volume.
    volume = np.zeros((150, 64, 128), np.uint16)
    volume[5:85, 10:15, 20:23] = 300
    for prediction in (volume, np.roll(volume, column, axis=2)):
        assert [(s.label, s.size) for s in score_classes(volume, prediction, SPACING)] == [(300, 10)]


@pytest.mark.parametrize(("case", "prediction", "dice", "distance"), CHALLENGE_SCORES)
def test_scores_are_those_of_the_challenge(shared, case, prediction, dice, distance):
    maps = np.load(shared("golden/expected.npz"), allow_pickle=False)
    truth, predicted = maps[f"plain_argmax_{case}"], maps[f"{prediction}_{case}"]
    spacing = np.load(shared(f"golden/cases/{case}.npz"), allow_pickle=False).get("spacing")
    lengths = None if spacing is None else tuple(spacing.tolist())
    scores = means(score_classes(truth, predicted, lengths))
    assert scores == pytest.approx((dice, distance), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_cases_are_scored_by_the_challenge_s_rules(data):
    three = data.draw(st.booleans())
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3) if three else st.tuples(*[st.integers(1, 9)] * 2))
    lengths = st.sampled_from([0.4, 0.8, 1.0, 2.0, 2.5])
    spacing = data.draw(st.tuples(lengths, lengths, lengths)) if three else None
    truth = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 2)))
    changed = data.draw(arrays(np.bool_, shape, elements=st.integers(0, 9).map(lambda n: n == 0)))
    # Every label must be there, else the script divides by zero.
    truth.flat[0], truth.flat[-1] = (1, 2) if truth.size > 1 else (1, 1)
    prediction = np.where(changed, 2, truth).astype(np.uint8)
    assert means(score_classes(truth, prediction, spacing)) == pytest.approx(
        challenge_scores(truth, prediction, spacing), abs=1e-9
    )


# Trivial predictors


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


def test_filled_box_covers_its_first_and_last_pixel_and_slice():
    for mask in (np.zeros((40, 50), np.bool_), np.zeros((9, 40, 50), np.bool_)):
        mask[..., 5:20, 7:31] = True
        if mask.ndim == 3:
            mask[[0, 1, 7, 8]] = False
        case = make_case(np.zeros(mask.shape, np.uint8), boxes_of(mask, 1))
        np.testing.assert_array_equal(predict(case, Trivial.BOX), mask)


def test_ellipse_is_the_inscribed_one_and_an_ellipsoid_in_a_volume():
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
def test_otsu_tells_an_object_by_what_surrounds_it(mask, inside, outside, colour):
    image = textured(mask, inside, outside, 20)
    image = np.stack([image] * 3, axis=2) if colour else image
    labels = predict(make_case(image, boxes_of(mask, 1)), Trivial.OTSU)
    assert dsc(labels == 1, mask) > 0.99


# Size 5 makes a scene far larger than what GrabCut is given.
@pytest.mark.parametrize("size", [1, 5])
def test_grabcut_finds_an_object_that_is_no_ellipse(size):
    mask = np.zeros((120, 160), np.bool_)
    mask[30:90, 40:60] = mask[70:90, 40:120] = True
    mask = mask.repeat(size, axis=0).repeat(size, axis=1)
    case = make_case(textured(mask, 190, 70, 25), boxes_of(mask, 1))
    found = dsc(predict(case, Trivial.GRABCUT) == 1, mask)
    assert found > 0.95
    assert found > dsc(predict(case, Trivial.ELLIPSE) == 1, mask) + 0.2


def test_grabcut_goes_slice_by_slice_and_is_repeatable():
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
def test_constant_images_and_extreme_boxes_give_something(predictor, shape, box):
    labels = predict(make_case(np.full(shape, 90, np.uint8), [box]), predictor)
    assert labels.shape == shape
    assert labels.any()


@pytest.mark.parametrize("small", [1, 2])
def test_the_smaller_box_is_on_top(small):
    boxes = [[2, 2, 30, 30], [10, 10, 15, 15]][:: 1 if small == 2 else -1]
    labels = predict(make_case(np.zeros((40, 40), np.uint8), boxes), Trivial.BOX)
    assert (labels[10:16, 10:16] == small).all()
    assert labels[3, 3] == 3 - small


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_each_object_stays_inside_its_box(drawn, seed):
    boxes = [[x, y, min(x + w, 25), min(y + h, 33)] for x, y, w, h in drawn]
    case = make_case(np.random.default_rng(seed).integers(0, 255, (33, 25, 3)).astype(np.uint8), boxes)
    for predictor in Trivial:
        labels = predict(case, predictor)
        for label, (x0, y0, x1, y1) in enumerate(boxes, start=1):
            labels[y0 : y1 + 1, x0 : x1 + 1][labels[y0 : y1 + 1, x0 : x1 + 1] == label] = 0
        assert not labels.any()

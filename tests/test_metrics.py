"""DSC and NSD: published values, analytic shapes, and the numbers of the challenge's own script."""

from __future__ import annotations

import itertools
import math
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from litemed.benchmarks.evaluate.metrics import ClassScore, NsdRule, dsc, nsd, score_classes
from litemed.benchmarks.evaluate.surface import (
    SurfaceDistances,
    element_areas,
    surface_dice,
    surface_distances,
)
from litemed.runtime.errors import InputError

# Triangles of the published table for one neighbourhood of each kind, as normals in eighths of a cell face.
# Signs do not count: only lengths are used.
PUBLISHED_TRIANGLES: tuple[tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]], ...] = (
    (("111",), ((1, 1, 1),)),
    (("111", "110"), ((2, 2, 0), (2, 2, 0))),
    (("110", "101"), ((1, 1, 1), (1, 1, 1))),
    (("111", "110", "101"), ((4, 0, 0), (2, 2, 2), (1, 1, 1))),
    (("111", "110", "101", "100"), ((4, 0, 0), (4, 0, 0))),
    (("110", "101", "011"), ((1, 1, 1), (1, 1, 1), (1, 1, 1))),
    (("111", "110", "101", "011"), ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1))),
    (("011", "100"), ((1, 1, 1), (1, 1, 1))),
    (("111", "011", "100"), ((0, 2, 2), (0, 2, 2), (1, 1, 1))),
    (("111", "110", "100", "011"), ((0, 2, 2), (2, 0, 2), (1, 1, 1), (3, 3, 3))),
    (("110", "101", "100", "011"), ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1))),
    (("101", "100", "011", "010"), ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))),
    (("111", "100", "010", "001"), ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))),
)
# Mean DSC and NSD that the challenge's script, run on the published surface-distance 0.1 (numpy's retired
# names put back), gives for label maps of the golden material: ground truth, prediction, DSC, NSD.
CHALLENGE_SCORES = (
    ("plain_argmax_2DBox_Golden_five", "plain_sequential_2DBox_Golden_five", 0.1384310178928698, 0.0),
    (
        "plain_argmax_2DBox_Golden_five",
        "loralib_argmax_2DBox_Golden_five",
        0.7878058912238588,
        0.9791853468075077,
    ),
    ("plain_argmax_2DBox_Golden_one", "loralib_argmax_2DBox_Golden_one", 0.9646819141658983, 1.0),
    (
        "plain_argmax_2DBox_Golden_upscaled",
        "plain_sequential_2DBox_Golden_upscaled",
        0.32529291676814776,
        0.750821747157307,
    ),
    (
        "plain_argmax_3DBox_Golden_three",
        "plain_sequential_3DBox_Golden_three",
        0.5151453367249731,
        0.7770775313114697,
    ),
    (
        "plain_argmax_3DBox_Golden_three",
        "loralib_argmax_3DBox_Golden_three",
        0.9006483225630842,
        0.9994456510555053,
    ),
)
Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def published_areas(spacing: Sequence[float]) -> dict[frozenset[tuple[int, ...]], float]:
    """Return the published surface area of each set of inside corners, by turning the kinds about."""
    weights = [spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]]
    corners = frozenset(itertools.product((0, 1), repeat=3))
    areas = {frozenset(): 0.0, corners: 0.0}
    for names, normals in PUBLISHED_TRIANGLES:
        kind = [tuple(map(int, name)) for name in names]
        for order, flips in itertools.product(
            itertools.permutations(range(3)), itertools.product((0, 1), repeat=3)
        ):
            inside = frozenset(tuple(c[order[i]] ^ flips[i] for i in range(3)) for c in kind)
            turned = [[normal[order[i]] / 8 * weights[i] for i in range(3)] for normal in normals]
            areas[inside] = areas[corners - inside] = sum(math.hypot(*normal) for normal in turned)
    return areas


def naive_nsd(first: Mask, second: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Return NSD of two volumes by the definition: corner by corner, whole volume, no cropping."""
    table = published_areas(spacing)
    surfaces = []
    for mask in (first, second):
        padded = np.pad(mask, 1)
        area = np.zeros([side - 1 for side in padded.shape])
        for place in np.ndindex(area.shape):
            cell = padded[tuple(slice(p, p + 2) for p in place)]
            area[place] = table[frozenset(zip(*(axis.tolist() for axis in np.nonzero(cell)), strict=True))]
        surfaces.append(area)
    near = total = 0.0
    for own, other in (surfaces, surfaces[::-1]):
        total += own.sum()
        if other.any():
            far = ndimage.distance_transform_edt(other == 0, sampling=spacing)
            near += own[far <= tolerance].sum()
    return float(np.divide(near, total))


def challenge_scores(
    truth: Labels, prediction: Labels, spacing: Sequence[float] | None
) -> tuple[float, float]:
    """Return DSC and NSD of a case as the challenge's script has them: means over labels 1 to the top."""
    classes = [(truth == label, prediction == label) for label in range(1, int(truth.max()) + 1)]
    dice = np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in classes])
    if dice <= 0.2:
        return float(dice), 0.0
    if spacing is None:
        classes = [(np.expand_dims(a, -1), np.expand_dims(b, -1)) for a, b in classes]
        spacing = (1.0, 1.0, 1.0)
    return float(dice), float(np.mean([naive_nsd(a, b, spacing, 2.0) for a, b in classes]))


def means(scores: Sequence[ClassScore]) -> tuple[float, float]:
    return float(np.mean([s.dsc for s in scores])), float(np.mean([s.nsd for s in scores]))


def at(shape: tuple[int, ...], *places: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, np.bool_)
    for place in places:
        mask[place] = True
    return mask


def ball(side: int, radius: float, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Mask:
    centre = (side - 1) / 2
    axes = np.meshgrid(*[(np.arange(side) - centre) * length for length in spacing], indexing="ij")
    return sum(axis**2 for axis in axes) <= radius**2


def mean_distances(found: SurfaceDistances) -> tuple[float, float]:
    return (
        float((found.first_to_second * found.first_areas).sum() / found.first_areas.sum()),
        float((found.second_to_first * found.second_areas).sum() / found.second_areas.sum()),
    )


class TestPublishedValues:
    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.7, 1.3, 3.1)])
    def test_surface_element_areas(self, spacing: tuple[float, float, float]) -> None:
        published = published_areas(spacing)
        assert len(published) == 256
        areas = element_areas(spacing)
        for code in range(256):
            corners = itertools.product((0, 1), repeat=3)
            inside = frozenset(corner for bit, corner in enumerate(corners) if code >> bit & 1)
            assert areas[code] == pytest.approx(published[inside], abs=1e-12), f"{inside}"

    def test_two_pixels_two_millimetres_apart(self) -> None:
        first, second = at((128, 128), (50, 70)), at((128, 128), (50, 72))
        found = surface_distances(first, second, (2, 1))
        half_diagonal = 0.5 * math.hypot(2, 1)
        for distances, areas in (
            (found.first_to_second, found.first_areas),
            (found.second_to_first, found.second_areas),
        ):
            assert sorted(distances) == [1, 1, 2, 2]
            assert areas == pytest.approx([half_diagonal] * 4)
        assert mean_distances(found) == pytest.approx((1.5, 1.5))
        assert surface_dice(found, 1) == pytest.approx(0.5)
        assert dsc(first, second) == 0

    def test_two_squares_one_of_them_longer(self) -> None:
        first, second = np.zeros((6, 6), np.bool_), np.zeros((6, 6), np.bool_)
        first[1:3, 1:3] = second[1:4, 1:3] = True
        vertical, horizontal = 2, 1
        corner = 0.5 * math.hypot(vertical, horizontal)
        found = surface_distances(first, second, (vertical, horizontal))
        assert sorted(zip(found.first_to_second, found.first_areas, strict=True)) == sorted(
            zip(
                [0] * 5 + [horizontal] + [0] * 2,
                [corner, horizontal, corner, vertical, corner, horizontal, corner, vertical],
                strict=True,
            )
        )
        assert sorted(zip(found.second_to_first, found.second_areas, strict=True)) == sorted(
            zip(
                [0] * 5 + [vertical] * 3 + [0] * 2,
                [
                    corner,
                    horizontal,
                    corner,
                    vertical,
                    vertical,
                    corner,
                    horizontal,
                    corner,
                    vertical,
                    vertical,
                ],
                strict=True,
            )
        )

    def test_two_voxels_two_millimetres_apart(self) -> None:
        found = surface_distances(
            at((128, 128, 128), (50, 60, 70)), at((128, 128, 128), (50, 60, 72)), (3, 2, 1)
        )
        assert mean_distances(found) == pytest.approx((1.5, 1.5))
        assert found.first_to_second.max() == 2
        assert surface_dice(found, 1) == pytest.approx(0.5)

    def test_two_cuboids_one_of_them_longer(self) -> None:
        first, second = np.zeros((100, 100, 100), np.bool_), np.zeros((100, 100, 100), np.bool_)
        first[0:50] = second[0:51] = True
        found = surface_distances(first, second, (2, 1, 1))
        assert mean_distances(found) == pytest.approx((0.322, 0.339), abs=5e-4)
        assert max(found.first_to_second.max(), found.second_to_first.max()) == 2
        near = [
            areas[distances <= 1].sum() / areas.sum()
            for distances, areas in (
                (found.first_to_second, found.first_areas),
                (found.second_to_first, found.second_areas),
            )
        ]
        assert near == pytest.approx([0.842, 0.830], abs=5e-4)
        assert surface_dice(found, 1) == pytest.approx(0.836, abs=5e-4)
        assert dsc(first, second) == pytest.approx(0.990, abs=5e-4)

    @pytest.mark.parametrize("shape", [(128, 128), (40, 40, 40)])
    def test_empty_masks(self, shape: tuple[int, ...]) -> None:
        empty, one = np.zeros(shape, np.bool_), at(shape, (20,) * len(shape))
        spacing = (3, 2, 1)[: len(shape)]
        for pair in ((one, empty), (empty, one)):
            assert dsc(*pair) == 0
            assert nsd(*pair, spacing) == 0
        found = surface_distances(one, empty, spacing)
        assert np.isinf(found.first_to_second).all()
        assert found.second_to_first.size == 0
        assert math.isnan(dsc(empty, empty))
        assert math.isnan(nsd(empty, empty, spacing))

    @pytest.mark.parametrize(
        ("first", "second", "spacing"),
        [
            ((2, 2, 2), (2, 2), (1, 1)),
            ((2, 2), (2, 2), (1, 1, 1)),
            ((2,), (2,), (1,)),
            ((2, 2), (2, 3), (1, 1)),
        ],
    )
    def test_shapes_that_do_not_fit(
        self, first: tuple[int, ...], second: tuple[int, ...], spacing: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match="one length per axis"):
            surface_distances(np.zeros(first, np.bool_), np.zeros(second, np.bool_), spacing)


class TestAnalyticShapes:
    def test_perimeter_of_a_rectangle(self) -> None:
        mask = np.zeros((20, 30), np.bool_)
        mask[4:14, 5:25] = True
        found = surface_distances(mask, mask, (0.5, 2.0))
        # Straight sides run between pixel centres; each corner is cut by half a diagonal.
        straight = 2 * (9 * 0.5 + 19 * 2.0)
        assert found.first_areas.sum() == pytest.approx(straight + 4 * 0.5 * math.hypot(0.5, 2.0))

    def test_surface_of_a_cuboid(self) -> None:
        mask = np.zeros((12, 14, 16), np.bool_)
        mask[2:10, 2:12, 2:14] = True
        dz, dy, dx = 2.5, 0.5, 0.75
        faces = 2 * (7 * 9 * dz * dy + 9 * 11 * dy * dx + 7 * 11 * dz * dx)
        edges = 4 * (
            7 * dz * 0.5 * math.hypot(dy, dx)
            + 9 * dy * 0.5 * math.hypot(dz, dx)
            + 11 * dx * 0.5 * math.hypot(dz, dy)
        )
        corners = 8 * math.hypot(dy * dx, dz * dx, dz * dy) / 8
        found = surface_distances(mask, mask, (dz, dy, dx))
        assert found.first_areas.sum() == pytest.approx(faces + edges + corners)

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8)])
    def test_surface_of_a_sphere(self, spacing: tuple[float, float, float]) -> None:
        radius = 15.0
        mask = ball(41, radius, spacing)
        area = surface_distances(mask, mask, spacing).first_areas.sum()
        # A staircase of half-voxel steps overstates a curved surface, by less than a fifth.
        assert 1.0 < area / (4 * math.pi * radius**2) < 1.2

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_planes_at_an_offset(self, axis: int) -> None:
        spacing = (2.5, 0.8, 1.5)
        slabs = []
        for stop in (10, 13):
            mask = np.zeros((24, 24, 24), np.bool_)
            mask[(slice(None),) * axis + (slice(6, stop),)] = True
            slabs.append(mask)
        found = surface_distances(*slabs, spacing)
        offset = 3 * spacing[axis]
        # Far from the rims the upper plane lies exactly the offset away, on both sides; nothing lies farther.
        assert found.first_to_second.max() == pytest.approx(offset)
        assert found.second_to_first.max() == pytest.approx(offset)
        assert surface_dice(found, offset * 1.0001) == 1
        assert surface_dice(found, offset * 0.9999) < 1

    def test_concentric_spheres(self) -> None:
        inner, outer = ball(45, 14), ball(45, 18)
        found = surface_distances(inner, outer, (1, 1, 1))
        # Surface elements are a voxel thick: the nearest of them is up to a voxel nearer than the surface.
        assert all(3 < mean < 4 for mean in mean_distances(found))
        assert nsd(inner, outer, (1, 1, 1), tolerance=2) == 0
        assert nsd(inner, outer, (1, 1, 1), tolerance=5.5) == 1

    def test_a_quarter_of_a_square_out_of_reach(self) -> None:
        first, second = np.zeros((220, 220), np.bool_), np.zeros((220, 220), np.bool_)
        first[10:110, 10:110] = second[10:110, 10:210] = True
        # All of the small contour but its right side (a quarter) lies on the large one: the right side is
        # near it within 2 of its ends. The large contour has 600, of which 300 lie on the small one.
        near = (300 + 4) + (300 + 4)
        assert nsd(first, second, (1, 1), tolerance=2) == pytest.approx(near / (400 + 600), abs=0.01)

    def test_spacing_decides_what_is_near(self) -> None:
        first, second = at((9, 9, 9), (4, 4, 2)), at((9, 9, 9), (4, 4, 6))
        assert nsd(first, second, (1, 1, 0.5)) == 1
        assert nsd(first, second, (1, 1, 5)) == 0
        assert nsd(first, second, (5, 5, 0.5)) == 1


class TestScoresOfACase:
    SHAPES = ((32, 40), (12, 20, 24))

    @staticmethod
    def labels(shape: tuple[int, ...]) -> Labels:
        labels = np.zeros(shape, np.uint8)
        labels[..., 2:8, 2:9] = 1
        labels[..., 11:16, 4:20] = 2
        return labels

    @pytest.mark.parametrize("rule", list(NsdRule))
    @pytest.mark.parametrize("shape", SHAPES)
    def test_identical_is_one(self, shape: tuple[int, ...], rule: NsdRule) -> None:
        truth = self.labels(shape)
        scores = score_classes(truth, truth, (3.0, 1.0, 1.0), rule=rule)
        assert scores == (ClassScore(1, 1.0, 1.0), ClassScore(2, 1.0, 1.0))

    @pytest.mark.parametrize("rule", list(NsdRule))
    @pytest.mark.parametrize("shape", SHAPES)
    def test_far_apart_is_zero(self, shape: tuple[int, ...], rule: NsdRule) -> None:
        truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        truth[..., 1:5, 1:5] = prediction[..., 10:14, 12:16] = 1
        assert score_classes(truth, prediction, (3.0, 1.0, 1.0), rule=rule) == (ClassScore(1, 0.0, 0.0),)

    @pytest.mark.parametrize("rule", list(NsdRule))
    @pytest.mark.parametrize("shape", SHAPES)
    def test_empty_prediction_is_zero(self, shape: tuple[int, ...], rule: NsdRule) -> None:
        truth = self.labels(shape)
        scores = score_classes(truth, np.zeros_like(truth), (3.0, 1.0, 1.0), rule=rule)
        assert scores == (ClassScore(1, 0.0, 0.0), ClassScore(2, 0.0, 0.0))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_label_missing_in_the_prediction_costs_its_share(self, shape: tuple[int, ...]) -> None:
        truth = self.labels(shape)
        scores = score_classes(truth, np.where(truth == 2, 0, truth), (3.0, 1.0, 1.0))
        assert scores == (ClassScore(1, 1.0, 1.0), ClassScore(2, 0.0, 0.0))

    def test_label_only_in_the_prediction(self) -> None:
        truth = self.labels((32, 40))
        truth[truth == 2] = 3
        prediction = truth.copy()
        # Nobody has label 2: left out. Label 4 lies above the ground truth's largest: it does not count.
        prediction[25:30, 25:30] = 4
        assert [s.label for s in score_classes(truth, prediction, None)] == [1, 3]
        prediction[25:30, 25:30] = 2
        assert score_classes(truth, prediction, None)[1] == ClassScore(2, 0.0, 0.0)

    @pytest.mark.parametrize("rule", list(NsdRule))
    @pytest.mark.parametrize("shape", [(9, 9), (9, 9, 9), (1, 9, 9)])
    def test_one_voxel_objects(self, shape: tuple[int, ...], rule: NsdRule) -> None:
        centre = tuple(side // 2 for side in shape)
        truth = at(shape, centre).astype(np.uint8)
        spacing = (4.0, 1.0, 1.0)
        assert score_classes(truth, truth, spacing, rule=rule) == (ClassScore(1, 1.0, 1.0),)
        beside = np.roll(truth, 1, axis=-1)
        # The challenge does not measure NSD where DSC is 0; by contour the neighbour is within 2.
        expected = 0.0 if rule is NsdRule.CHALLENGE else 1.0
        assert score_classes(truth, beside, spacing, rule=rule) == (ClassScore(1, 0.0, expected),)

    def test_one_pixel_at_the_image_border(self) -> None:
        truth = at((7, 5), (0, 0), (6, 4)).astype(np.uint8)
        assert means(score_classes(truth, truth, None, rule=NsdRule.CONTOUR)) == (1.0, 1.0)

    def test_a_slice_has_faces_and_a_contour_has_not(self) -> None:
        truth, prediction = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
        truth[10:40, 10:40] = prediction[10:40, 10:50] = 1
        as_slice = score_classes(truth, prediction, None)[0]
        by_contour = score_classes(truth, prediction, None, rule=NsdRule.CONTOUR)[0]
        assert as_slice.dsc == by_contour.dsc == pytest.approx(6 / 7)
        assert as_slice.nsd > by_contour.nsd + 0.05

    def test_tolerance_is_in_millimetres_in_3d_and_pixels_in_2d(self) -> None:
        truth, prediction = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
        truth[4:16, 4:16, 4:14] = prediction[4:16, 4:16, 4:16] = 1
        assert score_classes(truth, prediction, (1.0, 1.0, 1.0))[0].nsd == 1
        assert score_classes(truth, prediction, (1.0, 1.0, 1.5))[0].nsd < 1
        assert score_classes(truth, prediction, (1.0, 1.0, 1.5), tolerance=3.0)[0].nsd == 1
        assert score_classes(truth[8], prediction[8], (9.0, 9.0, 9.0))[0].nsd == 1

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
    def test_any_integer_dtype(self, dtype: type[np.integer]) -> None:
        truth = self.labels((32, 40))
        assert means(score_classes(truth, truth.astype(dtype), None)) == (1.0, 1.0)
        assert means(score_classes(truth.astype(dtype), truth, None)) == (1.0, 1.0)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (np.ones((4, 4), np.float32), "float32"),
            (np.ones((4, 4), np.bool_), "bool"),
            (np.full((4, 4), -1), "from -1"),
            (np.full((4, 4), 65536), "to 65536"),
            (np.ones((4,), np.uint8), re.escape("shape (4,)")),
        ],
    )
    def test_what_is_no_label_map_is_refused(self, bad: NDArray[np.generic], message: str) -> None:
        good = np.ones((4, 4), np.uint8)
        with pytest.raises(InputError, match="prediction.*" + message):
            score_classes(good, bad, None)
        with pytest.raises(InputError, match="ground truth.*" + message):
            score_classes(bad, good, None)

    def test_what_cannot_be_scored_is_refused(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            score_classes(np.ones((4, 4), np.uint8), np.ones((4, 5), np.uint8), None)
        with pytest.raises(ValueError, match="label above 0"):
            score_classes(np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8), None)
        with pytest.raises(ValueError, match="spacing"):
            score_classes(np.ones((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.uint8), None)


class TestAgreementWithTheChallenge:
    @pytest.mark.parametrize(("truth", "prediction", "dice", "distance"), CHALLENGE_SCORES)
    def test_stored_cases(
        self,
        shared: Callable[[str], pathlib.Path],
        truth: str,
        prediction: str,
        dice: float,
        distance: float,
    ) -> None:
        maps = np.load(shared("golden/expected.npz"), allow_pickle=False)
        case = truth.removeprefix("plain_argmax_")
        spacing = np.load(shared(f"golden/cases/{case}.npz"), allow_pickle=False).get("spacing")
        scores = means(score_classes(maps[truth], maps[prediction], spacing))
        assert scores == pytest.approx((dice, distance), abs=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_random_cases(self, data: st.DataObject) -> None:
        three = data.draw(st.booleans())
        shape = (
            data.draw(st.tuples(*[st.integers(1, 5)] * 3))
            if three
            else data.draw(st.tuples(*[st.integers(1, 9)] * 2))
        )
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


masks_2d = arrays(np.bool_, (7, 8))
masks_3d = arrays(np.bool_, (4, 5, 6))


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(masks=st.one_of(st.tuples(masks_2d, masks_2d), st.tuples(masks_3d, masks_3d)))
    def test_symmetric_and_within_bounds(self, masks: tuple[Mask, Mask]) -> None:
        first, second = masks
        spacing = (2.0, 0.7, 1.1)[: first.ndim]
        for metric in (dsc, lambda a, b: nsd(a, b, spacing, 1.0)):
            one, other = metric(first, second), metric(second, first)
            assert one == pytest.approx(other, nan_ok=True)
            assert math.isnan(one) or 0 <= one <= 1 + 1e-12

    @settings(max_examples=60, deadline=None)
    @given(
        masks=st.tuples(masks_3d, masks_3d),
        before=st.tuples(*[st.integers(0, 3)] * 3),
        after=st.tuples(*[st.integers(0, 3)] * 3),
    )
    def test_background_round_the_masks_changes_nothing(
        self, masks: tuple[Mask, Mask], before: tuple[int, ...], after: tuple[int, ...]
    ) -> None:
        spacing = (2.0, 0.7, 1.1)
        wider = [np.pad(mask, list(zip(before, after, strict=True))) for mask in masks]
        assert nsd(*wider, spacing, 1.0) == pytest.approx(nsd(*masks, spacing, 1.0), nan_ok=True)
        assert dsc(*wider) == pytest.approx(dsc(*masks), nan_ok=True)

    @settings(max_examples=40, deadline=None)
    @given(masks=st.tuples(masks_3d, masks_3d), order=st.permutations(range(3)), mirrored=st.integers(0, 2))
    def test_axes_may_be_exchanged_and_mirrored(
        self, masks: tuple[Mask, Mask], order: list[int], mirrored: int
    ) -> None:
        spacing = (2.0, 0.7, 1.1)
        turned = [np.flip(mask, mirrored).transpose(order) for mask in masks]
        lengths = [spacing[axis] for axis in order]
        assert nsd(*turned, lengths, 1.0) == pytest.approx(nsd(*masks, spacing, 1.0), nan_ok=True)

    @settings(max_examples=40, deadline=None)
    @given(
        truth=arrays(np.uint8, (8, 9), elements=st.integers(0, 3)),
        prediction=arrays(np.uint8, (8, 9), elements=st.integers(0, 3)),
        numbers=st.permutations([1, 2, 3]),
    )
    def test_labels_may_be_exchanged(self, truth: Labels, prediction: Labels, numbers: list[int]) -> None:
        # All three labels are there, so that the largest stays the same.
        truth[0, :3] = 1, 2, 3
        table = np.array([0, *numbers], np.uint8)
        scores = score_classes(truth, prediction, None, rule=NsdRule.CONTOUR)
        renamed = score_classes(table[truth], table[prediction], None, rule=NsdRule.CONTOUR)
        for score in scores:
            partner = renamed[int(table[score.label]) - 1]
            assert (partner.dsc, partner.nsd) == pytest.approx((score.dsc, score.nsd))

    @settings(max_examples=30, deadline=None)
    @given(masks=st.tuples(masks_3d, masks_3d), factor=st.sampled_from([0.5, 2.0, 4.0]))
    def test_units_do_not_matter(self, masks: tuple[Mask, Mask], factor: float) -> None:
        spacing = (2.0, 0.75, 1.25)
        scaled = tuple(length * factor for length in spacing)
        assert nsd(*masks, scaled, factor) == pytest.approx(nsd(*masks, spacing, 1.0), nan_ok=True)

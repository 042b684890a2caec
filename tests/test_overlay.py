"""Pictures of results: the right colours in the right places, of any case."""

import cv2
import numpy as np
import pytest

from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.outputs.overlay import colours, draw_case


def grey_case(boxes: list[list[int]], shape: tuple[int, ...] = (768, 768)) -> Case:
    image = np.full(shape, 100, np.uint8)
    return Case("a", image, Boxes.parse(boxes, shape))


def hue(colour: np.ndarray) -> int:
    """Return the hue of an R G B colour in degrees."""
    return 2 * int(cv2.cvtColor(colour.reshape(1, 1, 3).astype(np.uint8), cv2.COLOR_RGB2HSV)[0, 0, 0])


def hue_distance(one: np.ndarray, other: np.ndarray) -> int:
    distance = abs(hue(one) - hue(other))
    return min(distance, 360 - distance)


def test_objects_are_tinted_and_rimmed_in_their_colour_and_the_rest_is_left_alone():
    case = grey_case([[100, 100, 300, 300], [400, 400, 700, 700]])
    labels = np.zeros(case.shape, np.uint8)
    labels[150:250, 150:250], labels[450:650, 450:650] = 1, 2
    picture, palette = draw_case(case, labels), colours(2)
    assert picture.shape == (768, 768, 3)
    assert picture.dtype == np.uint8
    for label, centre, rim in ((1, (200, 200), (150, 200)), (2, (500, 500), (500, 649))):
        assert hue_distance(picture[centre], palette[label]) < 12
        np.testing.assert_array_equal(picture[rim], palette[label, 0])
    np.testing.assert_array_equal(picture[350, 350], [100, 100, 100])
    np.testing.assert_array_equal(picture[130, 130], [100, 100, 100])


def test_boxes_are_drawn_in_their_colour_at_their_place():
    case = grey_case([[100, 200, 300, 500]])
    picture = draw_case(case, np.zeros(case.shape, np.uint8))
    ink = colours(1)[1, 0]
    for spot in ((200, 250), (500, 250), (300, 100), (300, 300)):
        np.testing.assert_array_equal(picture[spot], ink)
    changed = np.argwhere((picture != 100).any(axis=2))
    np.testing.assert_array_less(changed.max(axis=0), [503, 303])
    # The number stands above the box.
    np.testing.assert_array_less([175, 96], changed.min(axis=0))


def test_a_small_image_is_enlarged_and_a_huge_one_reduced_in_its_proportions():
    small, huge = grey_case([[1, 1, 9, 9]], (20, 40)), grey_case([[1, 1, 900, 900]], (2560, 1920))
    assert draw_case(small, np.zeros(small.shape, np.uint8)).shape == (384, 768, 3)
    assert draw_case(huge, np.zeros(huge.shape, np.uint8)).shape == (1600, 1200, 3)


def test_an_image_of_one_row_is_drawn():
    case = grey_case([[0, 0, 900, 1]], (1, 5000))
    assert draw_case(case, np.ones(case.shape, np.uint8)).shape == (1, 1600, 3)


def test_a_colour_image_keeps_its_colours():
    image = np.zeros((800, 800, 3), np.uint8)
    image[..., 0] = 200
    case = Case("a", image, Boxes.parse([[10, 10, 50, 50]], image.shape))
    np.testing.assert_array_equal(draw_case(case, np.zeros(case.shape, np.uint8))[600, 600], [200, 0, 0])


def test_of_a_volume_the_middle_slice_of_each_box_is_shown():
    image = np.zeros((30, 100, 100), np.uint8)
    image[:] = np.arange(30, dtype=np.uint8).reshape(-1, 1, 1) * 8
    case = Case("a", image, Boxes.parse([[20, 20, 5, 40, 40, 5], [50, 50, 20, 80, 80, 20]], image.shape))
    picture = draw_case(case, np.zeros(case.shape, np.uint8))
    # Two tiles side by side: slices 5 and 20, between them the ground.
    assert picture.shape == (448, 448 * 2 + 6, 3)
    np.testing.assert_array_equal(picture[40, 400], [40, 40, 40])
    np.testing.assert_array_equal(picture[40, 448 + 3], [24, 24, 24])
    np.testing.assert_array_equal(picture[40, 448 + 6 + 400], [160, 160, 160])
    np.testing.assert_array_equal(picture[round(20 * 4.48), 30 * 4], colours(2)[1, 0])
    assert not (picture[:, :448] == colours(2)[2, 0]).all(axis=2).any()


@pytest.mark.parametrize(
    ("z", "shown"),
    [
        ([[3, 5]], [3, 4, 5]),
        ([[0, 39]], [0, 4, 8, 11, 15, 19, 20, 24, 28, 31, 35, 39]),
        # The middles, 2, 15 and 30, and nine of the 14 other slices.
        ([[0, 4], [10, 20], [30, 30]], [0, 2, 3, 4, 11, 12, 14, 15, 17, 18, 20, 30]),
    ],
)
def test_of_a_volume_there_is_a_contact_sheet_of_the_slices_that_boxes_cover(z, shown):
    image = np.empty((40, 40, 40), np.uint8)
    image[:] = 5 * np.arange(40, dtype=np.uint8).reshape(-1, 1, 1)
    boxes = [[2, 2, first, 12, 12, last] for first, last in z]
    picture = draw_case(Case("a", image, Boxes.parse(boxes, image.shape)), np.zeros(image.shape, np.uint8))
    columns = 4 if len(shown) > 9 else 3
    rows = -(-len(shown) // columns)
    assert picture.shape == (454 * rows - 6, 454 * columns - 6, 3)
    # A spot of each tile that is far from boxes and numbers.
    found = [
        picture[454 * (n // columns) + 300, 454 * (n % columns) + 400, 0] // 5 for n in range(len(shown))
    ]
    assert found == shown


@pytest.mark.parametrize("count", [40, 300])
def test_many_boxes_in_a_volume_make_at_most_twelve_tiles(count):
    boxes = [[0, 0, i % 40, 5, 5, i % 40] for i in range(count)]
    case = grey_case(boxes, (40, 16, 16))
    picture = draw_case(case, np.zeros(case.shape, np.uint16))
    assert picture.shape == (3 * 454 - 6, 4 * 454 - 6, 3)


def test_colours_differ_between_neighbours_and_are_seen_on_black_and_as_many_as_wanted():
    palette = colours(65535)
    assert palette.shape == (65536, 1, 3)
    assert not palette[0].any()
    luma = palette[1:, 0] @ np.array([0.299, 0.587, 0.114])
    assert luma.min() > 100
    lab = cv2.cvtColor((palette[1:25] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[:, 0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    # A just noticeable difference is about 2.
    assert distance[~np.eye(24, dtype=bool)].min() > 20
    assert np.diagonal(distance, 1).min() > 60

"""3D boxes by an ellipsoid's profile and by planes, small boxes on tiles: on drawn balls, tubes and dots.

The engine of these tests finds what is bright near its prompt, whatever the resolution it is shown.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litemed.runtime import merge
from litemed.runtime.boxes import Boxes, scale_boxes, shrink
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label
from litemed.runtime.errors import UsageError
from litemed.runtime.method import Method
from litemed.runtime.plan import Plan
from litemed.runtime.planes import LEAST_SLICES, MOST_PLANES, CrossPlanes, planes_per_box
from litemed.runtime.preprocess import Frame
from litemed.runtime.segmenter import Segmenter
from litemed.runtime.zoom import SMALL, plan_tiles

Image = NDArray[np.uint8]
SIZE = 256


class Bright:
    """An engine whose masks are the bright pixels within a side of the prompt; keeps what it was asked.

    It is the surer the larger the prompt, as the network is.
    """

    name, version, threads = "bright", "0", 1
    decoders = ("decoder",)

    def __init__(self) -> None:
        self.prompts: list[NDArray[np.float32]] = []
        self.encoded = 0

    def encode(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        self.encoded += 1
        return image

    def decode(
        self, embedding: NDArray[np.float32], boxes: NDArray[np.float32], decoder: str = "decoder"
    ) -> tuple:
        self.prompts.extend(boxes)
        y, x = np.mgrid[:SIZE, :SIZE]
        logits = np.where(embedding[0, 0] > 0.5, 1, -1) * np.ones((len(boxes), 1, 1), np.float32)
        for plane, (x0, y0, x1, y1) in zip(logits, boxes, strict=True):
            reach = max(x1 - x0, y1 - y0, 4)
            near = (x >= x0 - reach) & (x < x1 + reach) & (y >= y0 - reach) & (y < y1 + reach)
            plane[~near] = -1
            plane *= reach
        return logits, np.zeros(len(boxes), np.float32)


@pytest.fixture
def bright(box_bundle) -> Segmenter:
    return Segmenter(Bundle.open(box_bundle).released(), Bright())


def box_of(mask: NDArray[np.bool_]) -> list[int]:
    """The box of a mask: in z both ends inclusive, in x and y one past the last pixel."""
    low = [int(axis.min()) for axis in np.nonzero(mask)][::-1]
    high = [int(axis.max()) for axis in np.nonzero(mask)][::-1]
    return [*low, high[0] + 1, high[1] + 1, *high[2:]]


# Volumes


def ball_and_tube() -> tuple[Image, NDArray[np.uint8]]:
    z, y, x = np.mgrid[:48, :256, :256]
    labels = np.zeros(z.shape, np.uint8)
    labels[((z - 20) ** 2 + ((y - 60) / 2) ** 2 + ((x - 70) / 2) ** 2) <= 15**2] = 1
    labels[((y - 180) ** 2 + (x - 190) ** 2 <= 20**2) & (z >= 10) & (z < 40)] = 2
    return np.where(labels > 0, 200, 40).astype(np.uint8), labels


@pytest.mark.parametrize("volume", ["planes", "ellipsoid", "box"])
@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 1.5)])
def test_a_ball_and_a_tube_are_found_to_the_voxel(
    volume: str, spacing: tuple[float, ...] | None, bright: Segmenter
) -> None:
    image, labels = ball_and_tube()
    boxes = Boxes.parse([box_of(labels == label) for label in (1, 2)], image.shape)
    case, method = Case("v", image, boxes, spacing), Method(volume=volume)
    plan, result = bright.plan(case, method), bright.run(case, method)
    if volume == "planes":  # between which edges are interpolated
        assert dice_by_label(result.labels, labels, 2).min() > 0.95
    else:
        np.testing.assert_array_equal(result.labels, labels)
    planes = 2 * 2 * MOST_PLANES if volume == "planes" else 0
    assert (plan.encodings, plan.decodings) == (result.encodings, result.decodings)
    assert result.encodings == bright.engine.encoded == 35 + planes
    assert result.decodings == len(bright.engine.prompts) == 31 + 30 + planes


def test_the_prompts_of_slices_are_cross_sections(bright: Segmenter) -> None:
    image = np.zeros((9, 256, 256), np.uint8)
    box = [[40, 60, 2, 80, 120, 6]]
    bright.segment(image, box)
    for prompt, offset in zip(bright.engine.prompts, (-0.8, -0.4, 0, 0.4, 0.8), strict=True):
        factor = np.sqrt(1 - offset**2)
        expected = np.trunc([60 - 20 * factor, 90 - 30 * factor, 60 + 20 * factor, 90 + 30 * factor])
        np.testing.assert_array_equal(prompt, expected)
    corners = shrink(np.array([[0, 0, 20, 20]]), np.array([1.0]))
    np.testing.assert_allclose(corners, [[10 - 10 * 0.15**0.5] * 2 + [10 + 10 * 0.15**0.5] * 2])
    for boxes, method in (([[40, 60, 3, 80, 120, 3]], {}), (box, {"volume": "box"})):
        bright.engine.prompts.clear()
        bright.segment(image, boxes, **method)
        assert {tuple(prompt) for prompt in bright.engine.prompts} == {(40, 60, 80, 120)}


class Grey:
    """Takes the place of `Inference`: the logits of an image are its values, at the network's scale."""

    size = SIZE

    def encode(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return image

    def decode(
        self, image: NDArray[np.float32], boxes: NDArray[np.float32], decoder: str = "decoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        frame = Frame.of(*image.shape[:2], SIZE)
        plane = np.full((SIZE, SIZE), np.nan, np.float32)  # the padding is never read
        scaled = cv2.resize(image, (frame.scaled_width, frame.scaled_height), interpolation=cv2.INTER_LINEAR)
        plane[: frame.scaled_height, : frame.scaled_width] = scaled
        return np.stack([plane] * len(boxes)), np.ones(len(boxes), np.float32)


@pytest.mark.parametrize("shape", [(40, 300, 200), (30, 60, 100), (300, 80, 120)])
@pytest.mark.parametrize("spacing", [None, (2.5, 1.0, 1.0), (0.5, 1.0, 1.0)])
def test_planes_lie_where_they_were_cut(
    shape: tuple[int, int, int], spacing: tuple[float, ...] | None
) -> None:
    """A volume that rises evenly along all axes: all three directions say the same, within the box only."""
    z, y, x = (axis.astype(np.float32) for axis in np.mgrid[: shape[0], : shape[1], : shape[2]])
    volume = 3 * z + 2 * y + x
    box, ends = np.array([20, 12, 70, 52]), np.array([5, 24])
    frame, grey = Frame.of(*shape[1:], SIZE), Grey()
    planes = CrossPlanes(grey, volume, box, ends, spacing, frame, MOST_PLANES)
    for position in (5, 14, 24):
        (logits,), _ = grey.decode(grey.encode(volume[position]), np.zeros((1, 4)))
        corrected = logits.copy()
        planes.correct(corrected, position)
        changed = np.argwhere(~np.isclose(corrected, logits, equal_nan=True))[:, ::-1]
        scaled = scale_boxes(box[None], frame)[0].reshape(2, 2)
        assert (changed >= scaled[0] - 1).all()
        assert (changed <= scaled[1] + 1).all()
        # Beyond the outermost planes their values are repeated: half a plane's distance from the box's edge.
        inner = np.s_[int(scaled[0, 1] * 0.75 + scaled[1, 1] * 0.25) : int(scaled[:, 1].mean())]
        across = np.s_[int(scaled[0, 0] * 0.75 + scaled[1, 0] * 0.25) : int(scaled[:, 0].mean())]
        np.testing.assert_allclose(corrected[inner, across], logits[inner, across], atol=1.5)


@pytest.mark.parametrize("depth", [60, 900])
def test_planes_of_a_deep_volume_show_the_box_as_large(depth: int, bright: Segmenter) -> None:
    z, y, x = np.ogrid[:depth, :128, :128]
    ball = (z - depth // 2) ** 2 + ((y - 60) / 2) ** 2 + ((x - 64) / 2) ** 2 <= 12**2
    volume = np.where(ball, 200, 40).astype(np.uint8)
    found = bright.segment(volume, [box_of(ball)], spacing=(3.0, 1.0, 1.0))
    assert bright.engine.encoded == 25 + 2 * MOST_PLANES
    assert dice_by_label(found, ball.astype(np.uint8), 1)[0] > 0.95


def test_planes_are_for_thick_boxes_and_never_more_than_slices() -> None:
    boxes = np.array([[0, 0, 50, 50]] * 3 + [[0, 0, 50, 2]])
    z = np.array([[0, LEAST_SLICES - 1], [0, LEAST_SLICES - 2], [4, 40], [0, 60]])
    assert planes_per_box(boxes, z, 100).tolist() == [MOST_PLANES, 0, MOST_PLANES, 0]
    many, deep = np.array([[0, 0, 50, 50]] * 7), np.array([[0, 39]] * 7)
    assert planes_per_box(many, deep, 40).tolist() == [2] * 7
    assert planes_per_box(many, deep, 27).tolist() == [0] * 7


# Tiles


@st.composite
def images_with_boxes(draw: st.DrawFn) -> tuple[int, int, NDArray[np.int64]]:
    height, width = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    boxes = []
    for _ in range(draw(st.integers(1, 40))):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        w, h = draw(st.integers(1, 200)), draw(st.integers(1, 200))
        boxes.append([x0, y0, min(x0 + w, width), min(y0 + h, height)])
    return height, width, np.array(boxes)


@settings(deadline=None, max_examples=200)
@given(case=images_with_boxes(), most=st.sampled_from([0, 1, 5, 64]))
def test_every_box_is_in_one_view_and_small_ones_are_seen_larger(
    case: tuple[int, int, NDArray[np.int64]], most: int
) -> None:
    height, width, boxes = case
    tiles = plan_tiles(boxes, height, width, SIZE, most)
    assert len(tiles) <= most
    for rows, columns, inside in tiles:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        longest = max(rows.stop - rows.start, columns.stop - columns.start)
        for x0, y0, x1, y1 in boxes[inside].tolist():
            side = max(x1 - x0, y1 - y0)
            assert side * SIZE < SMALL * max(height, width)
            assert 16 <= side * SIZE / longest <= 64 or longest == max(height, width)
            for low, high, part, end in ((x0, x1, columns, width), (y0, y1, rows, height)):
                assert part.start <= max(0, low - (high - low) // 2)
                assert min(end, high + (high - low) // 2) <= part.stop
    image = np.zeros((height, width), np.uint8)
    case_ = Case("i", image, Boxes.parse(boxes, image.shape))
    plan = Plan.of(case_, Method(box_fit="tight", max_zoom_tiles=most), SIZE)
    views = [plan.whole, *plan.tiles]
    assert sorted(np.concatenate([view.boxes for view in views]).tolist()) == list(range(len(boxes)))
    assert (len(plan.tiles), plan.encodings) == (len(tiles), len(tiles) + 1)
    assert plan.decodings == len(boxes) + sum(len(inside) for _, _, inside in tiles)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    small = (sides * SIZE < SMALL * max(height, width)).sum() if max(height, width) > SIZE else 0
    assert len(plan.untiled) == small - sum(len(inside) for _, _, inside in tiles)
    if most == 64:
        assert not len(plan.untiled)
    assert not plan_tiles(boxes, min(height, SIZE), min(width, SIZE), SIZE, most)
    off = Plan.of(case_, Method(box_fit="tight", zoom="off"), SIZE)
    assert (off.encodings, off.decodings, off.whole.boxes.tolist()) == (1, len(boxes), [*range(len(boxes))])


def dots(shape: tuple[int, int], count: int, side: int, start: int) -> tuple[Image, list[list[int]]]:
    """Bright squares apart from one another, the last one in a corner, with their boxes.

    Tiles are four sides wide and may begin at every second one: from a `start` of half a side the squares lie
    across where they begin and end.
    """
    rows, columns = (range(start, length - side + 1, 4 * side) for length in shape)
    places = [(y, x) for y in rows for x in columns]
    order = np.random.default_rng(0).permutation(len(places))[: count - 1].tolist()
    chosen = [places[i] for i in order] + [(shape[0] - side, shape[1] - side)]
    image = np.full(shape, 40, np.uint8)
    for y, x in chosen:
        image[y : y + side, x : x + side] = 200
    return image, [[x, y, x + side, y + side] for y, x in chosen]


@pytest.mark.parametrize(
    ("shape", "count", "side", "start"),
    [
        ((1024, 1024), 12, 8, 0),
        ((1024, 1024), 12, 8, 28),
        ((1024, 2048), 241, 16, 0),
        ((1024, 1024), 9, 1, 0),
        ((64, 4096), 7, 16, 0),
        ((4096, 100), 7, 16, 40),
    ],
)
def test_dots_are_found_to_the_pixel(
    shape: tuple[int, int], count: int, side: int, start: int, bright: Segmenter
) -> None:
    image, boxes = dots(shape, count, side, start)
    labels = bright.segment(image, boxes, max_zoom_tiles=300)
    expected = np.zeros(shape, labels.dtype)
    for label, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        expected[y0:y1, x0:x1] = label
    np.testing.assert_array_equal(labels, expected)
    assert bright.engine.encoded <= count + 1
    assert (bright.segment(image, boxes, zoom="off") != labels).any()


@pytest.mark.parametrize(("band", "waiting"), [(1024**2, 8), (5000, 8), (5000, 0)])
def test_a_small_object_within_a_large_one_is_taken_from_it(band, waiting, bright, monkeypatch):
    """Across views: the large one on the whole image, the small ones in turn, on tiles; band by band, too."""
    monkeypatch.setattr(merge, "BAND_PIXELS", band)
    monkeypatch.setattr(merge, "WAITING_PARTS", waiting)
    image = np.full((1024, 1024), 40, np.uint8)
    image[200:800, 200:800] = 120
    image[400:430, 400:430] = 220
    boxes = [[400, 400, 430, 430], [200, 200, 800, 800]]
    labels = bright.segment(image, boxes)
    inner = np.zeros(image.shape, bool)
    inner[400:430, 400:430] = True
    assert (labels[inner] == 1).all()
    assert (labels == 1).sum() == inner.sum()
    assert bright.engine.encoded == 2


def test_in_volumes_tiles_are_of_their_slices_and_planes_for_the_others(bright: Segmenter) -> None:
    volume = np.full((20, 512, 512), 40, np.uint8)
    volume[4:10, 100:112, 100:112] = 200
    volume[2:19, 300:420, 300:420] = 200
    boxes = Boxes.parse([[100, 100, 4, 112, 112, 9], [300, 300, 2, 420, 420, 18]], volume.shape)
    result = bright.run(Case("v", volume, boxes))
    assert result.encodings == 6 + 17 + 2 * MOST_PLANES
    assert (result.labels[4:10, 100:112, 100:112] == 1).all()
    assert (result.labels == 1).sum() == 6 * 12 * 12
    # Planes show two slices in one pixel here, so that they decide its ends coarsely.
    assert (result.labels[2:19, 300:420, 300:420] == 2).mean() > 0.9


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"volume": "cube"}, "volume: no 'cube'; choose planes, ellipsoid or box"),
        ({"zoom": "on"}, "zoom: no 'on'; choose auto or off"),
        ({"max_zoom_tiles": -1}, "max_zoom_tiles: -1"),
        ({"max_zoom_tiles": "3"}, "max_zoom_tiles: '3'; give a whole number"),
        ({"max_zoom_tiles": True}, "max_zoom_tiles: True"),
        ({"crop_masks": "no"}, "crop_masks: 'no'; give True or False"),
        ({"propagate": 1}, "propagate: 1"),
        ({"volume": "box", "propagate": True}, "volume box does not go with propagate"),
    ],
)
def test_a_method_that_there_is_not_is_refused(method: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Method(**method)


class Opposed:
    """An engine whose decoder of tiles sees an object everywhere, the other one nowhere, that much surer."""

    name, version, threads = "opposed", "0", 1
    decoders = ("decoder", "tile_decoder")

    def __init__(self, surer: float) -> None:
        self.surer, self.loaded = surer, list[str]()

    def encode(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return image

    def load_decoder(self, name: str) -> None:
        self.loaded.append(name)

    def decode(
        self, embedding: NDArray[np.float32], boxes: NDArray[np.float32], decoder: str = "decoder"
    ) -> tuple:
        logit = 1 if decoder == "tile_decoder" else -self.surer
        return np.full((len(boxes), SIZE, SIZE), logit, np.float32), np.zeros(len(boxes), np.float32)


@pytest.mark.parametrize(("surer", "found"), [(2.3, 1), (2.4, 0)])
def test_a_decoder_of_tiles_has_seven_tenths_of_the_say_on_them(box_bundle, surer, found) -> None:
    engine = Opposed(surer)
    segmenter, picture = Segmenter(Bundle.open(box_bundle), engine), np.zeros((512, 512), np.uint8)
    small, large = [100, 100, 109, 109], [200, 200, 400, 400]
    labels = segmenter.segment(picture, [small, large], crop_masks=True)
    assert (labels[100:110, 100:110] == found).all()
    assert np.count_nonzero(labels) == 100 * found
    assert engine.loaded == ["tile_decoder"]
    assert not segmenter.segment(picture, [small], zoom="off").any()
    assert not segmenter.segment(picture, [large]).any()
    assert engine.loaded == ["tile_decoder"]


class Halved(Opposed):
    """The same; its decoder for loose boxes finds an object in the left part of every box, so much of it."""

    decoders = ("decoder", "loose_decoder", "tile_decoder")

    def __init__(self, part: float) -> None:
        super().__init__(2.3)
        self.part, self.asked = part, list[str]()

    def decode(
        self, embedding: NDArray[np.float32], boxes: NDArray[np.float32], decoder: str = "decoder"
    ) -> tuple:
        self.asked.append(decoder)
        logits, iou = super().decode(embedding, boxes, decoder)
        if decoder == "loose_decoder":
            for plane, (x0, y0, x1, y1) in zip(logits, boxes.astype(int), strict=True):
                plane[y0:y1, x0 : x0 + int(self.part * (x1 - x0))] = 1
        return logits, iou


@pytest.mark.parametrize(("part", "decoder"), [(0.95, "tile_decoder"), (0.7, "decoder"), (0.4, "decoder")])
def test_on_tiles_a_box_that_is_not_tight_is_of_the_decoder_for_whole_images(box_bundle, part, decoder):
    engine = Halved(part)
    segmenter, picture = Segmenter(Bundle.open(box_bundle), engine), np.zeros((512, 512), np.uint8)
    labels = segmenter.segment(picture, [[100, 100, 119, 119]], crop_masks=True)
    assert engine.asked == ["loose_decoder", decoder, "decoder"]
    assert np.count_nonzero(labels) == (400 if decoder == "tile_decoder" else 0)
    del engine.asked[:]
    segmenter.segment(picture, [[100, 100, 119, 119]], box_fit="tight")
    assert engine.asked == ["tile_decoder", "decoder"]


def test_the_number_of_tiles_makes_no_difference_where_there_are_none() -> None:
    for without in ({"zoom": "off"}, {"propagate": True}):
        assert Method(**without, max_zoom_tiles=3) == Method(**without)
    assert Method(max_zoom_tiles=3) != Method()

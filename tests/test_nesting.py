"""Boxes within boxes: what is nested, and that the label map is the one of the definition, bit for bit."""

import dataclasses
import unittest.mock
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import litemed.runtime
from litemed.runtime.boxes import Boxes, scale_boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.errors import UsageError
from litemed.runtime.merge import RunningMerge
from litemed.runtime.method import Method
from litemed.runtime.nesting import Nesting
from litemed.runtime.preprocess import Frame
from litemed.runtime.resize import LogitResizer
from litemed.runtime.segmenter import Segmenter

SIZE = 64  # of the network's input
DEPTH = 4

Corners = NDArray[np.int64]
Planes = NDArray[np.float32]


@st.composite
def boxes_in(draw: st.DrawFn, height: int, width: int, most: int = 7) -> Corners:
    """Boxes (N, 6) as x0 y0 z0 x1 y1 z1, each at random, or much like an earlier one, or within it."""

    def between(low: int, high: int) -> tuple[int, int]:
        first = draw(st.integers(low, max(low, high - 1)))
        return first, draw(st.integers(min(first + 1, high), high))

    boxes: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, most))):
        x0, y0, z0, x1, y1, z1 = (0, 0, 0, width, height, DEPTH - 1)
        if boxes and draw(st.booleans()):
            x0, y0, z0, x1, y1, z1 = draw(st.sampled_from(boxes))
            if draw(st.booleans()):  # one side moves
                x1 = draw(st.integers(x0 + 1, width))
                boxes.append((x0, y0, z0, x1, y1, z1))
                continue
        (x0, x1), (y0, y1) = between(x0, x1), between(y0, y1)
        first = draw(st.integers(z0, z1))
        boxes.append((x0, y0, first, x1, y1, draw(st.integers(first, z1))))
    return np.array(boxes, np.int64)


@dataclasses.dataclass(frozen=True)
class Naive:
    """The definition word for word: every pixel of every box is counted, every plane held."""

    inside: list[list[bool]]
    sizes: list[int]

    @classmethod
    def of(cls, boxes: Corners) -> "Naive":
        pixels = np.zeros((len(boxes), *(boxes[:, [5, 4, 3]].max(axis=0) + 1)), bool)
        for own, (x0, y0, z0, x1, y1, z1) in zip(pixels, boxes.tolist(), strict=True):
            own[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1] = True
        sizes = [int(own.sum()) for own in pixels]
        inside = [
            [
                Fraction(int((a & b).sum()), sizes[i]) >= Fraction(9, 10)
                and Fraction(sizes[i], sizes[j]) < Fraction(8, 10)
                for j, b in enumerate(pixels)
            ]
            for i, a in enumerate(pixels)
        ]
        return cls(inside, sizes)

    def merge(self, planes: dict[int, Planes], shape: tuple[int, int], rule: str) -> NDArray[np.int64]:
        """Merge planes (H, W), by box: argmax with zeros for the background, then nested boxes in turn."""
        nested = [i for i in planes if rule == "nested" and any(self.inside[i])]
        nested.sort(key=lambda i: (-self.sizes[i], i))
        order = [*(i for i in sorted(planes) if i not in nested), *nested]
        values = np.stack([*(planes[i] for i in order), np.zeros(shape, np.float32)])
        labels = np.array([*(i + 1 for i in order), 0])[values.argmax(axis=0)]
        for i in nested:
            containers = [j + 1 for j, within in enumerate(self.inside[i]) if within]
            labels[(planes[i] > 0) & np.isin(labels, containers)] = i + 1
        return labels


def plane_of(slice_number: int, prompt: Planes) -> Planes:
    """The logits (SIZE, SIZE) of a box on a slice: whole numbers, so ties and zeros, with noise in a part."""
    rng = np.random.default_rng([slice_number, *np.round(prompt * 8).astype(np.uint32).tolist()])
    coarse = rng.integers(-2, 3, (8, 8)).astype(np.float32)
    plane = np.kron(coarse, np.ones((SIZE // 8, SIZE // 8), np.float32))
    plane[: SIZE // 2] += rng.normal(0, 1, (SIZE // 2, SIZE)).astype(np.float32)
    return plane


class Drawn:
    """An engine whose logits are those of `plane_of`, of slices counted as they are encoded."""

    name, version, threads = "drawn", "0", 1
    decoders = ("decoder",)

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, image: Planes) -> Planes:
        self.encoded += 1
        return np.full(1, self.encoded, np.float32)

    def decode(self, embedding: Planes, boxes: Planes, decoder: str = "decoder") -> tuple[Planes, Planes]:
        planes = np.stack([plane_of(int(embedding[0]), box) for box in boxes])
        return planes, np.zeros(len(boxes), np.float32)


@pytest.fixture(scope="module")
def bundle(box_bundle):
    """Return a bundle for inputs of SIZE x SIZE."""
    opened = Bundle.open(box_bundle).released()
    smaller = dataclasses.replace(opened.manifest.input, size=SIZE)
    return dataclasses.replace(opened, manifest=dataclasses.replace(opened.manifest, input=smaller))


def flat(boxes: Corners) -> Corners:
    return boxes[:, [0, 1, 3, 4]]


# What is nested


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_nested_is_what_counting_pixels_says(data):
    boxes = data.draw(boxes_in(30, 40))
    volume = data.draw(st.booleans())
    if not volume:
        boxes[:, [2, 5]] = 0
    found, expected = Nesting.of(flat(boxes), boxes[:, [2, 5]] if volume else None), Naive.of(boxes)
    assert [found.containers(i).tolist() for i in range(len(boxes))] == expected.inside
    assert [rank > 0 for rank in found.ranks] == [any(row) for row in expected.inside]


@pytest.mark.parametrize(
    ("box", "other", "nested"),
    [
        ((0, 0, 99, 1), (10, 0, 400, 9), True),  # 90 of 100 columns lie in the other
        ((0, 0, 99, 1), (11, 0, 400, 9), False),  # 89
        ((0, 0, 79, 1), (0, 0, 99, 1), False),  # 80 % of its size
        ((0, 0, 78, 1), (0, 0, 99, 1), True),  # 79 %
        ((5, 5, 40, 40), (5, 5, 40, 40), False),  # equal
        ((0, 0, 99, 99), (20, 20, 30, 30), False),  # the other way round
        ((0, 0, 9, 9), (20, 20, 300, 300), False),  # apart, below in x and in y
        ((2, 2, 0, 5, 5, 9), (0, 0, 1, 9, 9, 9), True),  # 9 of 10 slices
        ((2, 2, 0, 5, 5, 9), (0, 0, 2, 9, 9, 9), False),  # 8
        ((0, 0, 0, 9, 9, 7), (0, 0, 0, 9, 9, 9), False),  # 80 % of its slices
        ((0, 0, 0, 9, 9, 6), (0, 0, 0, 9, 9, 9), True),  # 70 %
        ((2, 2, 3, 5, 5, 3), (0, 0, 0, 9, 9, 2), False),  # on other slices
    ],
)
def test_the_limits_are_exact(box, other, nested):
    corners = np.array([box, other], np.int64)
    halves = np.split(corners, 2, axis=1)
    z = np.stack([half[:, 2] for half in halves], axis=1) if len(box) == 6 else None
    found = Nesting.of(np.concatenate([half[:, :2] for half in halves], axis=1), z)
    assert found.containers(0).tolist() == [False, nested]


def test_turns_go_from_the_largest_to_the_smallest_and_by_number_among_equals():
    boxes = np.array([[5, 5, 9, 9], [0, 0, 99, 99], [20, 5, 24, 9], [3, 3, 30, 30], [40, 40, 44, 44]])
    nesting = Nesting.of(boxes)
    assert nesting.ranks.tolist() == [2, 0, 3, 1, 4]
    assert nesting.in_turn(np.array([0, 2, 3, 4])).tolist() == [3, 0, 2, 4]
    assert nesting.containers(0).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("asked", "propagate", "rule"),
    [
        (None, False, "nested"),
        ("nested", False, "nested"),
        ("argmax", False, "argmax"),
        (None, True, None),
    ],
)
def test_nested_is_the_default_and_propagate_merges_by_no_rule(asked, propagate, rule):
    assert Method(merge=asked, propagate=propagate).merge == rule


def test_unknown_rules_and_a_rule_beside_propagate_are_refused(bundle):
    segmenter = Segmenter(bundle, Drawn())
    image, box = np.zeros((30, 30), np.uint8), [[2, 2, 9, 9]]
    with pytest.raises(UsageError, match="merge: no 'vote'; choose nested or argmax"):
        segmenter.segment(image, box, merge="vote")
    with pytest.raises(UsageError, match="merge argmax does not go with propagate"):
        segmenter.segment(image, box, merge="argmax", propagate=True)


# What becomes of it


def merged(
    frame: Frame,
    logits: Planes,
    boxes: Corners,
    at_once: int,
    rule: str = "nested",
    crops: Corners | None = None,
) -> NDArray[np.uint8]:
    """The label map of boxes (N, 4) that are added in chunks."""
    labels = np.zeros((frame.height, frame.width), np.uint8)
    merge = RunningMerge(labels, Nesting.of(boxes) if rule == "nested" else None)
    for chunk in merge.chunks(np.arange(len(boxes)), at_once):
        merge.add(LogitResizer(frame), logits[chunk], chunk + 1, None if crops is None else crops[chunk])
    merge.finish()
    return labels


@settings(deadline=None, max_examples=150)
@given(height=st.integers(3, 150), width=st.integers(3, 150), crop=st.booleans(), data=st.data())
def test_an_image_equals_the_definition_whatever_the_chunks(height, width, crop, data):
    boxes = data.draw(boxes_in(height, width))
    boxes[:, [2, 5]] = 0
    frame = Frame.of(height, width, SIZE)
    logits = np.stack([plane_of(data.draw(st.integers(0, 99)), box) for box in flat(boxes)])
    planes = {i: LogitResizer(frame).resize(plane) for i, plane in enumerate(logits)}
    if crop:
        planes = {i: cropped(plane, flat(boxes)[i]) for i, plane in planes.items()}
    crops = flat(boxes) if crop else None
    for rule in ("nested", "argmax"):
        expected = Naive.of(boxes).merge(planes, (height, width), rule)
        for at_once in (1, data.draw(st.integers(2, 6)), len(boxes)):
            # All at once, band by band at the end, or so until there are too many boxes.
            bands = ((height * width, 8), (2 * width, 0), (1, height * width // (4 * SIZE**2)))
            band, parts = data.draw(st.sampled_from(bands))
            with unittest.mock.patch.multiple("litemed.runtime.merge", BAND_PIXELS=band, WAITING_PARTS=parts):
                found = merged(frame, logits, flat(boxes), at_once, rule, crops)
            np.testing.assert_array_equal(found, expected)


def cropped(plane: Planes, box: Corners) -> Planes:
    x0, y0, x1, y1 = box
    inside = np.full_like(plane, -1)
    inside[y0 : y1 + 1, x0 : x1 + 1] = plane[y0 : y1 + 1, x0 : x1 + 1]
    return inside


@settings(deadline=None, max_examples=60)
@given(height=st.integers(3, 90), width=st.integers(4, 90), crop=st.booleans(), data=st.data())
def test_a_volume_equals_the_definition_with_boxes_compared_as_a_whole(height, width, crop, data, bundle):
    boxes = data.draw(boxes_in(height, width, most=9))  # more than are decoded at once
    shape, frame = (DEPTH, height, width), Frame.of(height, width, SIZE)
    prompts, naive = scale_boxes(flat(boxes), frame), Naive.of(boxes)
    volume = np.zeros(shape, np.uint8)
    for rule in ("nested", "argmax"):
        expected, encoded = np.zeros(shape, np.int64), 0
        for z in range(DEPTH):
            here = [i for i in range(len(boxes)) if boxes[i, 2] <= z <= boxes[i, 5]]
            encoded += bool(here)
            planes = {i: LogitResizer(frame).resize(plane_of(encoded, prompts[i])) for i in here}
            if crop:
                planes = {i: cropped(plane, flat(boxes)[i]) for i, plane in planes.items()}
            expected[z] = naive.merge(planes, shape[1:], rule)
        found = Segmenter(bundle, Drawn()).segment(
            volume, boxes, merge=rule, volume="box", zoom="off", crop_masks=crop
        )
        np.testing.assert_array_equal(found, expected)


def everywhere(count: int, value: float = 1) -> Planes:
    return np.full((count, SIZE, SIZE), value, np.float32)


def in_boxes(boxes: Corners, *values: float) -> Planes:
    """Logits that are one value within a box and -1 around it, for an image of SIZE x SIZE."""
    planes = everywhere(len(boxes), -1)
    for plane, (x0, y0, x1, y1), value in zip(planes, boxes.tolist(), values, strict=True):
        plane[y0 : y1 + 1, x0 : x1 + 1] = value
    return planes


SQUARE = Frame.of(SIZE, SIZE, SIZE)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_chain_of_three_keeps_all_three(order):
    chain = np.array([[4, 4, 59, 59], [10, 10, 49, 49], [20, 20, 29, 29]])
    boxes, logits = chain[list(order)], in_boxes(chain, 9, 5, 1)[list(order)]
    labels = merged(SQUARE, logits, boxes, 2)
    expected = np.zeros((SIZE, SIZE), int)
    for i, (x0, y0, x1, y1) in enumerate(chain.tolist()):
        expected[y0 : y1 + 1, x0 : x1 + 1] = order.index(i) + 1
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(merged(SQUARE, logits, boxes, 2, "argmax"))) == {0, order.index(0) + 1}


def test_a_nested_box_out_of_turn_is_refused():
    boxes = np.array([[20, 20, 29, 29], [0, 0, 63, 63], [10, 10, 40, 40]])
    for order in ([0, 1], [0, 2]):
        merge = RunningMerge(np.zeros((SIZE, SIZE), np.uint8), Nesting.of(boxes))
        with pytest.raises(ValueError, match=f"box {order[1] + 1} is merged after its turn"):
            merge.add(LogitResizer(SQUARE), everywhere(2), np.array(order) + 1)


def test_on_a_real_engine_the_inner_object_is_found_by_default(box_bundle):
    """Masks are the boxes here, and the outer one's logits are larger: argmax loses the inner one."""
    segmenter = litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)
    boxes = [[60, 50, 100, 90], [20, 20, 180, 180]]
    image = np.zeros((200, 200), np.uint8)
    labels = segmenter.segment(image, boxes)
    assert (labels[52:89, 62:99] == 1).all()
    assert (labels == 1).sum() < 42 * 42
    assert set(np.unique(segmenter.segment(image, boxes, merge="argmax"))) == {0, 2}
    # In a volume the inner one is nested only if it is so as a whole.
    flat_one, deep = [[60, 50, 1, 100, 90, 1], [20, 20, 0, 180, 180, 2]], np.zeros((3, 200, 200), np.uint8)
    np.testing.assert_array_equal(segmenter.segment(deep, flat_one, volume="box")[1], labels)
    reaching = [[60, 50, 0, 100, 90, 2], [20, 20, 1, 180, 180, 2]]
    assert set(np.unique(segmenter.segment(deep, reaching, volume="box")[1:])) == {0, 2}


def test_a_box_that_reaches_the_edge_counts_as_it_is_kept():
    """An x1 of the image's width, one past the last column, is part of the box."""
    boxes = Boxes.parse([[0, 0, 79, 9], [0, 0, 100, 9]], (10, 100))
    assert Nesting.of(boxes.xyxy).ranks.tolist() == [1, 0]

"""Boxes looser than their objects: the second decoder's mask says where the first one looks."""

import numpy as np
import pytest

from litemed.runtime.boxes import Boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.method import Method
from litemed.runtime.preprocess import Frame
from litemed.runtime.refit import MOST_SHARE, refit
from litemed.runtime.segmenter import Segmenter

SIZE = 256


class Filler:
    """An engine that fills the box it is given; its decoder for loose boxes finds what is bright in it."""

    name, version, threads = "filler", "0", 1
    decoders = ("decoder", "loose_decoder")

    def __init__(self) -> None:
        self.decoded = {False: 0, True: 0}

    def encode(self, image: np.ndarray) -> np.ndarray:
        return image

    def decode(self, embedding: np.ndarray, boxes: np.ndarray, decoder: str = "decoder") -> tuple:
        self.decoded[decoder == "loose_decoder"] += len(boxes)
        y, x = np.mgrid[:SIZE, :SIZE]
        inside = [(x0 <= x) & (x < x1) & (y0 <= y) & (y < y1) for x0, y0, x1, y1 in boxes]
        masks = np.stack(inside) & ((embedding[0, 0] > 0.5) | (decoder == "decoder"))
        return np.where(masks, np.float32(9), np.float32(-9)), np.zeros(len(boxes), np.float32)


@pytest.fixture
def filler(box_bundle) -> Segmenter:
    return Segmenter(Bundle.open(box_bundle).released(), Filler())


def square(shape: tuple[int, ...], x0: int, y0: int, side: int) -> np.ndarray:
    image = np.full(shape, 10, np.uint8)
    image[..., y0 : y0 + side, x0 : x0 + side] = 250
    return image


@pytest.mark.parametrize(("box_fit", "side"), [(None, 40), ("drawn", 40), ("tight", 80)])
def test_a_loose_box_gives_the_mask_of_its_object(box_fit, side, filler):
    labels = filler.segment(square((256, 256), 100, 80, 40), [[90, 60, 170, 140]], box_fit=box_fit)
    assert np.count_nonzero(labels) == side**2
    assert (labels[80:120, 100:140] == 1).all()
    assert filler.engine.decoded == {False: 1, True: int(box_fit != "tight")}


def test_a_tight_box_is_taken_as_it_is(filler):
    share = int(40 * MOST_SHARE**0.5) + 1  # a mask as large as that might be all of the object
    labels = filler.segment(square((256, 256), 100, 80, share), [[100, 80, 140, 120]])
    assert np.count_nonzero(labels) == 40**2


def test_a_box_within_another_is_taken_as_it_is(filler):
    image = square((256, 256), 100, 80, 20)
    labels = filler.segment(image, [[20, 20, 200, 200], [90, 70, 150, 130]])
    assert np.count_nonzero(labels == 2) == 60**2
    assert filler.engine.decoded == {False: 2, True: 1}


def test_what_it_takes_is_known_beforehand(filler):
    volume = square((12, 256, 256), 100, 80, 30)
    boxes = [[90, 70, 2, 150, 130, 8], [100, 75, 3, 120, 100, 5], [10, 10, 0, 60, 60, 11]]
    case = Case("v", volume, Boxes.parse(boxes, volume.shape))
    for method in (Method(), Method(box_fit="tight"), Method(volume="box"), Method(propagate=True)):
        plan, result = filler.plan(case, method), filler.run(case, method)
        if not method.propagate:
            assert (plan.encodings, plan.decodings) == (result.encodings, result.decodings)
        assert method.box_fit is None or plan.refitted.any() == (method.box_fit == "drawn")
    image = square((1024, 1024), 500, 500, 20)
    case = Case("i", image, Boxes.parse([[490, 490, 540, 540]], image.shape))
    plan, result = filler.plan(case, Method()), filler.run(case, Method())
    assert len(plan.tiles) == 1
    assert (plan.encodings, plan.decodings) == (result.encodings, result.decodings) == (2, 3)
    assert np.count_nonzero(result.labels) == pytest.approx(400, abs=50)


def test_a_mask_says_its_box_without_strays_and_padding():
    frame = Frame.of(128, 256, SIZE)
    logits = np.full((4, SIZE, SIZE), -1, np.float32)
    logits[:, 20:60, 30:90] = 1
    logits[0, 110, 250] = 1  # one stray of 2,401 pixels
    logits[1, 200:, :] = 1  # not of the image
    logits[2] = -1
    prompts = np.array([[10, 0, 120, 100]] * 3 + [[30, 20, 90, 62]], np.float32)
    expected = [[30, 20, 90, 60], [30, 20, 90, 60], prompts[2], prompts[3]]
    found, tight = refit(logits, prompts, frame)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    assert tight.tolist() == [False, False, True, True]  # of one without a mask nothing is known

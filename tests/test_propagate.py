"""`propagate` is the published baseline's way, with every slice encoded as seldom as can be."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import litemed.runtime
from litemed.runtime import propagate
from litemed.runtime.boxes import Boxes, scale_boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.method import Method
from litemed.runtime.preprocess import Frame, preprocess
from litemed.runtime.resize import LogitResizer
from litemed.runtime.segmenter import Segmenter

Image = NDArray[np.uint8]
Prompt = NDArray[np.float32]


class Blobs:
    """An engine whose mask depends on the slice and on the prompt: bright pixels within an enlarged box.

    Some slices are dark: there every mask is empty.
    """

    name, version, threads = "blobs", "0", 1
    decoders = ("decoder",)

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, image: Prompt) -> Prompt:
        self.encoded += 1
        # (1, 3, 256, 256) for (1, 256, 64, 64): the sizes hold, and `decode` turns it back.
        padded = np.zeros((1, 256, 64, 64), np.float32)
        padded.reshape(-1)[: image.size] = image.reshape(-1)
        return padded

    def decode(self, embedding: Prompt, boxes: Prompt, decoder: str = "decoder") -> tuple[Prompt, Prompt]:
        assert len(boxes) == 1, "one box at a time"
        grey = embedding.reshape(-1)[: 256 * 256].reshape(256, 256)
        across = np.arange(256)
        x0, y0, x1, y1 = boxes[0]
        inside = ((across >= x0 - 5) & (across <= x1 + 2)) & ((across >= y0 - 2) & (across <= y1 + 5))[
            :, None
        ]
        logits = np.where(inside, grey - 0.6, np.float32(-1)).astype(np.float32)
        return logits[None], np.zeros(1, np.float32)


def mask_of(engine: Blobs, embedding: Prompt, prompt: Prompt, frame: Frame) -> NDArray[np.bool_]:
    logits, _ = engine.decode(embedding, prompt[None].astype(np.float32))
    return LogitResizer(frame).resize(logits[0]) > 0


def as_published(engine: Blobs, volume: Image, boxes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The published loops, one box after the other, with both ends of z included."""
    frame = Frame.of(*volume.shape[1:])
    out = np.zeros(volume.shape, np.uint8)
    for number, (x0, y0, z0, x1, y1, z1) in enumerate(boxes.tolist(), start=1):
        segmented = np.zeros(volume.shape, np.uint8)
        original = scale_boxes(np.array([[x0, y0, x1, y1]]), frame)[0]
        middle = int((z1 - z0) / 2 + z0)

        def prompt_after(plane: Image, original: Prompt = original) -> Prompt:
            size = (frame.scaled_width, frame.scaled_height)
            small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
            if small.max() == 0:
                return original
            rows, columns = np.where(small > 0)
            box = [columns.min() - 3, rows.min() - 3, columns.max() + 3, rows.max() + 3]
            return np.clip(box, 0, 256).astype(np.float32)

        order = [*range(middle, z1 + 1), *range(middle - 1, z0 - 1, -1)]
        for z in order:
            before = z - 1 if z > middle else z + 1
            prompt = original if z == middle else prompt_after(segmented[before])
            embedding = engine.encode(preprocess(volume[z])[0])
            segmented[z][mask_of(engine, embedding, prompt, frame)] = number
        out[segmented > 0] = number
    return out


def phantom(shape: tuple[int, int, int], seed: int) -> Image:
    """Smooth noise, with a dark slice here and there."""
    rng = np.random.default_rng(seed)
    slices = [cv2.GaussianBlur(rng.random(shape[1:]).astype(np.float32), (0, 0), 4) for _ in range(shape[0])]
    volume = np.stack(slices)
    volume = (255 * (volume - volume.min()) / (volume.max() - volume.min())).astype(np.uint8)
    volume[rng.random(shape[0]) < 0.2] = 0
    return volume


def boxes_in(shape: tuple[int, int, int], count: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, [shape[2] - 20, shape[1] - 20], (count, 2))
    high = low + rng.integers(8, 20, (count, 2))
    z = np.sort(rng.integers(0, shape[0], (count, 2)), axis=1)
    return np.concatenate([low, z[:, :1], high, z[:, 1:]], axis=1)


@pytest.fixture(scope="module")
def with_engine(box_bundle):
    bundle = litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1).bundle
    return lambda engine: Segmenter(bundle, engine)


@settings(deadline=None, max_examples=25)
@given(depth=st.integers(1, 14), side=st.integers(30, 90), count=st.integers(1, 5), seed=st.integers(0, 999))
def test_a_volume_equals_the_published_loops(depth, side, count, seed, with_engine):
    shape = (depth, side, 70)
    volume, boxes = phantom(shape, seed), boxes_in(shape, count, seed)
    labels = with_engine(Blobs()).segment(volume, boxes, propagate=True)
    np.testing.assert_array_equal(labels, as_published(Blobs(), volume, boxes))


@pytest.mark.parametrize("keep", [0, 1, 3, 32])
def test_slices_are_encoded_once_as_far_as_embeddings_are_kept(keep, with_engine, monkeypatch):
    monkeypatch.setattr(propagate, "KEPT_EMBEDDINGS", keep)
    shape = (12, 50, 60)
    volume = phantom(shape, 3)
    boxes = np.array([[5, 5, 0, 25, 25, 7], [20, 20, 4, 40, 40, 11], [8, 20, 6, 30, 45, 6]])
    engine = Blobs()
    calls: list[tuple[int, int]] = []
    result = with_engine(engine).run(
        Case("v", volume, Boxes.parse(boxes, shape)),
        Method(propagate=True),
        progress=lambda *call: calls.append(call),
    )
    up, down = set(range(3, 12)), {0, 1, 2, 4, 5, 6}
    again = max(0, len(up & down) - keep)
    assert engine.encoded == result.encodings == len(up | down) + again
    assert result.decodings == 8 + 8 + 1
    assert calls == [(done, 15) for done in range(1, 16)]
    np.testing.assert_array_equal(result.labels, as_published(Blobs(), volume, boxes))


@pytest.mark.parametrize("shape", [(70, 90), (300, 200, 3)])
def test_in_an_image_a_later_box_overwrites_an_earlier_one(shape, with_engine):
    slices = phantom((5, shape[0], shape[1]), 1)
    grey = slices[slices.any(axis=(1, 2))][0]
    picture = grey if len(shape) == 2 else np.repeat(grey[..., None], 3, axis=2)
    boxes = np.array([[5, 5, 50, 50], [20, 20, 60, 60], [10, 30, 40, 65]])
    engine, frame = Blobs(), Frame.of(*shape[:2])
    expected = np.zeros(shape[:2], np.uint8)
    embedding = engine.encode(preprocess(picture)[0])
    for number, prompt in enumerate(scale_boxes(boxes, frame), start=1):
        expected[mask_of(engine, embedding, prompt, frame)] = number
    assert len(np.unique(expected)) == 4
    np.testing.assert_array_equal(with_engine(Blobs()).segment(picture, boxes, propagate=True), expected)


class Sure(Blobs):
    """The same, less sure of slices whose first pixel is bright."""

    def decode(self, embedding: Prompt, boxes: Prompt, decoder: str = "decoder") -> tuple[Prompt, Prompt]:
        logits, _ = super().decode(embedding, boxes, decoder)
        return logits, 0.9 - embedding.reshape(-1)[:1]


def test_a_box_on_one_slice_is_followed_until_the_network_is_less_sure(box_bundle):
    volume = np.zeros((20, 256, 256), np.uint8)
    for z in range(2, 18):
        volume[z, 100 + 2 * (z - 9) : 130, 80:120] = 250
        volume[z, 0, 0] = 0 if 5 <= z <= 12 else 25
    engine = Sure()
    segmenter = Segmenter(Bundle.open(box_bundle), engine)
    box, still = [80, 100, 120, 130, 9], [80, 100, 9, 120, 130, 9]
    found = segmenter.segment(volume, [box], propagate=True)
    expected = np.zeros_like(volume)
    expected[5:13] = volume[5:13] == 250
    np.testing.assert_array_equal(found, expected)
    assert engine.encoded == 10  # one more on either side
    for boxes, method in (([box], {"volume": "box"}), ([still], {"propagate": True})):
        found = segmenter.segment(volume, boxes, **method)
        assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [9]

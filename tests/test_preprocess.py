"""The network's input is the published one."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litemed.runtime.boxes import scale_boxes
from litemed.runtime.preprocess import Frame, preprocess

SIDES = st.integers(1, 700)


def as_published(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The published steps one after the other, for an (H, W, 3) image: (256, 256, 3) float64."""
    scale = 256 / max(image.shape[:2])
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    normal = (resized - resized.min()) / np.clip(resized.max() - resized.min(), a_min=1e-8, a_max=None)
    return np.pad(normal, ((0, 256 - height), (0, 256 - width), (0, 0)))


def noise(height: int, width: int, channels: int | None, seed: int) -> NDArray[np.uint8]:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(20, 230, shape, np.uint8)


def test_golden_image_and_boxes(shared):
    expected = np.load(shared("golden/expected.npz"))
    case = np.load(shared("golden/cases/2DBox_Golden_five.npz"))
    image, frame = preprocess(case["imgs"])
    np.testing.assert_allclose(image, expected["image"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(scale_boxes(case["boxes"], frame), expected["boxes"])


@settings(deadline=None, max_examples=50)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_equals_the_published_steps_enlarged_or_reduced(height, width, seed):
    image = noise(height, width, 3, seed)
    if min(height, width) * 256 / max(height, width) < 0.5:
        return  # the published code has no answer here; see test_no_side_vanishes
    ours, _ = preprocess(image)
    np.testing.assert_allclose(ours[0].transpose(1, 2, 0), as_published(image), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_grey_equals_the_same_in_three_channels(height, width, seed):
    grey = noise(height, width, None, seed)
    colour = np.repeat(grey[:, ::-1, None], 3, axis=2)
    np.testing.assert_array_equal(preprocess(grey[:, ::-1])[0], preprocess(colour)[0])


def test_constant_image_becomes_zeros():
    for value in (0, 7, 255):
        assert not preprocess(np.full((40, 30), value, np.uint8))[0].any()


@pytest.mark.parametrize("shape", [(1, 2000), (3000, 2), (1, 1), (1, 1, 3)])
def test_no_side_vanishes(shape):
    picture = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)
    image, frame = preprocess(picture)
    assert min(frame.scaled_height, frame.scaled_width) >= 1
    assert max(frame.scaled_height, frame.scaled_width) == 256
    assert np.isfinite(image).all()


@pytest.mark.parametrize("shape", [(300, 420), (300, 420, 3)])
def test_input_is_float32_in_range_and_padded_with_zeros(shape):
    image, frame = preprocess(noise(shape[0], shape[1], 3 if len(shape) == 3 else None, 0))
    assert (image.shape, image.dtype) == ((1, 3, 256, 256), np.float32)
    assert image.flags.c_contiguous
    assert (image.min(), image.max()) == (0, 1)
    assert (frame.scaled_height, frame.scaled_width) == (183, 256)
    assert not image[:, :, 183:].any()
    assert image[:, :, 182].any()


@given(
    height=SIDES,
    width=SIDES,
    box=st.lists(st.integers(0, 700), min_size=4, max_size=4),
)
def test_boxes_are_truncated_as_published(height, width, box):
    ratio = 256 / max(height, width)
    ours = scale_boxes(np.array([box], np.int64), Frame.of(height, width))
    assert ours.dtype == np.float32
    assert ours[0].tolist() == [int(value * ratio) for value in box]

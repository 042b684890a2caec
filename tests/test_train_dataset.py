"""A sample is what the runtime would feed the network, with boxes and masks of the same objects."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.benchmarks.phantoms import draw_image
from litemed.runtime.errors import InputError
from litemed.runtime.preprocess import Frame, preprocess, scale_boxes
from litemed.train.config import Augmentation, Prompts, Sampling
from litemed.train.dataset import (
    Sample,
    Skipped,
    TrainingSet,
    by_source,
    collate,
    make_sample,
    resize_slice,
    square_part,
)
from litemed.train.prepare.store import SliceInfo
from litemed.train.prompts import as_if_finer, choose, find_boxes, jitter
from litemed.train.sampler import Draw

NO_CHANGE = Augmentation(flip_horizontal=0, flip_vertical=0)
TIGHT = Prompts(per_image=100, jitter_pixels=0)
STRONG = Augmentation(affine=1, elastic=1, intensity_curve=1, invert=0.5, mix_channels=1, blur=1, noise=1)


class Pictures:
    """Slices in memory: `count` drawn images of three objects, of which number `broken` has none."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        drawn = [draw_image(64, 96, 3, seed=seed) for seed in range(count)]
        self._items = [(phantom.image, phantom.labels) for phantom in drawn]
        if broken is not None:
            self._items[broken] = (self._items[broken][0], np.zeros((64, 96), np.uint8))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self._items[i]

    def info(self, i: int) -> SliceInfo:
        return SliceInfo("US", "drawn", "train", f"picture{i}", 0, 3)

    def indices_by_modality(self) -> dict[str, np.ndarray]:
        return {"US": np.arange(len(self))}


def sample(image, labels, size=64, prompts=TIGHT, augmentation=NO_CHANGE, seed=0) -> Sample:
    return make_sample(image, labels, size, prompts, augmentation, np.random.default_rng(seed))


@pytest.mark.parametrize("shape", [(64, 96), (256, 200), (31, 17), (256, 256)])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_image_is_what_the_runtime_makes(shape, size):
    phantom = draw_image(*shape, 1, seed=1)
    for image in (phantom.image, np.ascontiguousarray(phantom.image[..., 0])):
        made = sample(image, phantom.labels, size)
        assert np.array_equal(made.image, preprocess(image, size)[0][0])


@pytest.mark.parametrize("size", [64, 256])
def test_unchanged_boxes_are_the_runtimes_to_the_pixel_that_resizing_costs(size):
    phantom = draw_image(256, 180, 4, seed=2)
    made = sample(phantom.image, phantom.labels, size)
    frame = preprocess(phantom.image, size)[1]
    assert np.abs(made.boxes - scale_boxes(phantom.boxes, frame)).max() <= (0 if size == 256 else 1)
    for mask, label in zip(made.masks, range(1, 5), strict=True):
        whole = cv2.resize((phantom.labels == label).astype(np.float32), (int(180 * size / 256), size))
        assert np.abs(mask[:, : whole.shape[1]] - whole).mean() < 0.02
        assert not mask[:, whole.shape[1] :].any()


@given(seed=st.integers(0, 10**6), size=st.sampled_from([64, 128]), strong=st.booleans())
@settings(max_examples=40, deadline=None)
def test_masks_lie_in_their_boxes_whatever_is_changed(seed, size, strong):
    phantom = draw_image(96, 72, 3, seed=seed % 7)
    augmentation = STRONG if strong else Augmentation()
    made = sample(phantom.image, phantom.labels, size, TIGHT, augmentation, seed)
    assert made.image.shape == (3, size, size)
    assert made.image.min() >= 0
    assert made.image.max() <= 1
    assert len(made.boxes) == len(made.masks) >= 1
    for mask, box in zip(made.masks, made.boxes, strict=True):
        y, x = np.nonzero(mask)
        tight = [x.min(), y.min(), max(x.max(), x.min() + 1), max(y.max(), y.min() + 1)]
        assert box.tolist() == tight
        assert len(x) >= TIGHT.min_object_pixels
    assert made.masks.sum(0).max() == 1


@given(
    seed=st.integers(0, 10**6),
    pixels=st.integers(0, 20),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    size=st.sampled_from([64, 256]),
)
@settings(max_examples=60, deadline=None)
def test_jittered_boxes_stay_within_reach_and_image(seed, pixels, share, size):
    random = np.random.default_rng(seed)
    height, width = 50, 64
    low = np.stack([random.integers(0, width - 1, 30), random.integers(0, height - 1, 30)], axis=1)
    high = np.stack([random.integers(low[:, 0] + 1, width), random.integers(low[:, 1] + 1, height)], axis=1)
    tight = np.concatenate([low, high], axis=1)
    boxes = jitter(tight, (height, width), Prompts(jitter_pixels=pixels, jitter_share=share), size, random)
    assert boxes.dtype == np.float32
    assert np.array_equal(boxes, np.trunc(boxes))
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [width, height]).all()
    if share == 0:
        reach = pixels * size / 256
        assert (boxes[:, :2] <= low).all()
        assert (boxes[:, 2:] >= high).all()
        assert (low - boxes[:, :2] <= reach + 1).all()
        assert (boxes[:, 2:] - high <= reach + 1).all()


def test_boxes_as_of_finer_images_are_a_pixel_wider_at_most():
    tight = np.array([[100, 100, 150, 160], [7, 0, 8, 1]])
    apart = np.stack([as_if_finer(tight, np.random.default_rng(seed)) - tight for seed in range(3000)])
    one, at_the_edge = apart[:, 0], apart[:, 1]
    assert one.min(0).tolist() == [-1, -1, 0, 0]
    assert one.max(0).tolist() == [0, 0, 1, 1]
    assert one.mean(0) == pytest.approx([-0.2, -0.2, 0.2, 0.2], abs=0.03)
    assert (at_the_edge[:, 1] == 0).all()
    many = np.tile(tight[:1], (100, 1))
    moved = jitter(many, (256, 256), Prompts(jitter_pixels=0, finer=1.0), 256, np.random.default_rng(1))
    assert np.abs(moved - many).max() == 1


@pytest.mark.parametrize("side", [300, 500, 1100])
def test_the_runtime_makes_boxes_of_finer_images_wider_as_presumed(side):
    """By half of what a pixel of the input is larger than the image's, on each side."""
    random = np.random.default_rng(0)
    apart = []
    for _ in range(300):
        x0, y0, x1, y1 = (*random.integers(10, side // 2, 2), *random.integers(side // 2 + 10, side - 10, 2))
        labels = np.zeros((side, side), np.uint8)
        labels[y0 : y1 + 1, x0 : x1 + 1] = 1
        _, at_input = resize_slice(labels, labels, 256)
        scaled = scale_boxes(np.array([[x0, y0, x1, y1]]), Frame.of(side, side, 256))
        apart.append((scaled[0] - find_boxes(at_input).xyxy[0]) * [-1, -1, 1, 1])
    assert np.mean(apart) == pytest.approx((1 - 256 / side) / 2, abs=0.05)


def test_by_default_edges_move_outwards_by_0_to_5_pixels_at_256():
    tight = np.tile([[100, 100, 150, 160]], (3000, 1))
    boxes = jitter(tight, (256, 256), Prompts(), 256, np.random.default_rng(0))
    moved = np.abs(boxes - tight).astype(int)
    assert np.bincount(moved.ravel()).tolist() == pytest.approx([2000] * 6, rel=0.12)


def test_shares_move_edges_either_way():
    tight = np.tile([[100, 100, 200, 120]], (2000, 1))
    prompts = Prompts(jitter_pixels=0, jitter_share=0.1)
    moved = jitter(tight, (256, 256), prompts, 256, np.random.default_rng(0)) - tight
    assert moved[:, 0].min() == -10
    assert moved[:, 0].max() >= 9
    assert np.abs(moved[:, 1]).max() == 2


@pytest.mark.parametrize("size", [64, 128, 256])
def test_jitter_tends_to_no_side(size):
    """Also where the shifts are smaller than a pixel: a box of 8 pixels moves by up to 0.8."""
    tight = np.tile([[20, 20, 28, 30]], (20_000, 1))
    random = np.random.default_rng(0)
    share = jitter(tight, (size, size), Prompts(jitter_pixels=0, jitter_share=0.1), size, random) - tight
    assert share.mean(0) == pytest.approx(np.zeros(4), abs=0.02)
    published = jitter(tight, (size, size), Prompts(), size, random) - tight
    assert published.mean(0) == pytest.approx(np.array([-2.5, -2.5, 2.5, 2.5]) * size / 256, abs=0.05)


def test_labels_are_moved_before_they_are_made_small():
    """Turned by 45 degrees at 256 pixels, a disc of 40 keeps its area at 64 to a few pixels."""
    y, x = np.mgrid[:256, :256]
    labels = ((x - 128) ** 2 + (y - 128) ** 2 < 40**2).astype(np.uint8)
    turned = Augmentation(
        flip_horizontal=0, flip_vertical=0, affine=1.0, rotation_degrees=45.0, scale_factor=1.0
    )
    whole = sample(labels * 200, labels).masks
    areas = [sample(labels * 200, labels, augmentation=turned, seed=seed).masks.sum() for seed in range(20)]
    assert np.abs(np.array(areas, int) - int(whole.sum())).max() <= 4


def test_slices_are_parted_by_their_source():
    class Sources(Pictures):
        def info(self, i: int) -> SliceInfo:
            return SliceInfo("US", "ab"[i % 2], "train", f"picture{i}", 0, 3)

    parted = by_source(Sources(5), np.array([4, 1, 2, 3]))
    assert [part.tolist() for part in parted] == [[4, 2], [1, 3]]


def test_objects_are_chosen_without_repetition_and_equally_often():
    labels = np.repeat(np.arange(7, dtype=np.uint16), 10).reshape(7, 10)
    objects = find_boxes(labels)
    random = np.random.default_rng(0)
    chosen = [choose(objects, 2, random) for _ in range(600)]
    assert all(len(set(found.numbers.tolist())) == 2 for found in chosen)
    counts = np.bincount(np.concatenate([found.numbers for found in chosen]))[1:]
    assert counts.tolist() == pytest.approx([200] * 6, rel=0.3)
    for found in chosen[:20]:
        for number, box in zip(found.numbers, found.xyxy, strict=True):
            assert box[1] == number  # its row


def test_small_objects_are_left_out_and_lines_get_a_box_with_an_area():
    labels = np.zeros((20, 20), np.uint8)
    labels[2, 3:9] = 1
    labels[10, 10] = 2
    labels[15:18, 19] = 5
    assert find_boxes(labels).numbers.tolist() == [1, 2, 5]
    assert find_boxes(labels).xyxy.tolist() == [[3, 2, 8, 3], [10, 10, 11, 11], [19, 15, 20, 17]]
    assert find_boxes(labels, min_pixels=3).numbers.tolist() == [1, 5]
    assert len(find_boxes(np.zeros((5, 5), np.uint8))) == 0


@pytest.mark.parametrize("shape", [(256, 256), (256, 180), (100, 256), (256, 31)])
def test_resized_labels_lie_where_the_resized_image_lies(shape):
    """The middle of a disc is the same in both: half a pixel would be seen."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    disc = np.hypot(y - shape[0] * 0.45, x - shape[1] * 0.55) < min(shape) * 0.3
    image, labels = resize_slice((disc * 250).astype(np.uint8), disc.astype(np.uint8), 64)
    assert image.shape == labels.shape
    for axis in np.mgrid[0 : labels.shape[0], 0 : labels.shape[1]]:
        assert np.average(axis, weights=image) == pytest.approx(np.average(axis, weights=labels), abs=0.25)


def test_an_object_turned_out_of_the_image_brings_back_the_unchanged_slice():
    labels = np.zeros((64, 64), np.uint8)
    labels[:3, :3] = 1
    image = (labels * 200).astype(np.uint8)
    away = Augmentation(flip_horizontal=0, flip_vertical=0, affine=1, rotation_degrees=45, scale_factor=4)
    for seed in range(20):
        assert len(sample(image, labels, 64, TIGHT, away, seed).boxes) == 1


@pytest.mark.parametrize(
    ("image", "labels", "words"),
    [
        (np.zeros((8, 8), np.float32), np.ones((8, 8), np.uint8), "float32"),
        (np.zeros((8, 8, 4), np.uint8), np.ones((8, 8), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((8, 8), np.uint8), np.ones((8, 9), np.uint8), r"labels of shape \(8, 9\)"),
        (np.zeros((8, 8), np.uint8), np.ones((8, 8), np.int16), "int16"),
        (np.zeros((8, 8), np.uint8), np.full((8, 8), 70000, np.uint32), "70000"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), "no object"),
        (np.zeros((0, 8), np.uint8), np.zeros((0, 8), np.uint8), "labels of shape"),
    ],
)
def test_a_slice_that_cannot_be_used_says_why(image, labels, words):
    with pytest.raises(InputError, match=words):
        sample(image, labels)


def test_a_sample_follows_from_seed_epoch_and_position():
    data = TrainingSet(Pictures(3), 64, Prompts(), STRONG, seed=1)
    one, again = data[Draw(0, 5, 1)], data[Draw(0, 5, 1)]
    assert isinstance(one, Sample)
    assert isinstance(again, Sample)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.boxes, again.boxes)
    other_seed = TrainingSet(Pictures(3), 64, Prompts(), STRONG, seed=2)
    for other in (data[Draw(1, 5, 1)], data[Draw(0, 6, 1)], other_seed[Draw(0, 5, 1)]):
        assert isinstance(other, Sample)
        assert not np.array_equal(one.image, other.image)


def test_labels_give_way_to_regions_where_there_are_any():
    class Disc(Pictures):
        def __getitem__(self, i):
            y, x = np.ogrid[:120, :160]
            disc = np.hypot(y - 60, x - 80) < 25
            image = np.where(disc, 200, 40).astype(np.uint8) if i else np.full((120, 160), 40, np.uint8)
            labels = np.zeros((120, 160), np.uint8)
            labels[10:20, 10:30] = 1
            return image, labels

    def size_of_mask(i, regions):
        data = TrainingSet(Disc(2), 64, TIGHT, NO_CHANGE, seed=0, sampling=Sampling(regions=regions))
        masks = data[Draw(0, 0, i)].masks
        return [int(mask.sum()) for mask in masks]

    (labelled,) = size_of_mask(1, 0.0)
    assert labelled == 32
    disc = np.pi * (25 * 64 / 160) ** 2
    assert all(0.7 * disc < found < 1.4 * disc for found in size_of_mask(1, 1.0))
    assert size_of_mask(0, 1.0) == [32]  # nothing to be found


@pytest.mark.parametrize("shape", [(30, 90), (90, 30, 3)])
def test_a_square_part_shows_the_picture_undistorted(shape):
    picture = np.zeros(shape, np.uint8)
    picture[:] = np.arange(90).reshape((1, 90) if shape[0] == 30 else (90, 1, 1))
    seen = set()
    for seed in range(20):
        part = square_part(picture, 60, np.random.default_rng(seed))
        assert part.shape == (60, 60, *shape[2:])
        assert 28 <= int(part.max()) - int(part.min()) <= 30
        seen.add(int(part.min()) // 20)
    assert len(seen) >= 3


def test_a_bad_slice_is_named_and_the_others_go_on():
    data = TrainingSet(Pictures(3, broken=1), 64, TIGHT, NO_CHANGE, seed=0)
    batch = collate([data[Draw(0, i, i)] for i in range(3)], 64)
    assert batch.images == 2
    assert batch.skipped == ("US/drawn/picture1 slice 0: no object of at least 4 pixels at size 64",)
    assert batch.image.shape == (2, 3, 64, 64)
    assert batch.image_of_box.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.weights.sum() == pytest.approx(2)


def test_a_batch_of_bad_slices_only_weighs_nothing():
    batch = collate([Skipped("a"), Skipped("b")], 64)
    assert (batch.images, batch.skipped, batch.weights.tolist()) == (0, ("a", "b"), [0.0])
    assert batch.image.shape == (1, 3, 64, 64)
    assert batch.masks.shape == (1, 64, 64)


def test_every_image_of_a_batch_counts_the_same():
    data = TrainingSet(Pictures(2), 64, dataclasses.replace(TIGHT, per_image=1), NO_CHANGE, seed=0)
    rich = TrainingSet(Pictures(2), 64, TIGHT, NO_CHANGE, seed=0)
    batch = collate([data[Draw(0, 0, 0)], rich[Draw(0, 1, 1)]], 64)
    assert batch.weights.tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    assert torch.equal(batch.image_of_box, torch.tensor([0, 1, 1, 1]))

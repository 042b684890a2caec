"""Augmentation keeps image, labels and boxes on one another, and does what its name says."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.train.augment import (
    add_noise,
    bend_intensity,
    blur,
    flip,
    invert,
    mix_channels,
    move,
    positions,
    recolour,
    sample_at,
    shift,
    turn,
)
from litemed.train.config import Augmentation
from litemed.train.prompts import find_boxes


def augment(image, labels, settings, random):
    """Both kinds, one after the other."""
    image, labels = move(image, labels, settings, random)
    return recolour(image, settings, random), labels


OFF = Augmentation(flip_horizontal=0, flip_vertical=0)
GEOMETRIC = ("flip_horizontal", "flip_vertical", "affine", "elastic")
RECOLOURING = ("mix_channels", "intensity_curve", "invert", "blur", "noise")


def scene(
    seed: int, colour: bool = False, height: int = 60, width: int = 44
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image whose grey values give the label away: 60 times the label, and the labels."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint16)
    for label in (1, 2, 3):
        y, x = random.integers(4, height - 16), random.integers(4, width - 16)
        labels[y : y + random.integers(5, 14), x : x + random.integers(5, 14)] = label
    image = (labels * 60).astype(np.uint8)
    return (np.stack([image] * 3, axis=2) if colour else image), labels


@given(
    seed=st.integers(0, 10**6),
    colour=st.booleans(),
    names=st.sets(st.sampled_from(GEOMETRIC), min_size=1),
    sides=st.tuples(st.integers(30, 90), st.integers(30, 90)),
)
@settings(max_examples=80, deadline=None)
def test_labels_stay_on_what_they_label(seed, colour, names, sides):
    """An image that tells each pixel's place, moved, tells where every moved label has to come from."""
    _, labels = scene(seed, colour, *sides)
    y, x = np.indices(labels.shape, dtype=np.uint8)
    places = [2 * y, 2 * x, np.full(labels.shape, 255, np.uint8)]  # to half a pixel; and what lies outside
    chosen = dataclasses.replace(OFF, **dict.fromkeys(names, 1.0))
    moved_places = []
    for image in [np.stack(places, axis=2)] if colour else places:
        moved_image, moved_labels = augment(image, labels, chosen, np.random.default_rng(seed))
        assert moved_image.shape == image.shape
        assert moved_labels.shape == labels.shape
        assert (moved_image.dtype, moved_labels.dtype) == (image.dtype, labels.dtype)
        assert set(np.unique(moved_labels)) <= set(np.unique(labels))
        moved_places += list(moved_image.transpose(2, 0, 1)) if colour else [moved_image]
    inside = moved_places[2] == 255
    assert inside.mean() > 0.3
    place = np.stack(moved_places[:2])[:, inside] / 2
    error = 0.3  # of the places: a quarter by rounding, and 1/32 that OpenCV computes positions to
    nearest = [
        labels[tuple(np.clip(np.rint(place + shift), 0, np.array(labels.shape)[:, None] - 1).astype(int))]
        for shift in error * np.array(list(itertools.product((-1, 1), (-1, 1))))[:, :, None]
    ]
    assert (np.stack(nearest) == moved_labels[inside]).any(0).all()


def test_image_and_labels_move_by_the_same_fraction_of_a_pixel():
    """A disc's middle, found in the interpolated image, is that of its label; half a pixel would be seen."""
    y, x = np.mgrid[0:90, 0:80]
    apart = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        disc = np.hypot(y - random.uniform(40, 50), x - random.uniform(35, 45)) < 20
        labels, image = disc.astype(np.uint8), (disc * 200).astype(np.uint8)
        position = shift(positions(labels.shape), 0.01, random)
        position = turn(position, random.uniform(-180, 180), random.uniform(0.7, 1.4))
        moved_image, moved = sample_at(image, labels, position)
        apart += [np.average(axis, weights=moved_image) - np.average(axis, weights=moved) for axis in (y, x)]
    assert np.abs(apart).mean() < 0.1


@given(seed=st.integers(0, 10**6), horizontal=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_flip_mirrors_boxes_exactly(seed, horizontal):
    image, labels = scene(seed)
    height, width = labels.shape
    flipped_image, flipped = flip(image, labels, horizontal)
    assert np.array_equal(flipped_image, (flipped * 60).astype(np.uint8))
    before, after = find_boxes(labels), find_boxes(flipped)
    x0, y0, x1, y1 = before.xyxy.T
    if horizontal:
        mirrored = np.stack([width - 1 - x1, y0, width - 1 - x0, y1], axis=1)
    else:
        mirrored = np.stack([x0, height - 1 - y1, x1, height - 1 - y0], axis=1)
    assert np.array_equal(after.numbers, before.numbers)
    wide = (before.xyxy[:, 2:] - before.xyxy[:, :2] > 1).all(axis=1)  # a line's box reaches a pixel beyond it
    assert np.array_equal(after.xyxy[wide], mirrored[wide])
    again = flip(flipped_image, flipped, horizontal)
    assert np.array_equal(again[0], image)
    assert np.array_equal(again[1], labels)


def test_large_objects_are_shrunk_to_fit_in_a_window_and_small_ones_are_left():
    settings = dataclasses.replace(OFF, shrink=1.0)
    image, labels = np.full((100, 160), 40, np.uint8), np.zeros((100, 160), np.uint8)
    image[10:90, 40:140], labels[10:90, 40:140] = 200, 3
    shares = []
    for seed in range(40):
        moved, at = move(image, labels, settings, np.random.default_rng(seed))
        shares.append(np.count_nonzero((at == 3).any(0)) / 160)
        assert moved[at == 3].mean() > 170
    assert 0.19 < min(shares) < 0.25
    assert 0.36 < max(shares) < 0.43
    labels[:, 90:] = 0
    labels[:, :50] = 0  # 40 of 160 wide, but 80 high
    labels[50:] = 0
    moved, at = move(image, labels, settings, np.random.default_rng(0))
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_array_equal(at, labels)


def test_turning_by_right_angles_and_doubling_do_what_they_say():
    labels = np.zeros((41, 41), np.uint16)
    labels[5:10, 8:20] = 7
    image = (labels * 20).astype(np.uint8)
    here = positions(labels.shape)
    turned_image, turned = sample_at(image, labels, turn(here, 90, 1))
    assert np.array_equal(turned, np.rot90(labels))
    assert np.array_equal(turned_image, np.rot90(image))
    doubled = sample_at(image, labels, turn(here, 0, 2))[1]
    assert np.count_nonzero(doubled[:20, :20]) == pytest.approx(
        4 * np.count_nonzero(labels[10:20, 10:20]), abs=40
    )
    small = sample_at(image, labels, turn(here, 0, 0.5))[1]
    assert np.count_nonzero(small) == pytest.approx(np.count_nonzero(labels) / 4, abs=8)


def test_a_deformation_moves_by_about_its_share_and_smoothly():
    here = positions((256, 200))
    moved = np.stack([shift(here, 0.02, np.random.default_rng(seed)) - here for seed in range(8)])
    assert 4 < np.abs(moved).max() < 8  # 0.02 of 256 is 5.1; a cubic swings beyond its knots
    assert np.abs(np.diff(moved, axis=3)).max() < 0.5  # far from folding over
    assert np.array_equal(shift(here, 0.0, np.random.default_rng(0)), here)


@given(
    seed=st.integers(0, 10**6), colour=st.booleans(), names=st.sets(st.sampled_from(RECOLOURING), min_size=1)
)
@settings(max_examples=40, deadline=None)
def test_recolouring_leaves_labels_alone_and_the_image_in_place(seed, colour, names):
    random = np.random.default_rng(seed)
    shape = (32, 40, 3) if colour else (32, 40)
    image, labels = (
        random.integers(0, 256, shape).astype(np.uint8),
        random.integers(0, 3, (32, 40)).astype(np.uint8),
    )
    chosen = dataclasses.replace(OFF, **dict.fromkeys(names, 1.0))
    before = image.copy()
    changed, same = augment(image, labels, chosen, random)
    assert np.array_equal(same, labels)
    assert np.array_equal(image, before)
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    if colour or names != {"mix_channels"}:
        assert not np.array_equal(changed, image)


def test_an_intensity_curve_keeps_the_order_and_the_ends():
    values = np.arange(256, dtype=np.uint8).reshape(1, 256)
    curves = [bend_intensity(values, np.random.default_rng(seed))[0].astype(int) for seed in range(20)]
    assert all((np.diff(curve) >= 0).all() and (curve[0], curve[-1]) == (0, 255) for curve in curves)
    assert np.std([curve[128] for curve in curves]) > 10


def test_inversion_is_its_own_inverse():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(invert(image), 255 - image)
    assert np.array_equal(invert(invert(image)), image)


def test_mixed_channels_are_means_of_the_old_ones():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:] = (10, 100, 250)
    for seed in range(10):
        mixed = mix_channels(image, np.random.default_rng(seed))
        assert mixed.min() >= 10
        assert mixed.max() <= 250
    grey = np.full((8, 8, 3), 77, np.uint8)
    assert np.abs(mix_channels(grey, np.random.default_rng(0)).astype(int) - 77).max() <= 1


def test_blur_smooths_and_noise_has_its_spread():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 64)).astype(np.uint8)
    assert blur(image, 1.5).std() < 0.5 * image.std()
    noise = add_noise(np.full((200, 200), 128, np.uint8), 10, random).astype(int) - 128
    assert noise.mean() == pytest.approx(0, abs=0.3)
    assert noise.std() == pytest.approx(10, abs=0.3)


def test_blur_is_in_pixels_of_the_reference():
    image = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    blurred = dataclasses.replace(OFF, blur=1.0)
    spreads = [recolour(image, blurred, np.random.default_rng(0), scale).std() for scale in (1.0, 0.5, 0.25)]
    assert spreads[0] < spreads[1] < spreads[2] <= image.std()


def test_nothing_happens_when_all_is_off():
    image, labels = scene(3)
    same = augment(image, labels, OFF, np.random.default_rng(0))
    assert np.array_equal(same[0], image)
    assert np.array_equal(same[1], labels)


@pytest.mark.parametrize("name", [*GEOMETRIC, *RECOLOURING])
def test_each_happens_as_often_as_its_probability_says(name):
    random = np.random.default_rng(0)
    image, labels = scene(3, colour=True)
    image = np.clip(image + random.integers(0, 50, image.shape), 0, 255).astype(np.uint8)
    chosen = dataclasses.replace(OFF, **{name: 0.3})
    changed = [not np.array_equal(augment(image, labels, chosen, random)[0], image) for _ in range(400)]
    assert 0.2 < np.mean(changed) < 0.4  # 4 standard deviations

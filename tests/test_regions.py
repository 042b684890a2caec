"""Regions found in pictures are those that an edge bounds."""

from __future__ import annotations

import numpy as np
import pytest

from litemed.train.regions import MOST_REGIONS, find_regions


def discs(colour: bool) -> tuple[np.ndarray, np.ndarray]:
    """A picture of nine bright discs on a dark, noisy ground; and where they are."""
    y, x = np.ogrid[:200, :240]
    truth = np.zeros((200, 240), np.uint8)
    for number in range(9):
        truth[np.hypot(y - 35 - 65 * (number // 3), x - 40 - 80 * (number % 3)) < 14 + number] = number + 1
    image = np.where(truth, 170, 60) + np.random.default_rng(0).normal(0, 8, truth.shape)
    image = np.clip(image, 0, 255).astype(np.uint8)
    return (np.stack([image] * 3, 2) if colour else image), truth


@pytest.mark.parametrize("colour", [False, True])
def test_what_an_edge_bounds_is_found(colour):
    image, truth = discs(colour)
    overlaps = []
    for seed in range(10):
        labels = find_regions(image, np.random.default_rng(seed))
        assert (labels.dtype, labels.shape) == (np.uint16, truth.shape)
        assert np.array_equal(labels, find_regions(image, np.random.default_rng(seed)))
        for number in range(1, int(labels.max()) + 1):
            region = labels == number
            disc = truth == np.bincount(truth[region]).argmax()
            overlaps.append(2 * np.count_nonzero(region & disc) / (region.sum() + disc.sum()))
    assert len(overlaps) > 60
    assert np.median(overlaps) > 0.9


def test_where_nothing_is_bounded_nothing_is_found():
    flat = np.full((100, 100), 90, np.uint8)
    ramp = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (100, 1))
    for image in (flat, ramp):
        assert not any(find_regions(image, np.random.default_rng(seed)).any() for seed in range(5))


def test_there_are_not_more_than_a_few_and_none_is_a_speck():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128)).astype(np.uint8)
    for seed in range(10):
        labels = find_regions(noise, np.random.default_rng(seed))
        assert labels.max() <= MOST_REGIONS
        sizes = np.bincount(labels.ravel())[1:]
        assert (sizes >= 0.9 * 0.0008 * labels.size).all()

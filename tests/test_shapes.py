"""Drawn training images: always the same from a seed, with objects that can be seen and prompted."""

from __future__ import annotations

import numpy as np
import pytest

from litemed.train.config import Augmentation, Prompts, Sampling
from litemed.train.dataset import Sample, TrainingSet
from litemed.train.sampler import DRAWN, Draw, ModalitySampler
from litemed.train.shapes import draw_over, draw_shapes, tube


@pytest.mark.parametrize("size", [64, 256])
def test_shapes_follow_from_the_seed_and_have_objects(size):
    counts = []
    for seed in range(20):
        image, labels = draw_shapes(size, np.random.default_rng(seed))
        again, same = draw_shapes(size, np.random.default_rng(seed))
        assert np.array_equal(image, again)
        assert np.array_equal(labels, same)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert labels.shape == (size, size)
        assert labels.dtype == np.uint16
        assert min(np.count_nonzero(labels == n) for n in np.unique(labels)[1:]) >= 0.00015 * size * size
        assert image.std() > 1
        counts.append(len(np.unique(labels)) - 1)
    assert min(counts) == 1
    assert max(counts) > 16


def test_most_objects_stand_out_from_what_is_round_them():
    """Otherwise there would be nothing to learn but the box."""
    import cv2

    contrasts = []
    for seed in range(30):
        image, labels = draw_shapes(128, np.random.default_rng(seed))
        grey = image.astype(float).mean(2)
        for number in np.unique(labels)[1:]:
            mask = (labels == number).astype(np.uint8)
            ring = (cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0) & (mask == 0)
            if ring.any():
                contrasts.append(abs(grey[mask > 0].mean() - grey[ring].mean()))
    assert np.mean(np.array(contrasts) > 4) > 0.75


def test_a_tube_is_long_thin_and_in_one_piece():
    import cv2

    for seed in range(20):
        mask = tube((128, 128), 256, np.random.default_rng(seed))
        pieces, _ = cv2.connectedComponents(mask.astype(np.uint8))
        assert pieces == 2  # the ground is one of them
        across = 2 * cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5).max()
        assert 2 <= across <= 14
        assert mask.sum() / across > 2 * across  # longer than wide


@pytest.mark.parametrize("shape", [(96, 96), (96, 96, 3)])
def test_objects_drawn_over_a_picture_leave_most_of_it_as_it_was(shape):
    picture = np.random.default_rng(0).integers(60, 180, shape).astype(np.uint8)
    untouched, changed = [], []
    for seed in range(20):
        image, labels = draw_over(picture, np.random.default_rng(seed))
        again, same = draw_over(picture, np.random.default_rng(seed))
        assert np.array_equal(image, again)
        assert np.array_equal(labels, same)
        assert (image.shape, image.dtype) == (picture.shape, np.uint8)
        assert labels.any()
        differs = (image != picture).reshape(96, 96, -1).any(2)
        untouched.append(np.mean(~differs))
        changed.append(np.mean(differs[labels > 0]))
    assert np.median(untouched) > 0.3
    assert min(changed) > 0.8


def test_the_sampler_draws_them_at_their_share():
    sampler = ModalitySampler({"CT": [np.arange(9)]}, {"CT": 1.0}, 20000, seed=0, drawn=0.35)
    assert np.mean(sampler.epoch(0) == DRAWN) == pytest.approx(0.35, abs=0.015)
    without = ModalitySampler({"CT": [np.arange(9)]}, {"CT": 1.0}, 100, seed=0)
    assert not np.any(without.epoch(0) == DRAWN)
    assert Sampling().drawn == 0


def test_the_training_set_makes_samples_of_them():
    dataset = TrainingSet([], 64, Prompts(), Augmentation(), seed=0)
    found = dataset[Draw(0, 3, DRAWN)]
    assert isinstance(found, Sample)
    assert found.image.shape == (3, 64, 64)
    assert found.masks.any(axis=(1, 2)).all()
    assert np.array_equal(found.image, dataset[Draw(0, 3, DRAWN)].image)
    assert not np.array_equal(found.image, dataset[Draw(1, 3, DRAWN)].image)


def test_the_training_set_draws_some_of_them_over_slices():
    class Bright:
        def indices_by_modality(self):
            return {"CT": np.array([4])}

        def __getitem__(self, i):
            assert i == 4
            return np.full((90, 70), 255, np.uint8), np.zeros((90, 70), np.uint8)

    def bright(share):
        sampling = Sampling(drawn=1.0, drawn_over=share)
        dataset = TrainingSet(Bright(), 64, Prompts(), Augmentation(), seed=0, sampling=sampling)
        return [np.mean(dataset[Draw(0, at, DRAWN)].image > 0.99) > 0.3 for at in range(40)]

    assert np.mean(bright(1.0)) > 0.85
    assert np.mean(bright(0.0)) < 0.1
    assert 0.3 < np.mean(bright(0.5)) < 0.75


def test_layers_and_pockets_make_objects_that_are_much_wider_than_high():
    found = 0
    for seed in range(60):
        _, labels = draw_shapes(128, np.random.default_rng(seed))
        for number in np.unique(labels)[1:]:
            columns = np.flatnonzero((labels == number).any(0))
            thickness = np.count_nonzero(labels == number) / len(columns)  # also of one that bends
            found += len(columns) > 64 and thickness < 8
    assert found >= 5


def test_some_objects_are_of_parts_that_lie_apart_and_most_are_not():
    import cv2

    apart = []
    for seed in range(60):
        _, labels = draw_shapes(256, np.random.default_rng(seed))
        for number in np.unique(labels)[1:]:
            wider = cv2.dilate((labels == number).astype(np.uint8), np.ones((9, 9), np.uint8))
            apart.append(cv2.connectedComponents(wider)[0] > 2)  # the ground is one of them
    assert 0.07 < np.mean(apart) < 0.2  # 0.04 where only what lies over it parts an object

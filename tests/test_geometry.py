"""Boxes anywhere: of all sizes and places, with the inscribed ellipse."""

from __future__ import annotations

import numpy as np
import torch

from litemed.train.geometry import inscribed_ellipses, random_boxes

SIZE = 128


def test_boxes_lie_within_the_input_at_every_size_and_place():
    boxes = random_boxes(2000, SIZE, np.random.default_rng(0))
    assert boxes.dtype == np.float32
    assert (boxes == np.rint(boxes)).all()
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE - 1
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    assert sides.min() >= 2
    ratio = sides.max(1) / sides.min(1)
    assert (ratio > 10).mean() > 0.02
    assert (ratio < 2).mean() > 0.4
    share = sides.prod(1) ** 0.5 / SIZE
    assert (share < 0.05).mean() > 0.1
    assert (share > 0.5).mean() > 0.1
    assert len(np.unique(boxes[:, 0])) > SIZE / 2


def test_ellipses_touch_their_boxes_on_all_sides():
    boxes = random_boxes(50, SIZE, np.random.default_rng(1))
    masks = inscribed_ellipses(torch.from_numpy(boxes), SIZE).numpy()
    for mask, box in zip(masks, boxes.astype(int), strict=True):
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        reached = np.array([columns[0], rows[0], columns[-1], rows[-1]])
        sides = box[2:] - box[:2] + 1
        along = int(sides.argmax())
        if sides.max() < 3 * sides.min():
            assert reached.tolist() == box.tolist()
        else:  # whose tips may be less than a pixel wide; then they lack what is thinner than that
            assert reached[[1 - along, 3 - along]].tolist() == box[[1 - along, 3 - along]].tolist()
            lacking = sides.max() / 2 * (1 - np.sqrt(1 - 1 / sides.min() ** 2))
            assert np.abs(reached - box).max() <= np.ceil(lacking)
        part = mask[box[1] : box[3] + 1, box[0] : box[2] + 1]
        assert (part == part[::-1]).all()
        assert (part == part[:, ::-1]).all()
        if min(part.shape) > 20:
            assert abs(part.mean() - np.pi / 4) < 0.02

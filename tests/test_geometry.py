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
        width, height = box[2:] - box[:2] + 1
        if 1 / 3 < width / height < 3:  # the tips of thinner ones are less than a pixel wide
            assert [columns[0], rows[0], columns[-1], rows[-1]] == box.tolist()
        part = mask[box[1] : box[3] + 1, box[0] : box[2] + 1]
        assert (part == part[::-1]).all()
        assert (part == part[:, ::-1]).all()
        if min(part.shape) > 20:
            assert abs(part.mean() - np.pi / 4) < 0.02

"""Decoding a sample of the image tokens: which are drawn, what they stand for; and it is the same network."""

from __future__ import annotations

import pytest
import torch

from litemed.models.litemedsam import LiteMedSAM
from litemed.train.config import Loss
from litemed.train.losses import mask_losses
from litemed.train.network import TrainedNetwork
from litemed.train.tokens import TokenSample, sample_tokens

SIZE, SIDE = 128, 32
BOXES = torch.tensor(
    [[10.0, 20, 14, 26], [0, 0, 127, 127], [30, 5, 90, 120], [126, 126, 127, 127], [0, 60, 127, 61]]
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("count", [64, 300, 1000])
def test_every_box_gets_so_many_tokens_that_stand_for_all(count):
    found = sample_tokens(BOXES, SIZE, count)
    assert found.index.shape == found.weight.shape == (len(BOXES), count)
    assert all(len(set(row.tolist())) == count for row in found.index)
    assert found.index.min() >= 0
    assert found.index.max() < SIDE * SIDE
    assert found.weight.min() >= 1
    assert torch.allclose(found.weight.sum(1), torch.full((len(BOXES),), float(SIDE * SIDE)))
    assert torch.allclose(found.pixel_weight.sum(1), torch.full((len(BOXES),), float(SIZE * SIZE)))


def test_a_small_box_gets_all_tokens_near_it():
    found = sample_tokens(BOXES[:1], SIZE, 100)
    near = {row * SIDE + column for row in range(4, 8) for column in range(2, 5)}
    taken = dict(zip(found.index[0].tolist(), found.weight[0].tolist(), strict=True))
    assert near <= taken.keys()
    assert {taken[index] for index in near} == {1.0}
    assert max(taken.values()) > 10  # of those elsewhere


def test_no_sample_is_drawn_where_all_are_wanted():
    assert sample_tokens(BOXES, SIZE, SIDE * SIDE) is None
    assert sample_tokens(BOXES, SIZE, 0) is None


def test_sums_over_samples_are_right_on_average():
    masks = torch.zeros(len(BOXES), SIZE, SIZE)
    for mask, (x0, y0, x1, y1) in zip(masks, BOXES.int().tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = 1
        mask[::7, ::5] = 1  # also far from the box
    sums = []
    for _ in range(400):
        found = sample_tokens(BOXES, SIZE, 128)
        sums.append((found.of_masks(masks) * found.pixel_weight).sum(1))
    assert torch.allclose(torch.stack(sums).mean(0), masks.sum((1, 2)), rtol=0.02)


def test_pixels_are_those_of_the_tokens():
    masks = torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE)
    found = TokenSample(torch.tensor([[0, SIDE + 2]]), torch.ones(1, 2))
    first = [row * SIZE + column for row in range(4) for column in range(4)]
    second = [row * SIZE + column for row in range(4, 8) for column in range(8, 12)]
    assert found.of_masks(masks)[0].tolist() == first + second


def test_all_tokens_in_any_order_give_what_decoding_them_at_once_gives():
    network = TrainedNetwork(LiteMedSAM(SIZE), "all").eval()
    image, image_of_box = torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1, 1, 0, 1])
    order = torch.stack([torch.randperm(SIDE * SIDE) for _ in BOXES])
    every = TokenSample(order, torch.ones(order.shape))
    with torch.no_grad():
        logits, iou, _ = network(image, BOXES, image_of_box)
        sampled, same, _ = network(image, BOXES, image_of_box, every)
    assert torch.allclose(sampled, every.of_masks(logits), atol=1e-4 * float(logits.abs().max()))
    assert torch.allclose(iou, same, atol=1e-5)


def test_the_attention_counts_a_token_as_often_as_it_stands_for_others():
    """A token with the weight 2 does as two alike do."""
    network = TrainedNetwork(LiteMedSAM(SIZE), "all").eval()
    boxes, one = BOXES[:1], torch.zeros(1, dtype=torch.int64)
    index = torch.randperm(SIDE * SIDE)[None, :200]
    twice = TokenSample(torch.cat([index, index], 1), torch.ones(1, 400))
    weighted = TokenSample(index, torch.full((1, 200), 2.0))
    with torch.no_grad():
        image = torch.rand(1, 3, SIZE, SIZE)
        repeated, iou, _ = network(image, boxes, one, twice)
        once, same, _ = network(image, boxes, one, weighted)
    assert torch.allclose(repeated[:, : 200 * 16], once, atol=1e-4 * float(once.abs().max()))
    assert torch.allclose(iou, same, atol=1e-5)


def test_losses_count_a_pixel_as_often_as_it_stands_for_others():
    logits, masks = torch.randn(3, 40), torch.rand(3, 40) > 0.4
    counts = torch.randint(1, 5, (40,))
    repeated = mask_losses(
        logits.repeat_interleave(counts, 1), torch.zeros(3), masks.repeat_interleave(counts, 1), Loss()
    )
    weighted = mask_losses(logits, torch.zeros(3), masks, Loss(), counts.float().expand(3, 40))
    for name in ("dice", "focal", "iou"):
        assert torch.allclose(getattr(repeated, name), getattr(weighted, name), atol=1e-6)

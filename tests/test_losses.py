"""The losses agree with a reference that is as plain as their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from litemed.train.config import Loss
from litemed.train.losses import (
    NEAR,
    PARTS,
    achieved_iou,
    dice_loss,
    focal_loss,
    mask_losses,
    merged_cross_entropy,
    summed_losses,
)
from litemed.train.prompts import Prompted


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def reference_dice(logits: np.ndarray, target: np.ndarray) -> float:
    overlap = whole = 0.0
    for x, t in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
        overlap += sigmoid(x) * t
        whole += sigmoid(x) + t
    return 1 - (2 * overlap + 1) / (whole + 1)


def reference_focal(logits: np.ndarray, target: np.ndarray) -> float:
    total = 0.0
    for x, t in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
        signed = x if t else -x
        log_p = -math.log1p(math.exp(-signed)) if signed > -30 else signed
        weight = 0.25 if t else 0.75
        total -= weight * (1 - sigmoid(signed)) ** 2 * log_p
    return total / logits.size


def reference_iou(logits: np.ndarray, target: np.ndarray) -> float:
    predicted = logits > 0
    union = np.count_nonzero(predicted | (target == 1))
    return np.count_nonzero(predicted & (target == 1)) / union if union else 1.0


def reference_cross_entropy(
    logits: np.ndarray, masks: np.ndarray, boxes: np.ndarray, of: np.ndarray, image: int
) -> float:
    own, size = np.flatnonzero(of == image), logits.shape[-1]
    total, counted = 0.0, 0
    for y in range(size):
        for x in range(size):
            for x0, y0, x1, y1 in boxes[own].tolist():
                far_x, far_y = NEAR * (x1 - x0), NEAR * (y1 - y0)
                if x0 - far_x <= x <= x1 + far_x and y0 - far_y <= y <= y1 + far_y:
                    break
            else:
                continue
            classes = [0.0, *logits[own, y, x].tolist()]
            true = next((i + 1 for i, box in enumerate(own) if masks[box, y, x]), 0)
            shift = max(classes)
            total += shift + math.log(sum(math.exp(c - shift) for c in classes)) - classes[true]
            counted += 1
    return total / max(counted, 1)


def prompted(target: Tensor, boxes: Tensor | None = None, of: Tensor | None = None) -> Prompted:
    """Return masks as prompts; by default each on an image of its own, in a box over everything."""
    count = len(target)
    whole = torch.tensor([[0.0, 0, target.shape[-1], target.shape[-2]]]).expand(count, 4)
    return Prompted(
        boxes=whole if boxes is None else boxes,
        masks=target.to(torch.uint8),
        image_of_box=torch.arange(count) if of is None else of,
        weights=torch.ones(count),
    )


def losses_of(logits: Tensor, iou: Tensor, target: Tensor) -> dict[str, Tensor]:
    return dict(zip(PARTS, mask_losses(logits, iou, prompted(target), len(target)), strict=True))


def random_masks(seed: int, scale: float, share: float, size: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (3, size, size))
    target = (random.random((3, size, size)) < share).astype(np.uint8)
    return torch.from_numpy(logits), torch.from_numpy(target)


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 0.1, 1.0, 8.0, 60.0]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    size=st.integers(1, 7),
)
@settings(max_examples=80, deadline=None)
def test_losses_agree_with_the_reference(seed, scale, share, size):
    logits, target = random_masks(seed, scale, share, size)
    predicted_iou = torch.tensor([0.2, 0.9, -1.0], dtype=torch.float64)
    parts = losses_of(logits.float(), predicted_iou, target)
    for i in range(3):
        x, t = logits[i].float().double().numpy(), target[i].numpy()
        assert parts["dice"][i].item() == pytest.approx(reference_dice(x, t), abs=2e-6)
        assert parts["focal"][i].item() == pytest.approx(reference_focal(x, t), rel=1e-5, abs=1e-7)
        iou = reference_iou(x, t)
        assert achieved_iou(logits, target)[i].item() == pytest.approx(iou, abs=1e-6)
        assert parts["iou"][i].item() == pytest.approx((float(predicted_iou[i]) - iou) ** 2, abs=1e-5)


def test_the_total_is_weighted():
    logits, target = random_masks(0, 1, 0.3, 6)
    prompts = prompted(target)
    prompts.weights[:] = torch.tensor([1.0, 0.5, 0.5])
    found = summed_losses(logits, torch.zeros(3), prompts, 3, Loss(iou=0.5, cross_entropy=4))
    dice, focal, iou, merged = mask_losses(logits, torch.zeros(3), prompts, 3) * prompts.weights
    expected = [dice + focal + 0.5 * iou + 4 * merged, dice, focal, iou, merged]
    assert torch.allclose(found, torch.stack(expected).sum(1))


def test_perfect_masks_cost_next_to_nothing_and_opposite_ones_most():
    target = random_masks(1, 1, 0.4, 20)[1].float()
    right, wrong = 40 * (2 * target - 1), -40 * (2 * target - 1)
    assert dice_loss(right, target).max() < 1e-6
    assert focal_loss(right, target).max() < 1e-6
    assert dice_loss(wrong, target).min() > 0.99
    assert focal_loss(wrong, target).min() > 5


def test_an_empty_mask_predicted_empty_costs_nothing():
    nothing = torch.zeros(1, 5, 5)
    assert dice_loss(nothing - 50, nothing).item() == pytest.approx(0, abs=1e-6)
    assert achieved_iou(nothing - 50, nothing).item() == 1


def test_gradients_are_finite_however_sure_the_network_is():
    target = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    logits = torch.tensor([[[500.0, 500.0], [-500.0, -500.0]]], requires_grad=True)
    mask_losses(logits, torch.zeros(1), prompted(target), 1).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_iou_loss_does_not_reach_the_mask():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    predicted = torch.zeros(2, requires_grad=True)
    losses_of(logits, predicted, torch.ones(2, 4, 4))["iou"].sum().backward()
    assert logits.grad is None or not logits.grad.any()
    assert predicted.grad.any()


def test_bfloat16_logits_are_scored_in_float32():
    logits, target = random_masks(2, 2, 0.3, 30)
    low = logits.bfloat16()
    dice = losses_of(low, torch.zeros(3), target)["dice"]
    assert dice.dtype == torch.float32
    assert torch.equal(dice, dice_loss(low.float(), target.float()))


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 3.0, 200.0]),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
)
@settings(max_examples=60, deadline=None)
def test_the_cross_entropy_of_merging_agrees_with_a_loop_over_pixels_and_classes(seed, scale, counts):
    """Images of several boxes, of one and of none."""
    random, size = np.random.default_rng(seed), 9
    of = np.repeat(np.arange(len(counts)), counts)
    logits = random.normal(0, scale, (len(of), size, size)).astype(np.float32)
    low, high = random.integers(0, 5, (len(of), 2)), random.integers(5, 9, (len(of), 2))
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    owner = random.integers(0, 4, (len(counts), size, size))  # no pixel is of two objects
    rank = np.concatenate([np.arange(count) for count in counts])
    masks = owner[of] == rank[:, None, None] + 1
    prompts = prompted(torch.from_numpy(masks), torch.from_numpy(boxes), torch.from_numpy(of))
    found = merged_cross_entropy(torch.from_numpy(logits), prompts, len(counts))
    expected = [reference_cross_entropy(logits, masks, boxes, of, image) for image in range(len(counts))]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    parts = mask_losses(torch.from_numpy(logits), torch.zeros(len(of)), prompts, len(counts))
    assert torch.equal(parts[3], found[prompts.image_of_box])


def test_the_cross_entropy_falls_where_argmax_would_be_right_and_rises_where_it_would_be_wrong():
    """An inner object that an outer one claims too: of Dice and focal each box is all that there is."""
    inner, outer = torch.zeros(16, 16), torch.zeros(16, 16)
    outer[2:14, 2:14], outer[6:10, 6:10], inner[6:10, 6:10] = 1, 0, 1
    boxes, of = torch.tensor([[6.0, 6, 9, 9], [2, 2, 13, 13]]), torch.zeros(2, dtype=torch.int64)
    prompts = prompted(torch.stack([inner, outer]), boxes, of)
    logits = 4 * (2 * prompts.masks.float() - 1)
    logits.requires_grad_()
    filled = torch.stack([logits[0], torch.where(inner > 0, 8.0, logits[1])])
    right, wrong = (merged_cross_entropy(one, prompts, 1) for one in (logits, filled))
    assert wrong > 5 * right
    wrong.sum().backward()
    assert (logits.grad[0][inner > 0] < 0).all()  # the inner one has to gain there

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
from litemed.train.losses import achieved_iou, dice_loss, focal_loss, mask_losses, pixels_in


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def reference_dice(logits: np.ndarray, target: np.ndarray) -> float:
    overlap = whole = 0.0
    for x, t in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
        overlap += sigmoid(x) * t
        whole += sigmoid(x) + t
    return 1 - (2 * overlap + 1) / (whole + 1)


def reference_focal(logits: np.ndarray, target: np.ndarray, gamma: float, alpha: float) -> float:
    total = 0.0
    for x, t in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
        signed = x if t else -x
        log_p = -math.log1p(math.exp(-signed)) if signed > -30 else signed
        weight = alpha if t else 1 - alpha
        total -= weight * (1 - sigmoid(signed)) ** gamma * log_p
    return total / logits.size


def reference_iou(logits: np.ndarray, target: np.ndarray) -> float:
    predicted = logits > 0
    union = np.count_nonzero(predicted | (target == 1))
    return np.count_nonzero(predicted & (target == 1)) / union if union else 1.0


def random_masks(seed: int, scale: float, share: float, size: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (3, size, size + 1))
    target = (random.random((3, size, size + 1)) < share).astype(np.uint8)
    return torch.from_numpy(logits), torch.from_numpy(target)


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 0.1, 1.0, 8.0, 60.0]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    size=st.integers(1, 7),
    gamma=st.sampled_from([0.0, 1.0, 2.0, 3.5]),
    alpha=st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_losses_agree_with_the_reference(seed, scale, share, size, gamma, alpha):
    logits, target = random_masks(seed, scale, share, size)
    predicted_iou = torch.tensor([0.2, 0.9, -1.0], dtype=torch.float64)
    parts = mask_losses(logits.float(), predicted_iou, target, Loss(focal_gamma=gamma, focal_alpha=alpha))
    for i in range(3):
        x, t = logits[i].float().double().numpy(), target[i].numpy()
        assert parts.dice[i].item() == pytest.approx(reference_dice(x, t), abs=2e-6)
        assert parts.focal[i].item() == pytest.approx(reference_focal(x, t, gamma, alpha), rel=1e-5, abs=1e-7)
        entropy = 2 * reference_focal(x, t, 0, 0.5)
        assert parts.entropy[i].item() == pytest.approx(entropy, rel=1e-4, abs=1e-6)
        iou = reference_iou(x, t)
        assert achieved_iou(logits, target)[i].item() == pytest.approx(iou, abs=1e-6)
        assert parts.iou[i].item() == pytest.approx((float(predicted_iou[i]) - iou) ** 2, abs=1e-5)


def test_the_total_is_weighted():
    logits, target = random_masks(0, 1, 0.3, 6)
    settings = Loss(dice=2, focal=30, iou=0.5, entropy=4)
    parts = mask_losses(logits, torch.zeros(3), target, settings)
    expected = 2 * parts.dice + 30 * parts.focal + 0.5 * parts.iou + 4 * parts.entropy
    assert torch.allclose(parts.total(settings), expected)


def test_of_a_sample_of_pixels_the_entropy_alone_counts_all_alike():
    logits, target = random_masks(3, 2, 0.3, 6)
    counts = torch.randint(1, 9, logits.flatten(1).shape).float()
    plain = mask_losses(logits, torch.zeros(3), target, Loss())
    weighted = mask_losses(logits.flatten(1), torch.zeros(3), target.flatten(1), Loss(), counts)
    assert torch.allclose(weighted.entropy, plain.entropy)
    assert not torch.allclose(weighted.focal, plain.focal)


def test_pixels_that_do_not_count_change_nothing():
    logits, masks = random_masks(3, 2.0, 0.4, 12)
    inside = pixels_in(torch.tensor([[2.0, 3.0, 7.0, 9.0]]), 12)
    assert inside[0].nonzero().T.tolist() == [
        [y for y in range(3, 10) for _ in range(2, 8)],
        [x for _ in range(3, 10) for x in range(2, 8)],
    ]
    logits, masks, inside = logits[:1, :12, :12], masks[:1, :12, :12], inside.float()
    iou = torch.zeros(1)
    of_part = mask_losses(logits[:, 3:10, 2:8], iou, masks[:, 3:10, 2:8], Loss())
    for outside in (logits, -logits):
        changed = torch.where(inside > 0, logits, outside).requires_grad_()
        parts = mask_losses(changed, iou, masks, Loss(), inside)
        for name in ("dice", "focal", "iou", "entropy"):
            torch.testing.assert_close(getattr(parts, name), getattr(of_part, name))
        (parts.dice + parts.focal + parts.entropy).sum().backward()
        assert not changed.grad[inside == 0].any()
        assert changed.grad[inside > 0].any()


def test_perfect_masks_cost_next_to_nothing_and_opposite_ones_most():
    target = random_masks(1, 1, 0.4, 20)[1].float()
    right, wrong = 40 * (2 * target - 1), -40 * (2 * target - 1)
    assert dice_loss(right, target).max() < 1e-6
    assert focal_loss(right, target, 2, 0.25).max() < 1e-6
    assert dice_loss(wrong, target).min() > 0.99
    assert focal_loss(wrong, target, 2, 0.25).min() > 5


def test_an_empty_mask_predicted_empty_costs_nothing():
    nothing = torch.zeros(1, 5, 5)
    assert dice_loss(nothing - 50, nothing).item() == pytest.approx(0, abs=1e-6)
    assert achieved_iou(nothing - 50, nothing).item() == 1


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_are_finite_however_sure_the_network_is(gamma):
    target = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    logits = torch.tensor([[500.0, 500.0, -500.0, -500.0]], requires_grad=True)
    parts = mask_losses(logits, torch.zeros(1), target, Loss(focal_gamma=gamma))
    parts.total(Loss()).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_iou_loss_does_not_reach_the_mask():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    predicted = torch.zeros(2, requires_grad=True)
    mask_losses(logits, predicted, torch.ones(2, 4, 4), Loss()).iou.sum().backward()
    assert logits.grad is None
    assert predicted.grad is not None


def test_bfloat16_logits_are_scored_in_float32():
    logits, target = random_masks(2, 2, 0.3, 30)
    low = logits.bfloat16()
    parts = mask_losses(low, torch.zeros(3), target, Loss())
    assert parts.dice.dtype == torch.float32
    assert torch.equal(parts.dice, dice_loss(low.float(), target.float()))

"""The losses agree with a reference that is as plain as their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit
from torch import Tensor

from litemed.train.losses import (
    NEAR,
    PARTS,
    mask_losses,
    merged_cross_entropy,
)
from litemed.train.prompts import Prompted


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


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 0.1, 1.0, 8.0, 60.0]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    size=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_losses_agree_with_their_formulas(seed, scale, share, size):
    """In float64; of logits in bfloat16, too."""
    logits, target = random_masks(seed, scale, share, size)
    predicted_iou = torch.tensor([0.2, 0.9, -1.0], dtype=torch.float64)
    parts = losses_of(logits.bfloat16(), predicted_iou, target)
    for i in range(3):
        x, t = logits[i].bfloat16().double().numpy(), target[i].numpy()
        p = expit(x)
        assert parts["dice"][i].item() == pytest.approx(
            1 - (2 * (p * t).sum() + 1) / ((p + t).sum() + 1), abs=2e-6
        )
        signed = np.where(t, x, -x)
        focal = -np.where(t, 0.25, 0.75) * (1 - expit(signed)) ** 2 * log_expit(signed)
        assert parts["focal"][i].item() == pytest.approx(focal.mean(), rel=1e-5, abs=1e-7)
        union = np.count_nonzero((x > 0) | (t == 1))
        iou = np.count_nonzero((x > 0) & (t == 1)) / union if union else 1.0
        assert parts["iou"][i].item() == pytest.approx((float(predicted_iou[i]) - iou) ** 2, abs=1e-5)


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

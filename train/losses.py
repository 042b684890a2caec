"""What a predicted mask costs: Dice, focal, and how wrong the predicted IoU is. One value for each box.

Shapes: N boxes, P pixels in any number of trailing axes; `weights`, of the shape of the logits, says how many
pixels each one stands for, 0 where it does not count, None one each. Everything is computed in float32 or
better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from litemed.train.config import Loss

DICE_SMOOTHING = 1.0
"""Added above and below the fraction, in pixels, so that an empty mask predicted empty costs nothing."""


@dataclass(frozen=True)
class LossParts:
    """Losses of N boxes, each (N,): dice in [0, 1], focal at least 0, squared error of the predicted IoU.

    entropy: the mean cross-entropy of the pixels that were decoded and count, of all alike: where those are a
    sample of tokens, mostly near the box, it is of them and not of the image.
    """

    dice: Tensor
    focal: Tensor
    iou: Tensor
    entropy: Tensor

    def total(self, weights: Loss) -> Tensor:
        """Return the weighted sum, (N,)."""
        return (
            weights.dice * self.dice
            + weights.focal * self.focal
            + weights.iou * self.iou
            + weights.entropy * self.entropy
        )


def mask_losses(
    logits: Tensor, predicted_iou: Tensor, masks: Tensor, settings: Loss, weights: Tensor | None = None
) -> LossParts:
    """Return all losses. logits: (N, H, W) or (N, P). predicted_iou: (N,). masks: as logits, 0 or 1."""
    logits, target = logits.float(), masks.float()
    reached = achieved_iou(logits, target, weights)
    return LossParts(
        dice=dice_loss(logits, target, weights),
        focal=focal_loss(logits, target, settings.focal_gamma, settings.focal_alpha, weights),
        iou=(predicted_iou.float() - reached).square(),
        entropy=_mean_entropy(logits, target, weights),
    )


def pixels_in(boxes: Tensor, size: int) -> Tensor:
    """Return which pixels of an image of side `size` lie in boxes (N, 4), ends inclusive: bool (N, S, S)."""
    place = torch.arange(size, device=boxes.device)
    low, high = boxes[:, :2, None], boxes[:, 2:, None]
    within = (place >= low) & (place <= high)  # (N, 2, size), x then y
    return within[:, 1, :, None] & within[:, 0, None, :]


def _mean_entropy(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
    if weights is None:
        return entropy.mean(1)
    counts = (weights > 0).flatten(1)
    return (entropy * counts).sum(1) / counts.sum(1).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) with p = sigmoid(logits), (N,).

    Source: Milletari et al., "V-Net" (3DV 2016), with sums of p and t themselves below the line.
    """
    probability, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = _total(probability * target, weights)
    whole = _total(probability + target, weights)
    return 1 - (2 * overlap + DICE_SMOOTHING) / (whole + DICE_SMOOTHING)


def focal_loss(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, weights: Tensor | None = None
) -> Tensor:
    """Return the mean over the pixels of -alpha_t (1 - p_t)^gamma log(p_t), (N,).

    alpha weighs the pixels of the object, 1 - alpha the others. Source: Lin et al., "Focal Loss for Dense
    Object Detection" (ICCV 2017).
    """
    against = torch.where(target > 0.5, -logits, logits).flatten(1)  # p_t = 1 - sigmoid(against)
    alpha_t = torch.where(target > 0.5, alpha, 1 - alpha).flatten(1)
    loss = alpha_t * against.sigmoid().pow(gamma) * F.softplus(against)
    return loss.mean(1) if weights is None else _total(loss, weights) / weights.flatten(1).sum(1).clamp(min=1)


@torch.no_grad()
def achieved_iou(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the IoU of the mask `logits > 0` with the target, (N,); 1 where both are empty."""
    predicted, wanted = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    overlap = _total(predicted & wanted, weights)
    union = _total(predicted | wanted, weights)
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def _total(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum over the pixels of (N, P), weighted if need be: (N,)."""
    return values.sum(1) if weights is None else (values * weights.flatten(1)).sum(1)

"""What a predicted mask costs: Dice, focal, how wrong the predicted IoU is, and what merging makes of it.

One value for each of N boxes. Everything is computed in float32 or better.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from litemed.train.config import Loss
from litemed.train.prompts import Prompted

FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.25  # of the paper; alpha weighs the object's pixels, 1 - alpha the others
DICE_SMOOTHING = 1.0  # pixels on both sides of the fraction: an empty mask predicted empty costs nothing
NEAR = 0.25  # how far a box reaches for the cross-entropy, on every side, as a share of its own side
PARTS = ("dice", "focal", "iou", "cross_entropy")  # what `mask_losses` returns, as the log names it


def mask_losses(logits: Tensor, predicted_iou: Tensor, prompts: Prompted, images: int) -> Tensor:
    """Return the losses of N boxes on `images` images, (4, N) in the order of `PARTS`.

    Dice is in [0, 1], all others are at least 0: focal, the mean over the pixels; the squared error of the
    predicted IoU; the cross-entropy of the image that a box lies on, see `merged_cross_entropy`.

    logits: (N, S, S). predicted_iou: (N,).
    """
    logits, target = logits.float(), prompts.masks.float()
    return torch.stack(
        [
            dice_loss(logits, target),
            focal_loss(logits, target),
            (predicted_iou.float() - achieved_iou(logits, target)).square(),
            merged_cross_entropy(logits, prompts, images)[prompts.image_of_box],
        ]
    )


def summed_losses(
    logits: Tensor, predicted_iou: Tensor, prompts: Prompted, images: int, weights: Loss
) -> Tensor:
    """Return the sums over images of the loss and of its parts, in the order of `PARTS`: (5,).

    The loss of an image is the mean over its boxes; otherwise as `mask_losses`.
    """
    parts = (mask_losses(logits, predicted_iou, prompts, images) * prompts.weights).sum(1)
    total = parts[0] + parts[1] + weights.iou * parts[2] + weights.cross_entropy * parts[3]
    return torch.cat([total[None], parts])


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) with p = sigmoid(logits), (N,).

    Both (N, H, W). Source: Milletari et al., "V-Net" (3DV 2016), with sums of p and t themselves below.
    """
    probability, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = (probability * target).sum(1)
    whole = (probability + target).sum(1)
    return 1 - (2 * overlap + DICE_SMOOTHING) / (whole + DICE_SMOOTHING)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the pixels of -alpha_t (1 - p_t)^gamma log(p_t), (N,).

    Source: Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017).
    """
    against = torch.where(target > 0.5, -logits, logits).flatten(1)  # p_t = 1 - sigmoid(against)
    alpha_t = torch.where(target > 0.5, FOCAL_ALPHA, 1 - FOCAL_ALPHA).flatten(1)
    return (alpha_t * against.sigmoid().pow(FOCAL_GAMMA) * F.softplus(against)).mean(1)


@torch.no_grad()
def achieved_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return the IoU of the mask `logits > 0` with the target, (N,); 1 where both are empty."""
    predicted, wanted = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    overlap, union = (predicted & wanted).sum(1), (predicted | wanted).sum(1)
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def merged_cross_entropy(logits: Tensor, prompts: Prompted, images: int) -> Tensor:
    """Return the mean cross-entropy near the boxes of each image, (images,): what merging by argmax costs.

    The classes of a pixel are the background, whose logit is 0, and the boxes drawn on its image, each with
    its own logit there. The true class is the box whose object has the pixel, else the background. A pixel
    counts if it lies in one of the image's boxes, ends included, once these are enlarged on every side by
    `NEAR` of their width or height. An image without a box costs 0.

    logits: float32 (N, S, S). prompts: no two masks of an image have a pixel in common. images: B.
    """
    of = prompts.image_of_box
    per_image = (images, *logits.shape[1:])
    spread = of[:, None, None].expand_as(logits)
    highest = logits.new_zeros(per_image).scatter_reduce(0, spread, logits.detach(), "amax")
    total = (-highest).exp().index_add(0, of, (logits - highest[of]).exp())
    own = logits.new_zeros(per_image).index_add(0, of, logits * prompts.masks)
    pixel = torch.arange(logits.shape[-1], device=logits.device)
    low, high = prompts.boxes[:, :2, None], prompts.boxes[:, 2:, None]
    reach = NEAR * (high - low)
    within = (pixel >= low - reach) & (pixel <= high + reach)  # (N, 2, S), x and y
    in_box = within[:, 1, :, None] & within[:, 0, None, :]
    near = logits.new_zeros(per_image).index_add(0, of, in_box.float()) > 0
    cost = (highest + total.log() - own) * near
    return cost.flatten(1).sum(1) / near.flatten(1).sum(1).clamp(min=1)

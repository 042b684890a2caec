"""Decode a sample of the image's tokens for each box instead of all: much the same gradient for less work.

Of the mask decoder's work nearly all is done once for each box and image token, and a small box concerns few
of these. So every box gets those round it and some from elsewhere, each with a weight: how many tokens it
stands for. With it losses and attention are estimates of what all tokens would give.

L = (S / 4)^2 tokens of an input of side S; each stands for 4 x 4 pixels of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATCH = 4
"""Side of a token in pixels of the input, and of the mask."""

NEAR_SHARE = 0.75
"""Of the tokens taken, at most so many lie near the box, unless there are not enough others."""

_MARGIN_SHARE, _MARGIN_TOKENS = 0.25, 2.0  # near the box: within so much of its side, and so many tokens more


@dataclass(frozen=True, eq=False)
class TokenSample:
    """M of the L tokens for each of N boxes.

    index: int64 (N, M), row-major. weight: float32 (N, M), how many tokens each stands for; a row's sum is L.
    """

    index: Tensor
    weight: Tensor

    def of_image(self, values: Tensor, image_of_box: Tensor) -> Tensor:
        """Take (N, C, M, 1) from values (B, C, h, w), box by box from its image."""
        channels = values.shape[1]
        flat = values.flatten(2).transpose(1, 2)  # (B, L, C)
        taken = flat[image_of_box[:, None], self.index]
        return taken.transpose(1, 2).reshape(len(taken), channels, -1, 1)

    def of_masks(self, masks: Tensor) -> Tensor:
        """Take (N, 16 M) pixels, token by token, from masks (N, S, S)."""
        side = masks.shape[-1] // PATCH
        patches = masks.unflatten(2, (side, PATCH)).unflatten(1, (side, PATCH)).transpose(2, 3)
        flat = patches.reshape(len(masks), side * side, PATCH * PATCH)
        return flat.take_along_dim(self.index[:, :, None], 1).flatten(1)

    @property
    def pixel_weight(self) -> Tensor:
        """The weights of the pixels that `of_masks` takes, (N, 16 M); each row's sum is S * S."""
        return self.weight.repeat_interleave(PATCH * PATCH, 1)


def sample_tokens(boxes: Tensor, size: int, count: int, allowed: Tensor | None = None) -> TokenSample | None:
    """Draw `count` tokens for each box (N, 4) in pixels of an input of side `size`.

    None where no sample is needed: for a count of 0, which stands for all tokens, or of all there are.

    allowed: bool (N, L), which tokens there are to draw from, at least `count` of each row; None: all. Those
    drawn stand for the others as well, near the box and elsewhere, unless there are none of a kind.

    Drawn with PyTorch's random numbers, on the device of the boxes.
    """
    side = size // PATCH
    total = side * side
    if not 0 < count < total:
        return None
    centre = torch.arange(side, device=boxes.device) + 0.5
    low, high = boxes[:, None, :2] / PATCH, (boxes[:, None, 2:] + 1) / PATCH  # (N, 1, 2)
    margin = _MARGIN_SHARE * (high - low) + _MARGIN_TOKENS
    within = (centre[:, None] >= low - margin) & (centre[:, None] <= high + margin)  # (N, side, 2), x then y
    near = (within[:, :, None, 1] & within[:, None, :, 0]).flatten(1)  # (N, L)
    far = ~near
    found = near.sum(1, keepdim=True)
    if allowed is not None:
        near, far = near & allowed, far & allowed
    there = near.sum(1, keepdim=True)
    lacking = count - torch.clamp(far.sum(1, keepdim=True), max=count)  # where there are not enough others
    taken_near = torch.minimum(there, torch.clamp(lacking, min=int(NEAR_SHARE * count)))
    taken_far = count - taken_near
    chance = torch.rand(near.shape, device=boxes.device)
    place = torch.arange(count, device=boxes.device)
    drawn = [
        (torch.where(part, chance, 2.0).topk(count, 1, largest=False).indices, place < quota)
        for part, quota in ((near, taken_near), (far, taken_far))
    ]
    candidates, taken = (torch.cat(both, 1) for both in zip(*drawn, strict=True))
    index = candidates[taken].view(len(boxes), count)
    stands_for = torch.where(near, found / taken_near.clamp(min=1), (total - found) / taken_far.clamp(min=1))
    return TokenSample(index, stands_for.take_along_dim(index, 1))

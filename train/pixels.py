"""What the encoder is asked about every pixel, so that it looks at the picture.

Boxes and masks alone do not make it. An ellipse in the box is a good answer for most objects, the decoder
of masks can draw it from the box alone, and a network that is trained from nothing stays there: after three
hours a linear readout of its embeddings explained 2 % of the pictures' grey levels (58 % before training),
and its masks of drawn objects, however plain to see, were as good as ellipses. So a linear head reads from
each token of the embedding what its 4 x 4 pixels are: how bright, whether of an object, and whether at an
object's edge. That is asked of all pixels of all images, whatever the boxes are. The head is left behind
with the training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.train.losses import dice_loss
from litemed.train.tokens import PATCH

_EMBEDDING = 256
_GREY, _OBJECT, _EDGE = range(3)  # channels
_GREY_WEIGHT, _OBJECT_WEIGHT, _DICE_WEIGHT, _EDGE_WEIGHT = 0.3, 2.0, 1.0, 1.0
_EDGE_IS_RARE = 4.0  # so much more its pixels count
_LEAST_SPREAD = 0.02  # of the grey levels of an image, of 1


class PixelHead(nn.Module):
    """A linear readout: embeddings (B, 256, h, w) to grey level, object and edge, (B, 3, 4 h, 4 w)."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(_EMBEDDING, 3 * PATCH * PATCH, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        return F.pixel_shuffle(self.read(embedding), PATCH)


def pixel_loss(read: Tensor, image: Tensor, labels: Tensor) -> Tensor:
    """Return how far off a readout is, (B,).

    Args:
        read: (B, 3, H, W): the grey level, standardised within the image, and logits of object and edge.
        image: (B, 3, H, W).
        labels: (B, H, W) integers, the objects' numbers, 0 elsewhere.
    """
    read = read.float()
    grey = image.mean(1)
    spread = grey.std((1, 2), keepdim=True) + _LEAST_SPREAD
    grey = (grey - grey.mean((1, 2), keepdim=True)) / spread
    objects, edges = (labels > 0).float(), edges_of(labels).float()
    rare = torch.tensor(_EDGE_IS_RARE, device=read.device)
    parts = (
        _GREY_WEIGHT * F.smooth_l1_loss(read[:, _GREY], grey, reduction="none"),
        _OBJECT_WEIGHT * F.binary_cross_entropy_with_logits(read[:, _OBJECT], objects, reduction="none"),
        _EDGE_WEIGHT
        * F.binary_cross_entropy_with_logits(read[:, _EDGE], edges, reduction="none", pos_weight=rare),
    )
    return torch.stack(parts).sum(0).mean((1, 2)) + _DICE_WEIGHT * dice_loss(read[:, _OBJECT], objects)


def edges_of(labels: Tensor) -> Tensor:
    """Return which pixels of labels (B, H, W) have another label beside them, bool, corners included."""
    values = labels.float()[:, None]
    return (F.max_pool2d(values, 3, 1, 1) != -F.max_pool2d(-values, 3, 1, 1))[:, 0]

"""Layers with constants folded into their weights, for graphs that only infer."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from litemed.models.tiny_vit import ConvNorm

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a float32 layer x W^T + b with copies of a weight (out, in) and a bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _filled(layer, weight, bias)


def convolution(conv: Any, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution for one without bias and the batch norm behind it."""
    scale, shift = norm_scale_and_shift(norm)
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    )
    return _filled(folded, conv.weight.double() * scale[:, None, None, None], shift)


def pointwise(layer: ConvNorm) -> nn.Linear:
    """Return a 1 x 1 convolution and its batch norm as a layer on the last axis."""
    folded = convolution(layer.c, layer.bn)
    return linear(folded.weight[:, :, 0, 0], folded.bias)


def after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the scale and shift of a layer norm into the linear layer behind it.

    Args:
        norm: the layer norm; what is left of it has neither scale nor shift.
        weight: (out, in).
        bias: (out,).

    Returns:
        weight and bias in float64.
    """
    weight = weight.double()
    return weight * norm.weight.double(), bias.double() + weight @ norm.bias.double()


def norm_scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a batch norm does to each channel in inference, x * scale + shift, float64 (C,) each."""
    bn: Any = norm
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean * scale


def _filled(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer.requires_grad_(False)

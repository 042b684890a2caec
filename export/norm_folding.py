"""Norms folded into the weights of the layers beside them, for graphs that only infer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from litemed.models import light_encoder, tiny_vit


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a float32 layer x W^T + b with copies of a weight (out, in) and a bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer.requires_grad_(False)


def convolution(conv: Any, norm: Any) -> nn.Conv2d:
    """Return one convolution for one without bias and the batch norm behind it."""
    scale, shift = norm_scale_and_shift(norm)
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    )
    folded.load_state_dict({"weight": conv.weight.double() * scale[:, None, None, None], "bias": shift})
    return folded.requires_grad_(False)


def folded(module: nn.Module) -> Any:
    """Return a copy in which every batch norm behind a convolution is folded into it."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, tiny_vit.ConvNorm | light_encoder.ConvNorm):
                conv, norm, *activation = child
                setattr(part, name, nn.Sequential(convolution(conv, norm), *activation))
    return module.requires_grad_(False)


def pointwise(layer: tiny_vit.ConvNorm) -> nn.Linear:
    """Return a 1 x 1 convolution and its batch norm as a layer on the last axis."""
    folded = convolution(layer.c, layer.bn)
    return linear(folded.weight[:, :, 0, 0], folded.bias)


def after_norm(norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Fold the scale and shift of a layer norm into the layer behind it: weight (out, in), bias, float64."""
    weight = layer.weight.double()
    return weight * norm.weight.double(), layer.bias.double() + weight @ norm.bias.double()


def channel_norm(norm: Any) -> nn.LayerNorm:
    """Return a norm over the channels of (B, C, H, W) as one over the last axis."""
    layer = nn.LayerNorm(norm.weight.shape[0], norm.eps)
    layer.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return layer.requires_grad_(False)


def norm_scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return what a batch norm does to each channel in inference, x * scale + shift, float64 (C,) each."""
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean * scale

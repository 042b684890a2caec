"""The image encoders rewritten for speed, equal up to rounding.

Same input and output as `litemed.models.tiny_vit.TinyViT` and `litemed.models.light_encoder.LightEncoder` for
one image. What is computed differently, and why it is the same:

- From the first window attention on, tokens stay in the order (H, W, C): linear layers need no transposition,
  a window partition moves whole rows of a window, and engines read the depthwise convolutions in place.
- Batch norms are folded into the convolutions before them, scale and shift of layer norms into the linear
  layers behind them, the scale of the queries into their projection.
- The published partition pads with zeros before the norm, which makes a padded token the norm's shift. With
  that shift folded away it is zero after the norm, so that normalised tokens are padded with zeros.
- What is the same for all keys of a softmax cancels in it: key biases. Rows of a softmax sum to one, so that
  value biases pass into the bias of the output projection.
- Padded tokens are dropped before the output projection instead of behind it.
- q, k and v are three products, each from heads in order: no split of an interleaved tensor.
- Of the light encoder, batch norms before an attention are folded into its projection, and the last norm runs
  over the last axis, as one operator that engines know.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.models import light_encoder, tiny_vit
from litemed.models.light_encoder import HEAD_DIM, NORM_EPSILON
from litemed.models.litemedsam import LiteMedSAM


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


class WindowAttention(nn.Module):
    """Norm, partition, attention and its reverse: tokens (1, H W, C) of a square of that side to the same."""

    bias: Tensor

    def __init__(self, attention: tiny_vit.Attention, side: int) -> None:
        super().__init__()
        dim, heads, head_dim = attention.proj.out_features, attention.heads, attention.head_dim
        self.dim, self.heads, self.side = dim, heads, side
        self.window = round(attention.attention_biases.shape[1] ** 0.5)
        self.padding = -side % self.window
        self.windows = (side + self.padding) // self.window
        self.norm = nn.LayerNorm(dim, attention.norm.eps, elementwise_affine=False)
        weight, bias = after_norm(attention.norm, attention.qkv)
        q, k, v = weight.view(heads, 3, head_dim, dim).transpose(0, 1).reshape(3, dim, dim)
        bias_q, _, bias_v = bias.view(heads, 3, head_dim).transpose(0, 1).reshape(3, dim)
        scale = head_dim**-0.5
        self.q, self.k, self.v = linear(q * scale, bias_q * scale), linear(k), linear(v)
        weight = attention.proj.weight.double()
        self.proj = linear(weight, attention.proj.bias + weight @ bias_v)
        self.register_buffer("bias", attention.attention_biases[:, attention.offset_index].detach())

    def forward(self, x: Tensor) -> Tensor:
        window, windows, padded = self.window, self.windows, self.side + self.padding
        x = self.norm(x).reshape(1, self.side, self.side, self.dim)
        if self.padding:
            x = F.pad(x, (0, 0, 0, self.padding, 0, self.padding))
        x = x.reshape(windows, window, windows, window, self.dim).transpose(1, 2)
        x = x.reshape(windows**2, window**2, self.dim)
        q, k, v = (
            layer(x).reshape(-1, window**2, self.heads, self.dim // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        context = (q @ k.transpose(-2, -1) + self.bias).softmax(dim=-1) @ v
        x = context.transpose(1, 2).reshape(windows, windows, window, window, self.dim).transpose(1, 2)
        if self.padding:
            x = x.reshape(1, padded, padded, self.dim)[:, : self.side, : self.side]
        return self.proj(x.reshape(1, self.side**2, self.dim))


class Block(nn.Module):
    """Window attention, depthwise convolution and MLP: tokens (1, H W, C) of a square to the same."""

    def __init__(self, block: tiny_vit.TinyViTBlock, side: int) -> None:
        super().__init__()
        self.side = side
        self.attention = WindowAttention(block.attn, side)
        self.convolution = convolution(block.local_conv.c, block.local_conv.bn)
        mlp = block.mlp
        norm = nn.LayerNorm(mlp.fc1.in_features, mlp.norm.eps, elementwise_affine=False)
        self.mlp = nn.Sequential(norm, linear(*after_norm(mlp.norm, mlp.fc1)), nn.GELU(), mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.attention(x)).reshape(1, self.side, self.side, -1)
        x = channels_last(self.convolution(channels_first(x))).reshape(1, self.side**2, -1)
        return x + self.mlp(x)


class PatchMerging(nn.Module):
    """Change of channels and resolution: (1, H, W, C) to (1, H', W', C')."""

    def __init__(self, merging: tiny_vit.PatchMerging) -> None:
        super().__init__()
        self.conv1, self.conv3 = pointwise(merging.conv1), pointwise(merging.conv3)
        self.conv2 = convolution(merging.conv2.c, merging.conv2.bn)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_first(F.gelu(self.conv1(x)))
        return self.conv3(channels_last(F.gelu(self.conv2(x))))


class FastEncoderGraph(nn.Module):
    """Image (1, 3, S, S) in [0, 1] to embedding (1, 256, S/4, S/4) of a network, which is not changed."""

    def __init__(self, model: LiteMedSAM) -> None:
        super().__init__()
        encoder: Any = model.image_encoder
        first, *stages = encoder.layers
        self.first = folded(nn.Sequential(encoder.patch_embed, first))
        self.sides = (model.size // 2, model.size // 4, model.size // 4)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(block, side) for block in stage.blocks))
            for stage, side in zip(stages, self.sides, strict=True)
        )
        self.mergings = nn.ModuleList(PatchMerging(stage.downsample) for stage in stages[:-1])
        project, norm, self.smooth, last_norm = encoder.neck
        self.project = linear(project.weight[:, :, 0, 0])
        self.norm, self.last_norm = channel_norm(norm), channel_norm(last_norm)

    def forward(self, image: Tensor) -> Tensor:
        x = channels_last(self.first(image))
        for i, (stage, side) in enumerate(zip(self.stages, self.sides, strict=True)):
            if i:
                x = self.mergings[i - 1](x)
            x = stage(x.reshape(1, side**2, -1)).reshape(1, side, side, -1)
        x = channels_first(self.norm(self.project(x)))
        return channels_first(self.last_norm(channels_last(self.smooth(x))))


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


class LightAttention(nn.Module):
    """The light encoder's attention over all positions, and the residual: (1, C, H, W) to the same."""

    def __init__(self, attention: light_encoder.Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        scale, shift = norm_scale_and_shift(attention.n)
        qkv: Any = attention.qkv
        weight = qkv.weight[:, :, 0, 0].double()
        bias = qkv.bias.double() + weight @ shift
        weight = weight * scale
        channels = weight.shape[1]
        weight[:channels] *= HEAD_DIM**-0.5
        bias[:channels] *= HEAD_DIM**-0.5
        bias[channels : 2 * channels] = 0
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qkv.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})
        self.p = attention.p

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        q, k, v = self.qkv(x).reshape(3, self.heads, HEAD_DIM, height * width).unbind(0)
        context = (q.transpose(1, 2) @ k).softmax(dim=-1) @ v.transpose(1, 2)
        return x + self.p(context.transpose(1, 2).reshape(1, channels, height, width))


class LightEncoderGraph(nn.Module):
    """Image (1, 3, S, S) in [0, 1] to embedding (1, 256, S/4, S/4) of a network, which is not changed."""

    def __init__(self, model: LiteMedSAM) -> None:
        super().__init__()
        self.encoder = folded(model.image_encoder)
        blocks = self.encoder.s16
        for i, block in enumerate(blocks):
            if isinstance(block, light_encoder.Attention):
                blocks[i] = LightAttention(block)
        self.norm = nn.LayerNorm(self.encoder.neck.out_channels, NORM_EPSILON)
        weights = {"weight": self.encoder.gamma.flatten(), "bias": self.encoder.beta.flatten()}
        self.norm.load_state_dict(weights)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return channels_first(self.norm(channels_last(self.encoder.features(image))))

"""TinyViT rewritten for speed, equal up to rounding.

Same input and output as `litemed.models.tiny_vit.TinyViT` for one image. What is computed differently, and
why it is the same:

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
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from litemed.export.folding import after_norm, convolution, linear, pointwise
from litemed.models import tiny_vit
from litemed.models.litemedsam import LiteMedSAM


class Norm(nn.Module):
    """Layer norm over the last axis without scale and shift."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps = list(norm.normalized_shape), norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, eps=self.eps)


class WindowAttention(nn.Module):
    """Norm, partition, attention and its reverse: tokens (1, H W, C) of a square of that side to the same."""

    bias: Tensor

    def __init__(self, attention: tiny_vit.Attention, side: int) -> None:
        super().__init__()
        dim, heads, self.head_dim = attention.proj.out_features, attention.heads, attention.head_dim
        self.dim, self.heads, self.side = dim, heads, side
        self.window = round(attention.attention_biases.shape[1] ** 0.5)
        self.padding = -side % self.window
        self.windows = (side + self.padding) // self.window
        self.norm = Norm(attention.norm)
        weight, bias = after_norm(attention.norm, attention.qkv.weight, attention.qkv.bias)
        q, k, v = weight.view(heads, 3, self.head_dim, dim).transpose(0, 1).reshape(3, dim, dim)
        bias_q, _, bias_v = bias.view(heads, 3, self.head_dim).transpose(0, 1).reshape(3, dim)
        scale = self.head_dim**-0.5
        self.q, self.k, self.v = linear(q * scale, bias_q * scale), linear(k), linear(v)
        weight = attention.proj.weight.double()
        self.proj = linear(weight, attention.proj.bias + weight @ bias_v)
        self.register_buffer("bias", attention.attention_biases[:, attention.offset_index].detach())

    def forward(self, x: Tensor) -> Tensor:
        x = self._partition(self.norm(x))
        q, k, v = (self._split_heads(layer(x)) for layer in (self.q, self.k, self.v))
        context = (q @ k.transpose(-2, -1) + self.bias).softmax(dim=-1) @ v
        return self.proj(self._reverse(context.transpose(1, 2)))

    def _partition(self, x: Tensor) -> Tensor:
        """Tokens (1, H W, C) to (windows, tokens of a window, C)."""
        x = x.reshape(1, self.side, self.side, self.dim)
        if self.padding:
            x = F.pad(x, (0, 0, 0, self.padding, 0, self.padding))
        x = x.reshape(self.windows, self.window, self.windows, self.window, self.dim)
        return x.transpose(1, 2).reshape(self.windows**2, self.window**2, self.dim)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.window**2, self.heads, self.head_dim).transpose(1, 2)

    def _reverse(self, x: Tensor) -> Tensor:
        """Windows (windows, tokens of a window, heads, C / heads) to tokens (1, H W, C)."""
        x = x.reshape(self.windows, self.windows, self.window, self.window, self.dim).transpose(1, 2)
        if self.padding:
            padded = self.side + self.padding
            x = x.reshape(1, padded, padded, self.dim)[:, : self.side, : self.side]
        return x.reshape(1, self.side**2, self.dim)


class Block(nn.Module):
    """Window attention, depthwise convolution and MLP: tokens (1, H W, C) of a square to the same."""

    def __init__(self, block: tiny_vit.TinyViTBlock, side: int) -> None:
        super().__init__()
        self.side = side
        self.attention = WindowAttention(block.attn, side)
        self.convolution = convolution(block.local_conv.c, block.local_conv.bn)
        mlp = block.mlp
        self.norm = Norm(mlp.norm)
        self.fc1 = linear(*after_norm(mlp.norm, mlp.fc1.weight, mlp.fc1.bias))
        self.fc2 = mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.attention(x)).reshape(1, self.side, self.side, -1)
        x = channels_last(self.convolution(channels_first(x))).reshape(1, self.side**2, -1)
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class PatchMerging(nn.Module):
    """Change of channels and resolution: (1, H, W, C) to (1, H', W', C')."""

    def __init__(self, merging: tiny_vit.PatchMerging) -> None:
        super().__init__()
        self.conv1, self.conv3 = pointwise(merging.conv1), pointwise(merging.conv3)
        self.conv2 = convolution(merging.conv2.c, merging.conv2.bn)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_first(F.gelu(self.conv1(x)))
        return self.conv3(channels_last(F.gelu(self.conv2(x))))


class FirstStage(nn.Module):
    """Patch embedding, inverted bottlenecks and the first change of resolution, all convolutions.

    Image (1, 3, S, S) to (1, C, S/2, S/2).
    """

    def __init__(self, encoder: tiny_vit.TinyViT) -> None:
        super().__init__()
        first, _, second = cast(Any, encoder.patch_embed.seq)
        stage = cast(tiny_vit.Stage, encoder.layers[0])
        self.embed = nn.Sequential(
            convolution(first.c, first.bn), nn.GELU(), convolution(second.c, second.bn)
        )
        self.blocks = nn.ModuleList(_bottleneck(block) for block in stage.blocks)
        self.merging = _bottleneck(stage.downsample)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = F.gelu(x + block(x))
        return self.merging(x)


class FastEncoderGraph(nn.Module):
    """Image (1, 3, S, S) in [0, 1] to embedding (1, 256, S/4, S/4) of a network, which is not changed."""

    def __init__(self, model: LiteMedSAM) -> None:
        super().__init__()
        encoder = cast(tiny_vit.TinyViT, model.image_encoder)
        self.first = FirstStage(encoder)
        self.sides = (model.size // 2, model.size // 4, model.size // 4)
        stages = [cast(tiny_vit.Stage, stage) for stage in encoder.layers][1:]
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(cast(tiny_vit.TinyViTBlock, block), side) for block in stage.blocks)
            for stage, side in zip(stages, self.sides, strict=True)
        )
        self.mergings = nn.ModuleList(
            PatchMerging(cast(tiny_vit.PatchMerging, stage.downsample)) for stage in stages[:-1]
        )
        project, norm, smooth, last_norm = cast(Any, encoder.neck)
        self.project = linear(project.weight[:, :, 0, 0])
        self.norm, self.last_norm = _channel_norm(norm), _channel_norm(last_norm)
        self.smooth = smooth

    def forward(self, image: Tensor) -> Tensor:
        x = channels_last(self.first(image))
        for i, (blocks, side) in enumerate(zip(self.stages, self.sides, strict=True)):
            if i:
                x = self.mergings[i - 1](x)
            x = x.reshape(1, side**2, -1)
            for block in cast(nn.ModuleList, blocks):
                x = block(x)
            x = x.reshape(1, side, side, -1)
        x = channels_first(self.norm(self.project(x)))
        return channels_first(self.last_norm(channels_last(self.smooth(x))))


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _bottleneck(block: Any) -> nn.Sequential:
    """Three convolutions with GELU between them, of an `MBConv` or a `PatchMerging`."""
    first, second, third = (
        convolution(layer.c, layer.bn) for layer in (block.conv1, block.conv2, block.conv3)
    )
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)


def _channel_norm(norm: Any) -> nn.LayerNorm:
    """A norm over the channels of (B, C, H, W) as one over the last axis."""
    layer = nn.LayerNorm(norm.weight.shape[0], norm.eps)
    layer.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return layer.requires_grad_(False)

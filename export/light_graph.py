"""The light encoder rewritten for inference, equal up to rounding.

Same input and output as `litemed.models.light_encoder.LightEncoder` for one image. Batch norms are folded
into the convolutions beside them, those before an attention into its projection together with the scale of
the queries. A key's bias is the same for all keys of a softmax and cancels in it. The last norm runs over the
last axis, as one operator that engines know.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from litemed.export.fast_encoder import channels_first, channels_last
from litemed.export.norm_folding import folded, norm_scale_and_shift
from litemed.models import light_encoder
from litemed.models.light_encoder import HEAD_DIM, NORM_EPSILON
from litemed.models.litemedsam import LiteMedSAM


class Attention(nn.Module):
    """Attention over all positions, and the residual: (1, C, H, W) to the same."""

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
                blocks[i] = Attention(block)
        self.norm = nn.LayerNorm(self.encoder.neck.out_channels, NORM_EPSILON)
        weights = {"weight": self.encoder.gamma.flatten(), "bias": self.encoder.beta.flatten()}
        self.norm.load_state_dict(weights)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return channels_first(self.norm(channels_last(self.encoder.features(image))))

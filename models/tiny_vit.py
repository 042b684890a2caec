"""TinyViT, the image encoder of LiteMedSAM.

Four stages on a 256 x 256 image without a strided stem: two inverted-bottleneck convolution blocks at 256²,
then windowed self-attention at 128², 64² and 64², and a neck to 256 channels. Source: Wu et al., "TinyViT:
Fast Pretraining Distillation for Small Vision Transformers" (ECCV 2022), in the variant that LiteMedSAM
publishes (1 x 1 patch embedding, a last downsampling of stride 1).

Parameter names are those of the published checkpoint. Shapes in this module: B images, C channels, H x W the
spatial size of the stage, L = H * W tokens in row-major order.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.models.layers import LayerNorm2d

# Of each stage; the strides are those between them.
DIMS, DEPTHS = (64, 128, 160, 320), (2, 2, 6, 2)
HEADS, WINDOWS, STRIDES = (2, 4, 5, 10), (7, 7, 14, 7), (2, 2, 1)
EXPAND = 4
"""How many times as wide perceptrons and inverted bottlenecks are within."""


class ConvNorm(nn.Sequential):
    """A convolution without bias followed by batch norm: (B, C_in, H, W) to (B, C_out, H', W')."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=c, bn=nn.BatchNorm2d(out_channels)))


class PatchEmbed(nn.Module):
    """Lift the image to the first stage's channels at full resolution: (B, 3, H, W) to (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        half = DIMS[0] // 2
        self.seq = nn.Sequential(ConvNorm(3, half), nn.GELU(), ConvNorm(half, DIMS[0]))

    def forward(self, x: Tensor) -> Tensor:  # of its own: PyTorch compiles none of nn.Sequential's
        embedded: Tensor = self.seq(x)
        return embedded


class MBConv(nn.Module):
    """Inverted bottleneck with a 3 x 3 depthwise convolution and a residual: (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * EXPAND
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """Change channels and, with stride 2, halve the resolution: (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, kernel=3, stride=stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class Attention(nn.Module):
    """Multi-head self-attention over one window with a learnt bias per head and offset.

    Tokens (B * windows, window², C) to the same. The bias depends on the absolute offsets of two tokens:
    `attention_biases[head, |dy| * window + |dx|]`. The output rows of `qkv` are interleaved per head: head
    0's q, k, v, then head 1's, and so on.
    """

    offset_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        rows = torch.arange(window).repeat_interleave(window)
        columns = torch.arange(window).repeat(window)
        offsets = (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
        self.register_buffer("offset_index", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, dim = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3 * self.head_dim)
        q, k, v = qkv.permute(0, 2, 1, 3).split(self.head_dim, dim=-1)
        bias = self.attention_biases[:, self.offset_index].to(q.dtype)  # else bfloat16 scores grow to float32
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1) + bias
        context = scores.softmax(dim=-1) @ v
        return self.proj(context.transpose(1, 2).reshape(windows, tokens, dim))


class Mlp(nn.Sequential):
    """Layer norm and a two-layer perceptron with GELU: (..., C) to (..., C)."""

    norm: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(self, dim: int) -> None:
        fc1, fc2 = nn.Linear(dim, dim * EXPAND), nn.Linear(dim * EXPAND, dim)
        super().__init__(OrderedDict(norm=nn.LayerNorm(dim), fc1=fc1, gelu=nn.GELU(), fc2=fc2))


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise 3 x 3 convolution and an MLP: (B, C, H, W) to the same.

    Where the window does not divide H or W, zeros are appended at the bottom and right before the norm; those
    tokens take part in the attention, as published.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(dim, heads, window)
        self.mlp = Mlp(dim)
        self.local_conv = ConvNorm(dim, dim, kernel=3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        w = self.window
        padded = F.pad(x, (0, -width % w, 0, -height % w))
        rows, columns = padded.shape[2] // w, padded.shape[3] // w
        y = padded.view(batch, dim, rows, w, columns, w).permute(0, 2, 4, 3, 5, 1)
        y = self.attn(y.reshape(batch * rows * columns, w * w, dim))
        y = y.view(batch, rows, columns, w, w, dim).permute(0, 5, 1, 3, 2, 4)
        x = self.local_conv(x + y.reshape(padded.shape)[:, :, :height, :width])
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.mlp(tokens)).transpose(1, 2).reshape(x.shape)


class TinyViT(nn.Sequential):
    """The image encoder: image (B, 3, S, S) in [0, 1] to embedding (B, 256, S/4, S/4).

    S is 256 in the published model; any multiple of 64 works with the same weights. Every stage has blocks of
    one resolution and, but for the last, the change to the next one.
    """

    neck: nn.Sequential

    def __init__(self) -> None:
        embed, stages = PatchEmbed(), []
        for i, (dim, depth) in enumerate(zip(DIMS, DEPTHS, strict=True)):
            blocks = (TinyViTBlock(dim, HEADS[i], WINDOWS[i]) if i else MBConv(dim) for _ in range(depth))
            stage = OrderedDict[str, nn.Module](blocks=nn.Sequential(*blocks))
            if i < len(STRIDES):
                stage["downsample"] = PatchMerging(dim, DIMS[i + 1], STRIDES[i])
            stages.append(nn.Sequential(stage))
        neck = nn.Sequential(
            nn.Conv2d(DIMS[-1], 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )
        super().__init__(OrderedDict(patch_embed=embed, layers=nn.Sequential(*stages), neck=neck))

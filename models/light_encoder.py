"""The light encoder: a small convolutional stand-in for TinyViT with the same input and output.

A strided stem, then a pyramid of 64, 32 and 16 positions a side (for a 256 x 256 image), attention only over
the smallest, and the three levels added up at the largest: 14.6 GFLOP where TinyViT has 75. It is distilled
from a LiteMedSAM (see `litemed.train`), whose embedding it imitates. Shapes: B images, C channels, H x W the
size of the level.
"""

from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 32  # channels of each attention head
NORM_EPSILON = 1e-6


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm and, unless `activate` is False, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activate else []))


class FusedBlock(nn.Module):
    """A dense 3 x 3 convolution to 2 C channels, a 1 x 1 back, and a residual: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.f = nn.Sequential(ConvNorm(channels, wide), ConvNorm(wide, channels, 1, activate=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class MixBlock(nn.Module):
    """A depthwise convolution, a perceptron of width 4, and a residual: (B, C, H, W) to the same."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.dw = ConvNorm(channels, channels, kernel, groups=channels, activate=False)
        wide = 4 * channels
        self.f = nn.Sequential(ConvNorm(channels, wide, 1), ConvNorm(wide, channels, 1, activate=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.dw(x))


class Attention(nn.Module):
    """Batch norm, self-attention over all positions, and a residual: (B, C, H, W) to the same.

    The rows of `qkv` are q, k and v one after the other, each head by head.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_DIM
        self.n = nn.BatchNorm2d(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.p = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.n(x)).reshape(batch, 3, self.heads, HEAD_DIM, height * width)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        context = F.scaled_dot_product_attention(q, k, v)
        return x + self.p(context.transpose(2, 3).reshape(batch, channels, height, width))


class LightEncoder(nn.Module):
    """The image encoder: image (B, 3, S, S) in [0, 1] to embedding (B, 256, S/4, S/4).

    S is 256 in the trained weights; any multiple of 64 works.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 32, stride=2), FusedBlock(32), ConvNorm(32, 96, stride=2))
        self.s64 = nn.Sequential(*(MixBlock(96, 3) for _ in range(3)))
        self.d32 = ConvNorm(96, 192, stride=2, activate=False)
        self.s32 = nn.Sequential(*(MixBlock(192, 5) for _ in range(6)))
        self.d16 = ConvNorm(192, 384, stride=2, activate=False)
        plain = [MixBlock(384, 5) for _ in range(2)]
        attending = [block for _ in range(4) for block in (MixBlock(384, 5), Attention(384))]
        self.s16 = nn.Sequential(*plain, *attending)
        self.l64, self.l32, self.l16 = (
            ConvNorm(channels, 128, kernel=1, activate=False) for channels in (96, 192, 384)
        )
        self.ref = nn.Sequential(MixBlock(128, 3), MixBlock(128, 3))
        self.neck = nn.Conv2d(128, 256, 1, bias=False)
        # The scale and shift of a norm over the channels of each position.
        self.gamma = nn.Parameter(self.neck.weight.new_ones(1, 256, 1, 1))
        self.beta = nn.Parameter(self.neck.weight.new_zeros(1, 256, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        y = self.features(image)
        centred = y - y.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        return centred / (variance + NORM_EPSILON).sqrt() * self.gamma + self.beta

    def features(self, image: Tensor) -> Tensor:
        """Return the embedding before its last norm."""
        fine = self.s64(self.stem(image))
        middle = self.s32(self.d32(fine))
        coarse = self.s16(self.d16(middle))
        y = self.l64(fine) + _upsample(self.l32(middle) + _upsample(self.l16(coarse)))
        return self.neck(self.ref(y))


def _upsample(x: Tensor) -> Tensor:
    """Double the resolution, bilinear with half-pixel centres: (B, C, H, W) to (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

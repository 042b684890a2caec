"""The prompt encoder of SAM: boxes, points and masks to embeddings.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A. Coordinates are pixels of the network's
input frame (x to the right, y down), a pixel's centre lying at +0.5.
"""

import math

import torch
from torch import Tensor, nn

from litemed.models.layers import LayerNorm2d
from litemed.models.transformer import DIM

NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = range(-1, 4)


class PositionEmbeddingRandom(nn.Module):
    """Fourier features of x, y in [0, 1] under a fixed random projection: (..., 2) to (..., 256)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, DIM // 2))

    def forward(self, unit_xy: Tensor) -> Tensor:
        phase = (2 * math.pi) * ((2 * unit_xy - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Embed prompts for the mask decoder; `size` is the side of the network's input in pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pe_layer = PositionEmbeddingRandom()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, DIM) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, DIM)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, DIM, 1),
        )
        self.no_mask_embed = nn.Embedding(1, DIM)

    def forward(
        self,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts of N objects: boxes (N, 4) x0, y0, x1, y1, points or both.

        `points` are (N, P, 2) x, y and (N, P) labels: 1 foreground, 0 background, -1 padding, whose position
        is ignored (without boxes one is appended, as published); `masks` are (N, 1, size, size) logits of an
        earlier prediction. Returns sparse tokens (N, T, 256) and dense embeddings, broadcastable to
        (N, 256, size/4, size/4).
        """
        tokens = []
        if points is not None:
            xy, labels = points
            if boxes is None:
                xy = torch.cat([xy, xy.new_zeros(len(xy), 1, 2)], dim=1)
                labels = torch.cat([labels, labels.new_full((len(labels), 1), NOT_A_POINT)], dim=1)
            labels = labels.unsqueeze(-1)
            embedded = self.pe_layer((xy + 0.5) / self.size)
            embedded = torch.where(labels == NOT_A_POINT, self.not_a_point_embed.weight, embedded)
            for kind in (BACKGROUND, FOREGROUND):
                embedded = embedded + (labels == kind) * self._point_embedding(kind)
            tokens.append(embedded)
        if boxes is not None:
            corners = self.pe_layer((boxes.reshape(-1, 2, 2) + 0.5) / self.size)
            tokens.append(corners + torch.cat([self._point_embedding(k) for k in (TOP_LEFT, BOTTOM_RIGHT)]))
        no_mask = self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return torch.cat(tokens, dim=1), no_mask if masks is None else self.mask_downscaling(masks)

    def _point_embedding(self, kind: int) -> Tensor:
        return self.point_embeddings.get_parameter(f"{kind}.weight")  # (1, 256)

    def image_positions(self) -> Tensor:
        """Return the positional encoding of the image embedding, (1, 256, size/4, size/4)."""
        matrix, side = self.pe_layer.positional_encoding_gaussian_matrix, self.size // 4
        centres = (torch.arange(side, device=matrix.device, dtype=matrix.dtype) + 0.5) / side
        xy = torch.stack([centres.expand(side, side), centres[:, None].expand(side, side)], dim=-1)
        return self.pe_layer(xy).permute(2, 0, 1).unsqueeze(0)

"""The prompt encoder of SAM: boxes, points and masks to embeddings.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A. Coordinates are pixels of the network's
input frame (x to the right, y down), a pixel's centre lying at +0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from litemed.models.layers import LayerNorm2d
from litemed.models.transformer import DIM

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = range(4)
NOT_A_POINT = -1


class PositionEmbeddingRandom(nn.Module):
    """Fourier features of positions in the unit square under a fixed random projection."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, DIM // 2))

    def forward(self, unit_xy: Tensor) -> Tensor:
        """Encode (..., 2) x, y in [0, 1] as (..., 256)."""
        phase = (2 * math.pi) * ((2 * unit_xy - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    def grid(self, side: int) -> Tensor:
        """Encode the cell centres of a side x side grid: (1, 256, side, side)."""
        matrix = self.positional_encoding_gaussian_matrix
        centres = (torch.arange(side, device=matrix.device, dtype=matrix.dtype) + 0.5) / side
        xy = torch.stack([centres.expand(side, side), centres[:, None].expand(side, side)], dim=-1)
        return self(xy).permute(2, 0, 1).unsqueeze(0)


class PromptEncoder(nn.Module):
    """Embed prompts for the mask decoder.

    Args:
        size: side of the network's input in pixels; masks come at this size, the image embedding has a
            quarter of it.
    """

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

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """Embed boxes (N, 4) x0, y0, x1, y1 in input pixels as tokens (N, 2, 256)."""
        corners = (boxes.reshape(-1, 2, 2) + 0.5) / self.size
        kind = torch.cat([self._point_embedding(k) for k in (TOP_LEFT, BOTTOM_RIGHT)])
        return self.pe_layer(corners) + kind

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points (N, P, 2) x, y with labels (N, P) as tokens (N, P, 256).

        Labels: 1 foreground, 0 background, -1 padding (its position is ignored).
        """
        labels = labels.unsqueeze(-1)
        tokens = self.pe_layer((points + 0.5) / self.size)
        tokens = torch.where(labels == NOT_A_POINT, self.not_a_point_embed.weight, tokens)
        for kind in (BACKGROUND, FOREGROUND):
            tokens = tokens + (labels == kind) * self._point_embedding(kind)
        return tokens

    def _point_embedding(self, kind: int) -> Tensor:
        return self.point_embeddings.get_parameter(f"{kind}.weight")  # (1, 256)

    def embed_masks(self, masks: Tensor | None) -> Tensor:
        """Embed mask logits (N, 1, size, size) as (N, 256, size/4, size/4), none as (1, 256, 1, 1)."""
        if masks is None:
            return self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return self.mask_downscaling(masks)

    def forward(
        self,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts of N objects.

        Args:
            boxes: (N, 4) x0, y0, x1, y1.
            points: (N, P, 2) coordinates and (N, P) labels. Without boxes a padding point is appended, as
                published.
            masks: (N, 1, size, size) logits of an earlier prediction.

        Returns:
            sparse tokens (N, T, 256) and dense embeddings, broadcastable to (N, 256, size/4, size/4).
        """
        tokens = []
        if points is not None:
            xy, labels = points
            if boxes is None:
                xy = torch.cat([xy, xy.new_zeros(len(xy), 1, 2)], dim=1)
                labels = torch.cat([labels, labels.new_full((len(labels), 1), NOT_A_POINT)], dim=1)
            tokens.append(self.embed_points(xy, labels))
        if boxes is not None:
            tokens.append(self.embed_boxes(boxes))
        if not tokens:
            count = 1 if masks is None else len(masks)
            tokens.append(self.no_mask_embed.weight.new_zeros(count, 0, self.no_mask_embed.embedding_dim))
        return torch.cat(tokens, dim=1), self.embed_masks(masks)

    def image_positions(self) -> Tensor:
        """Return the positional encoding of the image embedding, (1, 256, size/4, size/4)."""
        return self.pe_layer.grid(self.size // 4)

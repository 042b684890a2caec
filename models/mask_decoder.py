"""SAM's mask decoder: prompt tokens and an image embedding to mask logits and predicted IoU.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A.
"""

import torch
from torch import Tensor, nn

from litemed.models.layers import MLP, LayerNorm2d
from litemed.models.transformer import DIM, TwoWayTransformer

MASKS = 4


class MaskDecoder(nn.Module):
    """Predict the masks of N prompts.

    Mask token 0 answers an unambiguous prompt (a box); tokens 1 to 3 are the three candidates for another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, DIM)
        self.mask_tokens = nn.Embedding(MASKS, DIM)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(DIM, DIM // 4, 2, stride=2),
            LayerNorm2d(DIM // 4),
            nn.GELU(),
            nn.ConvTranspose2d(DIM // 4, DIM // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(DIM, DIM, DIM // 8, 3) for _ in range(MASKS))
        self.iou_prediction_head = MLP(DIM, 256, MASKS, 3)

    def forward(
        self, embedding: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, 4h, 4w) and predicted IoU (N, M); M is 3 with `multimask`, else 1.

        `embedding` is (1, 256, h, w), shared by all prompts, or (N, 256, h, w); `image_pe` (1, 256, h, w);
        `sparse` are the prompt tokens (N, T, 256); `dense` is broadcastable to (N, 256, h, w).
        """
        count = sparse.shape[0]  # len() would be a constant in a traced graph
        prefix = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([prefix.expand(count, -1, -1), sparse], dim=1)
        source = embedding + dense
        flat, positions = (x.flatten(2).transpose(1, 2) for x in (source, image_pe))
        hidden, image = self.transformer(flat, positions, tokens)
        features = self.output_upscaling(image.transpose(1, 2).unflatten(2, source.shape[-2:]))
        chosen = range(1, MASKS) if multimask else range(1)
        weights = [self.output_hypernetworks_mlps[i](hidden[:, 1 + i]) for i in chosen]  # M of (N, 32)
        logits = (torch.stack(weights, dim=1) @ features.flatten(2)).unflatten(2, features.shape[-2:])
        iou = self.iou_prediction_head(hidden[:, 0])
        return logits, iou[:, chosen.start : chosen.stop]

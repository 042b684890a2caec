"""LiteMedSAM: SAM's prompt encoder and mask decoder on a small image encoder.

Source: Ma et al., "Segment Anything in Medical Images" (Nature Communications 2024), its Lite variant with
TinyViT; 9.79 million parameters.
"""

from torch import Tensor, nn

from litemed.models.encoders import ENCODERS, TINY_VIT
from litemed.models.mask_decoder import MaskDecoder
from litemed.models.prompt_encoder import PromptEncoder


class LiteMedSAM(nn.Module):
    """The whole network. State-dict names are those of the published checkpoint.

    Args:
        size: side of the square input in pixels, a multiple of 64; 256 as published.
        encoder: a name in `litemed.models.encoders.ENCODERS`; TinyViT as published.
    """

    def __init__(self, size: int = 256, encoder: str = TINY_VIT) -> None:
        super().__init__()
        if size <= 0 or size % 64:
            raise ValueError(f"input size {size} is not a positive multiple of 64")
        self.size = size
        self.encoder = encoder
        self.image_encoder = ENCODERS[encoder].build()
        self.mask_decoder = MaskDecoder()
        self.prompt_encoder = PromptEncoder(size)

    def encode(self, image: Tensor) -> Tensor:
        """Map images (B, 3, size, size) float in [0, 1] to embeddings (B, 256, size/4, size/4)."""
        return self.image_encoder(image)

    def decode(
        self,
        embedding: Tensor,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompts (see `PromptEncoder.forward`) of one image, or of one each, by its `embedding`.

        Returns logits (N, M, size, size), positive inside the object, and predicted IoU (N, M); M is 3 with
        `multimask`, else 1.
        """
        sparse, dense = self.prompt_encoder(boxes, points, masks)
        return self.mask_decoder(embedding, self.prompt_encoder.image_positions(), sparse, dense, multimask)

    def forward(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Segment N boxes (N, 4) of one image (1, 3, size, size), or one box on each of N images."""
        return self.decode(self.encode(image), boxes)

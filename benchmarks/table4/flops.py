"""Count what the network computes and moves, from the network itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from litemed.models.litemedsam import LiteMedSAM

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """What one call of a graph takes at least.

    Attributes:
        flops: operations of its matrix products and convolutions; a multiply-add counts as two.
        bytes: of its weights, inputs and outputs in float32, each moved once.
    """

    flops: int
    bytes: int


def encoder_work(size: int = 256) -> Work:
    """Return the work of encoding one image; counted on tensors without storage."""
    with torch.device("meta"):
        model, image = LiteMedSAM(size).eval().requires_grad_(False), torch.empty(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedding = model.encode(image)
    elements = image.numel() + embedding.numel() + _weights(model.image_encoder)
    return Work(counter.get_total_flops(), FLOAT_BYTES * elements)


def decoder_work(boxes: int, size: int = 256) -> Work:
    """Return the work of decoding boxes of one image as published; a rewritten graph may need less."""
    with torch.device("meta"):
        model = LiteMedSAM(size).eval().requires_grad_(False)
        embedding, prompts = torch.empty(1, 256, size // 4, size // 4), torch.empty(boxes, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits, iou = model.decode(embedding, prompts)
    elements = embedding.numel() + prompts.numel() + logits.numel() + iou.numel()
    elements += _weights(model.mask_decoder) + _weights(model.prompt_encoder)
    return Work(counter.get_total_flops(), FLOAT_BYTES * elements)


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

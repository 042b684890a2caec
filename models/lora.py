"""LoRA while it is trained: frozen linear layers of TinyViT with a low-rank update beside them.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022),
W' = W + (alpha / rank) B A
with A drawn at random and B zero at first, so that an untrained adapter changes nothing. Here alpha = rank.
`litemed.models.adapter` writes the updates to a file, and folds them into the weights of a base.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from litemed.models.tiny_vit import Attention, Mlp

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The layers of every encoder block that are adapted."""


class LowRankUpdate(nn.Module):
    """The update B A of a linear layer: (..., in_features) to (..., out_features)."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B)


class LoRALinear(nn.Module):
    """A linear layer, frozen, and its update."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.updates = nn.ModuleDict({"all": LowRankUpdate(base, rank)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.updates["all"](x)


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Wrap the linear layers `TARGETS` of a TinyViT in place; only their updates require gradients then."""
    encoder.requires_grad_(False)
    for module in list(encoder.modules()):
        owner = {Attention: "attn", Mlp: "mlp"}.get(type(module))
        for target in TARGETS:
            of, layer = target.split(".")
            if of == owner:
                setattr(module, layer, LoRALinear(getattr(module, layer), rank))


def lora_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the updates by their names in a file, such as `layers.1.blocks.0.attn.qkv.all.lora_A`."""
    return {
        f"{name.replace('.updates.', '.')}.{leaf}": getattr(update, leaf).detach()
        for name, update in model.named_modules()
        if isinstance(update, LowRankUpdate)
        for leaf in ("lora_A", "lora_B")
    }

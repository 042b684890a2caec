"""LoRA: low-rank updates of TinyViT's linear layers, while they are trained.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022),
W' = W + (alpha / rank) B A
with A drawn at random and B zero at first, so that an untrained adapter changes nothing. What is trained here
has alpha = rank; `litemed.models.adapter` writes it to a file, `litemed.models.lora_folding` folds it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

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


def kinds_of(layers: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds of layer, such as "attn.qkv", that are among layers of several blocks."""
    return tuple(sorted({".".join(layer.split(".")[-2:]) for layer in layers}))


@dataclass(frozen=True)
class FoldedLoRA:
    """What was folded into the weights: for the manifest.

    The updates, of inner width `rank`, were scaled by alpha / rank; `targets` are the layers of each block
    that carried one, such as "attn.qkv"; `sha256` is that of the adapter's file, None when it came inside the
    checkpoint.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    sha256: str | None = None

"""LoRA: low-rank updates of TinyViT's linear layers, while they are trained and when they are folded.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022),
W' = W + (alpha / rank) B A
with A drawn at random and B zero at first, so that an untrained adapter changes nothing. What is trained here
has alpha = rank; `litemed.models.adapter` writes it to a file and folds such files. Checkpoints in the layout
of the paper's training code (loralib's) have `lora_A` and `lora_B` next to the frozen weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.models.tiny_vit import Attention, Mlp
from litemed.models.weight_files import CheckpointError, check_entries

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The layers of every encoder block that are adapted."""

SUFFIXES = (".lora_A", ".lora_B")
LORALIB_ALPHA = 1.0  # the default of the loralib package, which the paper's code leaves as it is


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


def folded(weight: Tensor, rows: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return a copy of a weight (out, in) with A (rank, in) and B (R, rank) added to its rows (R,)."""
    weight = weight.clone()
    weight[rows] += alpha / len(a) * (b.float() @ a.float())
    return weight


def fold_loralib(
    plain: Mapping[str, Tensor], lora: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], FoldedLoRA]:
    """Fold the paper's adapters, `lora`, into the weights beside them.

    loralib adapts a plain linear layer by lora_B @ lora_A. Its merged qkv layer stacks one pair per enabled
    third of the output rows: lora_A (groups * rank, in), lora_B (groups * out / 3, rank). The paper's code
    enables the first and the last third, rows that in TinyViT are not q and v (they are interleaved per
    head); a checkpoint trained so is folded so.

    Raises:
        CheckpointError: an adapter without its layer or partner, or that does not fit; all are listed.
    """
    layers = sorted({name.rpartition(".")[0] for name in lora})
    state, unusable, rank = dict(plain), [], 0
    for layer in layers:
        weight, a, b = plain.get(f"{layer}.weight"), *(lora.get(layer + suffix) for suffix in SUFFIXES)
        groups = _loralib_groups(weight, a, b)
        if weight is None or a is None or b is None or not groups:
            unusable.append(layer)
            continue
        for update in zip(groups, a.chunk(len(groups)), b.chunk(len(groups)), strict=True):
            weight = folded(weight, *update, LORALIB_ALPHA)
        state[f"{layer}.weight"] = weight
        rank = max(rank, b.shape[1])
    if unusable:
        raise CheckpointError(
            f"{source}: a linear layer, lora_A and lora_B that fit are not there for {', '.join(unusable)}"
        )
    targets = tuple(sorted({".".join(layer.split(".")[-2:]) for layer in layers}))
    check_entries(state, plain, f"{source}: folded")
    return state, FoldedLoRA(rank, LORALIB_ALPHA, targets)


def _loralib_groups(weight: Tensor | None, a: Tensor | None, b: Tensor | None) -> list[Tensor]:
    """The output rows of each group of a pair; none if the shapes fit no known arrangement."""
    if weight is None or a is None or b is None or not weight.ndim == a.ndim == b.ndim == 2:
        return []
    first, second, third = torch.arange(len(weight)).tensor_split(3)
    for groups in ([torch.arange(len(weight))], [first, third], [first, second, third]):
        a_fits = b.shape[1] and a.shape == (len(groups) * b.shape[1], weight.shape[1])
        if a_fits and {len(rows) for rows in groups} == {len(b) / len(groups)}:
            return groups
    return []

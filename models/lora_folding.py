"""Fold LoRA into the weights that it adapts: W' = W + (alpha / rank) B A.

`litemed.models.adapter` folds adapter files with it, `litemed.models.checkpoint` checkpoints in the layout of
the paper's training code (loralib's), which has `lora_A` and `lora_B` next to the frozen weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from litemed.models.errors import CheckpointError
from litemed.models.weight_files import check_entries

SUFFIXES = (".lora_A", ".lora_B")
LORALIB_ALPHA = 1.0  # the default of the loralib package, which the paper's code leaves as it is


@dataclass(frozen=True)
class FoldedLoRA:
    """What was folded into the weights: for the manifest.

    Attributes:
        rank: inner width of the updates.
        alpha: the updates were scaled by alpha / rank.
        targets: the layers of each block that carried one, such as "attn.qkv".
        sha256: of the adapter's file; None when it came inside the checkpoint.
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
    state, findings, rank = dict(plain), [], 0
    for layer in layers:
        weight, a, b = plain.get(f"{layer}.weight"), *(lora.get(layer + suffix) for suffix in SUFFIXES)
        if weight is None or weight.ndim != 2 or a is None or b is None:
            findings.append(f"{layer} lacks its linear layer, lora_A or lora_B")
        elif groups := _loralib_groups(weight, a, b):
            for update in zip(groups, a.chunk(len(groups)), b.chunk(len(groups)), strict=True):
                weight = folded(weight, *update, LORALIB_ALPHA)
            state[f"{layer}.weight"] = weight
            rank = max(rank, b.shape[1])
        else:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (a, b, weight))
            findings.append(f"{layer} has lora_A, lora_B and a layer of shapes {shapes}")
    if findings:
        raise CheckpointError(f"{source}: {len(findings)} unusable LoRA layers: {', '.join(findings)}")
    targets = tuple(sorted({".".join(layer.split(".")[-2:]) for layer in layers}))
    check_entries(state, plain, f"{source}: folded")
    return state, FoldedLoRA(rank, LORALIB_ALPHA, targets)


def _loralib_groups(weight: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """The output rows of each group of a pair; none if the shapes fit no known arrangement."""
    if a.ndim != 2 or b.ndim != 2 or not b.shape[1] or a.shape[1] != weight.shape[1]:
        return []
    first, second, third = torch.arange(len(weight)).tensor_split(3)
    for groups in ([torch.arange(len(weight))], [first, third], [first, second, third]):
        sizes = {len(rows) for rows in groups}
        if len(a) == len(groups) * b.shape[1] and sizes == {len(b) / len(groups)}:
            return groups
    return []

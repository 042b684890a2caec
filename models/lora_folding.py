"""Fold LoRA into the weights that it adapts: W' = W + (alpha / rank) B A.

`litemed.models.adapter` folds adapter files with it, `litemed.models.checkpoint` checkpoints in the layout of
the paper's training code (loralib's), which has `lora_A` and `lora_B` next to the frozen weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from litemed.models.errors import CheckpointError
from litemed.models.weight_files import check_entries

SUFFIXES = (".lora_A", ".lora_B")
LORALIB_ALPHA = 1.0  # the default of the loralib package, which the paper's code leaves as it is

Update = tuple[Tensor, Tensor, Tensor]
"""The output rows of a layer that are adapted, int64 (R,); A (rank, in); B (R, rank)."""


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


def folded(weight: Tensor, updates: Sequence[Update], alpha: float) -> Tensor:
    """Return a new weight (out, in): the given one with its updates added."""
    weight = weight.clone()
    for rows, a, b in updates:
        weight[rows] += alpha / len(a) * (b.float() @ a.float())
    return weight


def fold_loralib(
    plain: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float, source: str
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
            updates = zip(groups, a.chunk(len(groups)), b.chunk(len(groups)), strict=True)
            state[f"{layer}.weight"] = folded(weight, list(updates), alpha)
            rank = max(rank, b.shape[1])
        else:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (a, b, weight))
            findings.append(f"{layer} has lora_A, lora_B and a layer of shapes {shapes}")
    if findings:
        raise CheckpointError(f"{source}: {len(findings)} unusable LoRA layers: {', '.join(findings)}")
    targets = tuple(sorted({".".join(layer.split(".")[-2:]) for layer in layers}))
    check_entries(state, plain, f"{source}: folded")
    return state, FoldedLoRA(rank, alpha, targets)


def _loralib_groups(weight: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """The output rows of each group of a pair; none if the shapes fit no known arrangement."""
    if a.ndim != 2 or b.ndim != 2 or not b.shape[1] or a.shape[1] != weight.shape[1]:
        return []
    everything = torch.arange(len(weight))
    thirds = everything.chunk(3)
    for rows in ([everything], [thirds[0], thirds[-1]], list(thirds)):
        fits = (len(rows) * b.shape[1], sum(map(len, rows))) == (len(a), len(b))
        if fits and len({len(part) for part in rows}) == 1:
            return rows
    return []

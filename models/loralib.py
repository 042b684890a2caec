"""LoRA in the layout of the paper's training code: `lora_A` and `lora_B` next to the frozen weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from litemed.models.errors import CheckpointError
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import LoRALinear, LowRankUpdate, folded_state_dict, named_updates
from litemed.models.weight_files import listing

LORALIB_ALPHA = 1.0  # the default of the loralib package, which the paper's code leaves as it is
SUFFIXES = (".lora_A", ".lora_B")


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


def wrap_loralib(
    plain: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float, source: str
) -> LiteMedSAM:
    """Build the network with the paper's adapters beside its weights, not folded.

    loralib adapts a plain linear layer by lora_B @ lora_A. Its merged qkv layer
    stacks one pair per enabled third of the output rows: lora_A (groups * rank,
    in), lora_B (groups * out / 3, rank). The paper's code enables the first and
    the last third, rows that in TinyViT are not q and v (they are interleaved
    per head); a checkpoint trained so is folded so.

    Raises:
        CheckpointError: an adapter without its layer or partner, or of a wrong shape; all are listed.
    """
    model = LiteMedSAM()
    model.load_state_dict(plain)
    layers = {k: m for k, m in model.named_modules() if isinstance(m, nn.Linear)}
    findings = []
    for name in sorted({k.rpartition(".")[0] for k in lora}):
        a, b = lora.get(f"{name}.lora_A"), lora.get(f"{name}.lora_B")
        layer = layers.get(name)
        if a is None or b is None or layer is None:
            findings.append(f"{name} lacks {'its linear layer' if layer is None else 'lora_A or lora_B'}")
            continue
        rows = _loralib_rows(layer, a, b)
        if rows is None:
            findings.append(
                f"{name} lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)} "
                f"on a layer of {tuple(layer.weight.shape)}"
            )
            continue
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            findings.append(f"{name} holds values that are not finite")
            continue
        rank = b.shape[1]
        updates = {}
        for i, part in enumerate(rows):
            update = LowRankUpdate(layer.in_features, part, rank, alpha / rank)
            update.lora_A.data = a[i * rank : (i + 1) * rank].float()
            update.lora_B.data = b[i * len(part) : (i + 1) * len(part)].float()
            updates[f"group{i}"] = update
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoRALinear(layer, updates))
    if findings:
        raise CheckpointError(f"{source}: {len(findings)} unusable LoRA layers: {listing(findings)}")
    return model.eval()


def _loralib_rows(layer: nn.Linear, a: Tensor, b: Tensor) -> list[Tensor] | None:
    """The output rows of each group of a loralib pair, or None if the shapes fit no known arrangement."""
    if a.ndim != 2 or b.ndim != 2 or not b.shape[1] or a.shape[1] != layer.in_features:
        return None
    groups, rest = divmod(a.shape[0], b.shape[1])
    everything = torch.arange(layer.out_features)
    thirds = everything.chunk(3)
    if rest:
        return None
    if groups == 1 and b.shape[0] == layer.out_features:
        return [everything]
    if groups == 2 and 3 * b.shape[0] == 2 * layer.out_features:
        return [thirds[0], thirds[2]]
    if groups == 3 and b.shape[0] == layer.out_features and layer.out_features % 3 == 0:
        return list(thirds)
    return None


def fold(model: nn.Module, source: str) -> dict[str, Tensor]:
    """Fold every update of a model into a copy of its weights.

    Raises:
        CheckpointError: a folded weight is not finite.
    """
    try:
        return folded_state_dict(model)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def loralib_summary(model: nn.Module, alpha: float) -> FoldedLoRA:
    """Return what `wrap_loralib` found, for the manifest."""
    updates = named_updates(model)
    ranks = {len(u.lora_A) for u in updates.values()}
    targets = sorted({".".join(name.split(".")[-3:-1]) for name in updates})
    return FoldedLoRA(max(ranks), alpha, tuple(targets))

"""Where LoRA is folded into the weights: files of this project and of peft, the paper's layout.

W' = W + (alpha / rank) B A, see `litemed.models.lora`. The paper's training code is loralib's: `lora_A` and
`lora_B` lie next to the frozen weight, and alpha is not on record. Saved in evaluation mode, the weight holds
the update already; nothing in the file tells so, but the base does.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from litemed.models.adapter import PARTS, read_adapter_header, read_decoder
from litemed.models.lora import FoldedLoRA, kinds_of
from litemed.models.peft_adapter import FILES, read_peft
from litemed.models.weight_files import (
    CheckpointError,
    check_entries,
    file_in,
    read_file,
    tensors_of,
    weights_digest,
)
from litemed.runtime.files import sha256_of_file

if TYPE_CHECKING:
    from litemed.models.checkpoint import Checkpoint

SUFFIXES = (".lora_A", ".lora_B")
LORALIB_ALPHA = 1.0
"""The default of the loralib package, which the paper's code leaves as it is."""
MERGED = 0.7
"""Cosine of update and change of the weights: 0 for frozen weights, whatever they were rounded to, else 1."""


def fold_adapter(
    base: Checkpoint, path: str | pathlib.Path, *, loralib_alpha: float = LORALIB_ALPHA
) -> Checkpoint:
    """Return a new checkpoint with an adapter folded in; the base is left as it was.

    The adapter is a file of litemed-train or of peft (or peft's folder), or a whole checkpoint of the paper's
    code, tuned from this base, whose weights take the place of the base's and whose alpha is `loralib_alpha`.

    Raises:
        CheckpointError: the file is no adapter, or one for another base (one that holds a LoRA is);
            the decoder trained with it is missing or another one; entries are missing, unexpected or wrongly
            shaped; a setting is not supported; or a folded weight is not finite.
    """
    path = file_in(pathlib.Path(path), *FILES)
    tensors, _ = tensors_of(path, read_file(path))
    if any(k.endswith(SUFFIXES) and f"{k.rpartition('.')[0]}.weight" in tensors for k in tensors):
        return _tuned_by_loralib(base, path, tensors, loralib_alpha)
    decoder = None
    if any(name.startswith("base_model.") for name in tensors):  # of peft
        if base.lora is not None:
            raise CheckpointError(f"{path}: cannot be folded in, for {base.file} holds a LoRA already")
        tensors, layers, lora = read_peft(path, tensors, base.state)
        rows_of = {layer: torch.arange(len(base.state[f"{layer}.weight"])) for layer in layers}
        updates = {layer: (f"{layer}.weight", rows) for layer, rows in rows_of.items()}
    else:
        lora, made_for, decoder = read_adapter_header(path)
        digest = weights_digest(base.state)
        if made_for != digest:
            raise CheckpointError(
                f"{path}: made for another base (digest {made_for[:12]}; {base.file} has {digest[:12]})"
            )
        updates = _adapted_rows(base.state, lora.targets)
    expected = {}
    for name, (weight, rows) in updates.items():
        expected[f"{name}.lora_A"] = torch.empty(lora.rank, base.state[weight].shape[1], device="meta")
        expected[f"{name}.lora_B"] = torch.empty(len(rows), lora.rank, device="meta")
    check_entries(tensors, expected, str(path))
    state = dict(base.state)
    for name, (weight, rows) in updates.items():
        a, b = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
        state[weight] = folded(state[weight], rows, a, b, lora.alpha)
    if decoder is not None:
        state |= read_decoder(path, decoder, base.state)
    check_entries(state, base.state, f"{path}: folded")
    return replace(base, state=state, layout=f"{base.layout} + adapter", lora=lora)


def _tuned_by_loralib(
    base: Checkpoint, path: pathlib.Path, tensors: Mapping[str, Tensor], alpha: float
) -> Checkpoint:
    """Return the checkpoint of the paper's code that was tuned from a base: its update once, not twice."""
    plain = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    lora = {k: plain.pop(k) for k in tensors if k.endswith(SUFFIXES)}
    check_entries(plain, base.state, str(path))
    state, _ = fold_loralib(plain, lora, 1.0, str(path))
    names = sorted({f"{k.rpartition('.')[0]}.weight" for k in lora})
    update = torch.cat([(state[name] - plain[name]).flatten() for name in names])
    change = torch.cat([(plain[name] - base.state[name]).flatten() for name in names])
    warnings = base.warnings
    if torch.cosine_similarity(update, change, dim=0) > MERGED:
        alpha = 0.0
        warnings += (
            f"{path}: was saved in evaluation mode, for its weights are the base's with the update; "
            "it is not added again (--loralib-alpha 0)",
        )
    state, about = fold_loralib(plain, lora, alpha, str(path))
    about = replace(about, sha256=sha256_of_file(path))
    return replace(base, state=state, layout=f"{base.layout} + loralib", lora=about, warnings=warnings)


def _adapted_rows(state: Mapping[str, Tensor], targets: Sequence[str]) -> dict[str, tuple[str, Tensor]]:
    """Of each update, by its name in the file: the weight that it goes to, and the rows of it, int64 (R,)."""
    updates = {}
    for target in targets:
        layer, part = ("attn.qkv", target[-1]) if target in PARTS else (target, "all")
        for name in [name.removesuffix(".weight") for name in state if name.endswith(f".{layer}.weight")]:
            rows = torch.arange(len(state[f"{name}.weight"]))
            if part != "all":  # the rows of qkv are interleaved per head
                heads = len(state[f"{name.removesuffix('qkv')}attention_biases"])
                rows = rows.view(heads, 3, -1)[:, "qkv".index(part)].flatten()
            updates[f"{name}.{part}"] = (f"{name}.weight", rows)
    return updates


def folded(weight: Tensor, rows: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return a copy of a weight (out, in) with A (rank, in) and B (R, rank) added to its rows (R,)."""
    weight = weight.clone()
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
    state, unusable, rank = dict(plain), [], 0
    for layer in layers:
        weight, a, b = plain.get(f"{layer}.weight"), *(lora.get(layer + suffix) for suffix in SUFFIXES)
        groups = _loralib_groups(weight, a, b)
        if weight is None or a is None or b is None or not groups:
            unusable.append(layer)
            continue
        for update in zip(groups, a.chunk(len(groups)), b.chunk(len(groups)), strict=True):
            weight = folded(weight, *update, alpha)
        state[f"{layer}.weight"] = weight
        rank = max(rank, b.shape[1])
    if unusable:
        raise CheckpointError(
            f"{source}: a linear layer, lora_A and lora_B that fit are not there for {', '.join(unusable)}"
        )
    check_entries(state, plain, f"{source}: folded")
    return state, FoldedLoRA(rank, alpha, kinds_of(layers))


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

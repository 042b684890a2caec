"""The adapter file, LoRA updates in safetensors: written, read, and folded into the weights of a base.

`NAME.safetensors` holds the updates only (under 1 MB at rank 4). When the mask decoder was trained too, its
weights lie beside it in `NAME.decoder.safetensors`, and the adapter names their digest, so that one cannot be
used without the other. Names are those of the network, such as
`image_encoder.layers.1.blocks.0.attn.qkv.all.lora_A`.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import TARGETS, FoldedLoRA, folded, lora_tensors
from litemed.models.weight_files import CheckpointError, check_entries, read_file, weights_digest
from litemed.runtime.files import sha256_of_file

FORMAT = "litemed-adapter-1"
DECODER = "mask_decoder."
PARTS = ("attn.q", "attn.k", "attn.v")
"""Targets that are a part of `attn.qkv` each: files of earlier versions may name them."""
MAX_RANK = 1024


def decoder_path(adapter: pathlib.Path) -> pathlib.Path:
    """Return where the mask decoder trained with an adapter lies."""
    return adapter.with_name(adapter.stem + ".decoder.safetensors")


def adapter_bytes(model: LiteMedSAM, rank: int, base: str, decoder: str | None = None) -> bytes:
    """Return the content of an adapter file for a model with LoRA; the same input gives the same bytes.

    `base` and `decoder` are the `weights_digest` of the weights that it was trained on, and of the mask
    decoder trained with it, if one was.
    """
    about = {"format": FORMAT, "rank": rank, "alpha": float(rank), "targets": TARGETS}
    about |= {"base": base, "decoder": decoder}
    tensors = {name: value.cpu().contiguous() for name, value in lora_tensors(model).items()}
    return save(tensors, metadata={"litemed": json.dumps(about, sort_keys=True)})


def decoder_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mask decoder's entries of a state dict, under their full names."""
    return {k: v.detach().cpu().contiguous() for k, v in state.items() if k.startswith(DECODER)}


def fold_adapter(base: Checkpoint, path: str | pathlib.Path) -> Checkpoint:
    """Return a new checkpoint with an adapter folded in; the base is left as it was.

    Raises:
        CheckpointError: the file is no adapter, or one for another base (one that holds a LoRA is);
            the decoder trained with it is missing or another one; entries are missing, unexpected or wrongly
            shaped; or a folded weight is not finite.
    """
    path = pathlib.Path(path)
    tensors = read_file(path)
    lora, made_for, decoder = _read_about(path)
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
        state |= _read_decoder(path, decoder, base.state)
    check_entries(state, base.state, f"{path}: folded")
    return replace(base, state=state, layout=f"{base.layout} + adapter", lora=lora)


def _read_about(path: pathlib.Path) -> tuple[FoldedLoRA, str, str | None]:
    """What an adapter file says of itself: its updates, the digests of its base and of its mask decoder."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["litemed"])
        rank, alpha, targets = int(about["rank"]), float(about["alpha"]), tuple(about["targets"])
        known = about["format"] == FORMAT and {*targets} <= {*TARGETS, *PARTS}
        if not (known and 0 < rank <= MAX_RANK and 0 < alpha < math.inf):
            raise ValueError("unknown format, targets, rank or alpha")
        return FoldedLoRA(rank, alpha, targets, sha256_of_file(path)), str(about["base"]), about["decoder"]
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is not an adapter; give the best.safetensors that litemed-train --tune lora or "
            "lora+decoder wrote (its mask decoder is taken along; a whole network is exported by itself)"
        ) from error


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


def _read_decoder(adapter: pathlib.Path, digest: str, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    path = decoder_path(adapter)
    if not path.exists():
        raise CheckpointError(f"{adapter}: was trained with a mask decoder; put it beside as {path.name}")
    state = read_file(path)
    check_entries(state, decoder_tensors(base), str(path))
    if weights_digest(state) != digest:
        raise CheckpointError(f"{path}: not the mask decoder that {adapter.name} was trained with")
    return {k: v.float() for k, v in state.items()}

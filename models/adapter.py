"""The adapter file, LoRA updates in safetensors; `litemed.models.lora_folding` folds it into a base.

`NAME.safetensors` holds the updates only (under 1 MB at rank 4). When the mask decoder was trained too, its
weights lie beside it in `NAME.decoder.safetensors`, and the adapter names their digest, so that one cannot be
used without the other. Names are those of the network, such as
`image_encoder.layers.1.blocks.0.attn.qkv.all.lora_A`.
"""

import json
import math
import pathlib
from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import TARGETS, FoldedLoRA, lora_tensors
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


def read_adapter_header(path: pathlib.Path) -> tuple[FoldedLoRA, str, str | None]:
    """Return what an adapter file says of itself: its updates, digests of its base and its mask decoder."""
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
            "lora+decoder wrote (its mask decoder is taken along; a whole network is exported by itself), "
            "or the folder of a peft adapter"
        ) from error


def read_decoder(adapter: pathlib.Path, digest: str, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mask decoder trained with an adapter; CheckpointError if it is missing or another one."""
    path = decoder_path(adapter)
    if not path.exists():
        raise CheckpointError(f"{adapter}: was trained with a mask decoder; put it beside as {path.name}")
    state = read_file(path)
    check_entries(state, decoder_tensors(base), str(path))
    if weights_digest(state) != digest:
        raise CheckpointError(f"{path}: not the mask decoder that {adapter.name} was trained with")
    return {k: v.float() for k, v in state.items()}

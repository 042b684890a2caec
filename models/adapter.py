"""The adapter file: LoRA updates in safetensors, with what they were made for.

`NAME.safetensors` holds the updates only (under 1 MB at rank 4). When the mask
decoder was trained too, its weights lie beside it in `NAME.decoder.safetensors`,
and the adapter names their digest, so that one cannot be used without the other.
Names are those of the network, such as
`image_encoder.layers.1.blocks.0.attn.qkv.all.lora_A`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from litemed.models.checkpoint import Checkpoint, expected_entries
from litemed.models.encoders import ENCODERS, encoders_of
from litemed.models.errors import CheckpointError
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import LoRAConfig, add_lora, named_updates
from litemed.models.loralib import FoldedLoRA, fold
from litemed.models.weight_files import check_entries, file_sha256, read_file, weights_digest

FORMAT = "litemed-adapter-1"
DECODER = "mask_decoder."


@dataclass(frozen=True)
class Adapter:
    """What an adapter file says about itself.

    Attributes:
        config: rank, alpha and targets.
        base: `weights_digest` of the weights that it was trained on.
        decoder: `weights_digest` of the mask decoder trained with it, or None.
    """

    config: LoRAConfig
    base: str
    decoder: str | None = None


def decoder_path(adapter: pathlib.Path) -> pathlib.Path:
    """Return where the mask decoder trained with an adapter lies."""
    return adapter.with_name(adapter.stem + ".decoder.safetensors")


def adapter_tensors(model: LiteMedSAM) -> dict[str, Tensor]:
    """Return the updates of a model with LoRA by their names in an adapter file."""
    return {
        f"{name}.{leaf}": getattr(update, leaf).detach().cpu().contiguous()
        for name, update in named_updates(model).items()
        for leaf in ("lora_A", "lora_B")
    }


def adapter_bytes(model: LiteMedSAM, adapter: Adapter) -> bytes:
    """Return the content of an adapter file for a model with LoRA; the same input gives the same bytes."""
    config = adapter.config
    about = {
        "format": FORMAT,
        "rank": config.rank,
        "alpha": config.rank if config.alpha is None else config.alpha,
        "targets": list(config.targets),
        "base": adapter.base,
        "decoder": adapter.decoder,
    }
    return save(adapter_tensors(model), metadata={"litemed": json.dumps(about, sort_keys=True)})


def decoder_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mask decoder's entries of a state dict, under their full names."""
    return {k: v.detach().cpu().contiguous() for k, v in state.items() if k.startswith(DECODER)}


def read_adapter(path: pathlib.Path) -> tuple[Adapter, dict[str, Tensor]]:
    """Read an adapter file: what it says, and its tensors.

    Raises:
        CheckpointError: unreadable, or not an adapter file.
    """
    tensors = read_file(path)
    if isinstance(tensors, Mapping) and encoders_of(map(str, tensors)):
        raise CheckpointError(
            f"{path}: holds a whole network, not an adapter; export it by itself, without a base"
        )
    if tensors and all(str(name).startswith(DECODER) for name in tensors):
        suffix = ".decoder.safetensors"
        name = path.name.removesuffix(suffix) if path.name.endswith(suffix) else "NAME"
        raise CheckpointError(
            f"{path}: holds a mask decoder that was trained with an adapter; give the adapter beside it, "
            f"{name}.safetensors, which takes the decoder along"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("litemed", "null"))
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path}: adapter format {about['format']!r} is not {FORMAT!r}")
        config = LoRAConfig(int(about["rank"]), float(about["alpha"]), tuple(map(str, about["targets"])))
        # Before anything of that size is made.
        ranks = {len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_A")}
        if ranks != {config.rank}:
            raise CheckpointError(f"{path}: says rank {config.rank}, which its tensors do not have")
        decoder = about["decoder"]
        return Adapter(config, str(about["base"]), None if decoder is None else str(decoder)), tensors
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is not an adapter; give the best.safetensors that litemed-train wrote"
        ) from error


def attach(base: Checkpoint, path: str | pathlib.Path) -> LiteMedSAM:
    """Build the network of a base checkpoint with an adapter beside its weights, not folded.

    Raises:
        CheckpointError: the adapter was made for another base, the base already
            holds a folded LoRA, the decoder trained with it is missing or
            another one, or entries are missing, unexpected or wrongly shaped.
    """
    path = pathlib.Path(path)
    adapter, tensors = read_adapter(path)
    if not ENCODERS[base.encoder].takes_lora:
        raise CheckpointError(
            f"{base.file}: its {base.encoder} encoder has no layers that an adapter could go to"
        )
    if base.lora is not None:
        raise CheckpointError(f"{base.file}: already holds a LoRA; folding {path.name} on top is refused")
    digest = weights_digest(base.state)
    if adapter.base != digest:
        raise CheckpointError(
            f"{path}: made for another base (digest {adapter.base[:12]}; {base.file} has {digest[:12]})"
        )
    model = base.model()
    if adapter.decoder is not None:
        model.load_state_dict(_read_decoder(path, adapter.decoder), strict=False)
    add_lora(model.image_encoder, adapter.config)
    check_entries(tensors, adapter_tensors(model), str(path))
    for name, update in named_updates(model).items():
        update.lora_A.data = tensors[f"{name}.lora_A"].float()
        update.lora_B.data = tensors[f"{name}.lora_B"].float()
    return model.eval()


def _read_decoder(adapter_path: pathlib.Path, digest: str) -> dict[str, Tensor]:
    path = decoder_path(adapter_path)
    if not path.exists():
        raise CheckpointError(
            f"{adapter_path}: was trained with a mask decoder; put it beside as {path.name}"
        )
    state = read_file(path)
    expected = {k: v for k, v in expected_entries().items() if k.startswith(DECODER)}
    check_entries(state, expected, str(path))
    if weights_digest(state) != digest:
        raise CheckpointError(f"{path}: not the mask decoder that {adapter_path.name} was trained with")
    return {k: v.float() for k, v in state.items()}


def fold_adapter(base: Checkpoint, path: str | pathlib.Path) -> Checkpoint:
    """Return a new checkpoint with an adapter folded in; the base is left as it was.

    Raises:
        CheckpointError: as `attach`, or a folded weight is not finite.
    """
    path = pathlib.Path(path)
    model = attach(base, path)
    config = read_adapter(path)[0].config
    alpha = float(config.rank if config.alpha is None else config.alpha)
    lora = FoldedLoRA(config.rank, alpha, config.targets, file_sha256(path))
    return replace(base, state=fold(model, str(path)), layout=f"{base.layout} + adapter", lora=lora)

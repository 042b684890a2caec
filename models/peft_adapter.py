"""Adapters that the peft package wrote: `adapter_model.safetensors` with `adapter_config.json` beside it.

W' = W + s B A with s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`, for every linear layer that
`target_modules` names. Which base they were trained on is not on record.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from litemed.models.adapter import DECODER, MAX_RANK
from litemed.models.encoders import PREFIX
from litemed.models.lora import FoldedLoRA, kinds_of
from litemed.models.weight_files import CheckpointError, unwrapped
from litemed.runtime.errors import in_short
from litemed.runtime.files import sha256_of_file
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.strict_json import parse_json, shown

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
_NAME = re.compile(r"base_model\.(.+)\.(lora_[AB])(?:\.default)?\.weight")
_SCOPES = ("", PREFIX, DECODER)  # what was wrapped: all of it, or one part alone
# What does not change how an update is made; the last two have defaults, and are used with others only.
_FREE = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision"),
    *("peft_version", "runtime_config", "megatron_core", "qalora_group_size"),
)
# All others have to be off (empty, false, null), or one of these: other `init_lora_weights` change the base.
_ALLOWED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (True,),
    "init_lora_weights": (True, "gaussian"),
}


def read_peft(
    path: pathlib.Path, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], FoldedLoRA]:
    """Return updates by the names `LAYER.lora_A` and `LAYER.lora_B`, the layers of the base, their settings.

    `path` is the file that `tensors` came from, `state` the base. What is no update keeps its name. The
    layers are those that the settings tell, or, where they do so by a pattern, those that the file has. Alpha
    is the one that scales the same by alpha / rank.

    Raises:
        CheckpointError: `adapter_config.json` is missing or damaged, or has settings that are not supported.
    """
    config = _read_config(path)
    rank, alpha, targets = config["r"], float(config["lora_alpha"]), config.get("target_modules")
    names = {name: _NAME.fullmatch(name) for name in tensors}
    found = {match[1] for match in names.values() if match}
    linear = {k.removesuffix(".weight") for k, v in state.items() if k.endswith(".weight") and v.ndim == 2}
    scope = next((one for one in _SCOPES if {one + layer for layer in found} <= linear), "")
    updates = {
        f"{scope}{match[1]}.{match[2]}" if match else name: tensors[name] for name, match in names.items()
    }
    layers = {scope + layer for layer in found} & linear
    if isinstance(targets, list) and not (config.get("exclude_modules") or config.get("layers_to_transform")):
        ends = tuple(f".{unwrapped(str(target))}" for target in targets)
        inside = [one for one in linear if one.startswith(scope)]
        layers = {one for one in inside if f".{one.removeprefix(scope)}".endswith(ends)}
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)
    return updates, sorted(layers), FoldedLoRA(rank, alpha, kinds_of(layers), sha256_of_file(path))


def _read_config(adapter: pathlib.Path) -> dict[str, Any]:
    """Return the settings of an adapter, of which rank and alpha are sure to be there and in range."""
    path = adapter.with_name(CONFIG)
    if not path.is_file():
        raise CheckpointError(f"{adapter}: is an adapter of peft, and needs its {CONFIG} beside it")
    try:
        config = parse_json(read_bytes(path, 1 << 20).decode())
        rank, alpha = config["r"], config["lora_alpha"]
        if type(rank) is not int or not 0 < rank <= MAX_RANK:
            raise ValueError(f"r is {shown(rank)}, not a whole number from 1 to {MAX_RANK}")
        if type(alpha) not in (int, float) or not 0 < alpha < 1e30:
            raise ValueError(f"lora_alpha is {shown(alpha)}, not a number above 0")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: has no settings of a LoRA: {in_short(error)}") from error
    if odd := [
        f"{key} {shown(value)}"
        for key, value in config.items()
        if value and key not in _FREE and value not in _ALLOWED.get(key, ())
    ]:
        raise CheckpointError(f"{path}: asks for what is not supported: {', '.join(odd)[:200]}")
    return config

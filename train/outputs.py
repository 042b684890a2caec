"""The weights that a run leaves: what it tuned, in files that `litemed-export` reads.

    best.safetensors, last.safetensors                   adapters only (under 1 MB at rank 4), or all weights
    best.decoder.safetensors, last.decoder.safetensors   the mask decoder trained with the adapters

Adapters name the digest of their base and of their decoder; they go to `litemed-export BASE --adapter`. With
`--tune decoder` or `all` the files hold the whole network in the published layout instead.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from litemed.models.adapter import Adapter, adapter_bytes, decoder_path, decoder_tensors
from litemed.models.weight_files import weights_digest
from litemed.runtime.files import atomic_write
from litemed.train.config import TUNE_LORA_DECODER, LoRA
from litemed.train.network import WITH_LORA, TrainedNetwork, lora_config


def write_weights(path: Path, network: TrainedNetwork, lora: LoRA, base_digest: str) -> None:
    """Replace the weights at `path`, and the mask decoder beside it where it was tuned with adapters.

    base_digest: `weights_digest` of the weights that adapters were trained on.
    Raises OutputError when a file cannot be written.
    """
    model = network.model
    if network.tune not in WITH_LORA:
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        _write(path, save(state))
        return
    digest = None
    if network.tune == TUNE_LORA_DECODER:
        decoder = decoder_tensors(model.state_dict())
        digest = weights_digest(decoder)
        # First: an adapter whose decoder is not there yet is refused, so a kill in between does no harm.
        _write(decoder_path(path), save(decoder))
    _write(path, adapter_bytes(model, Adapter(lora_config(lora), base_digest, digest)))


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as stream:
        stream.write(content)

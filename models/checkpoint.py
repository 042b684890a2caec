"""Read a LiteMedSAM checkpoint of any known layout into one complete float32 state dict.

Layouts:
    plain      a bare state dict with the names of `LiteMedSAM` (.pth or .safetensors): the 435 published
               ones, or those of another encoder; which one is told by the entries
    training   {"model": state dict, ...}, or under another of `litemed.models.weight_files.CONTAINERS`; or
               names with parts of `WRAPPERS` in any nesting, such as "module._orig_mod."
    loralib    either of these in which some linear layers carry `lora_A` and `lora_B` next to their frozen
               weight, as the paper's training code saves it; it is folded on reading

Nothing is unpickled beyond tensors and plain containers, and sizes are checked from the file's own table
before anything is read.
"""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from litemed.models.adapter import DECODER, decoder_tensors
from litemed.models.encoders import ENCODERS, PREFIX, TINY_VIT, encoders_of
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import FoldedLoRA
from litemed.models.lora_folding import LORALIB_ALPHA, SUFFIXES, fold_loralib
from litemed.models.weight_files import CheckpointError, check_entries, file_in, is_zip, read_file, tensors_of
from litemed.runtime.files import sha256_of_file

UNTRAINED = "untrained"


@dataclass(frozen=True)
class FurtherDecoder:
    """A mask decoder beside the first one: entries by the names of `LiteMedSAM`, float32; their file."""

    state: dict[str, Tensor]
    file: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete set of weights.

    `state` has all entries of a `LiteMedSAM` by its names, float32 (counters int64), on the CPU; `encoder` is
    a name in `litemed.models.encoders.ENCODERS`; `layout` is "plain", "training", "loralib" or "training,
    loralib", or "untrained"; `file` and `sha256` are of the file it came from; `lora` is what was folded;
    `decoders` are those that were added, by their names in `litemed.runtime.precision.DECODERS`; `warnings`
    is what a person should be told.
    """

    state: dict[str, Tensor]
    encoder: str
    layout: str
    file: str
    sha256: str
    lora: FoldedLoRA | None = None
    decoders: Mapping[str, FurtherDecoder] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """False for weights drawn at random, whose masks mean nothing."""
        return self.layout != UNTRAINED

    def model(self, size: int = 256) -> LiteMedSAM:
        """Build the network with these weights, in evaluation mode, for inputs of `size` pixels a side."""
        model = LiteMedSAM(size, self.encoder)
        model.load_state_dict(self.state)
        return model.eval()

    def models(self, size: int = 256) -> dict[str, LiteMedSAM]:
        """Build it with each of its decoders, by their names in `litemed.runtime.precision.DECODERS`."""
        states = {"decoder": self.state} | {k: self.state | v.state for k, v in self.decoders.items()}
        return {name: replace(self, state=state).model(size) for name, state in states.items()}


def read_checkpoint(path: str | pathlib.Path, *, loralib_alpha: float = LORALIB_ALPHA) -> Checkpoint:
    """Read a checkpoint of any known layout, .pth in torch's zip format or .safetensors; fold LoRA inside it.

    A folder stands for its model.safetensors or pytorch_model.bin.
    `loralib_alpha` is that of LoRA in the paper's own layout, which does not record it.

    Raises:
        CheckpointError: unreadable, not tensors, entries that are missing, unexpected or wrongly shaped (all
            are listed), values that are not finite.
    """
    path = file_in(pathlib.Path(path), "model.safetensors", "pytorch_model.bin")
    entries, training = tensors_of(path, read_file(path))
    adapted = {k: v for k, v in entries.items() if k.endswith(SUFFIXES)}
    layout = ", ".join(["training"] * training + ["loralib"] * bool(adapted)) or "plain"
    state = {k: v for k, v in entries.items() if k not in adapted}
    encoder = _encoder(state, path)
    # Not on the device "meta", for which torch imports its compiler: seconds, and a temporary folder.
    check_entries(state, untrained_checkpoint(encoder=encoder).state, str(path))
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    lora, warnings = None, tuple[str, ...]()
    if adapted:
        state, lora = fold_loralib(state, adapted, loralib_alpha, str(path))
        if loralib_alpha:
            warnings = (
                f"{path}: LoRA of loralib is added with alpha {loralib_alpha:g}; if saved in evaluation "
                "mode, its weights hold it already: give --loralib-alpha 0",
            )
    return Checkpoint(state, encoder, layout, path.name, sha256_of_file(path), lora, warnings=warnings)


def add_decoder(base: Checkpoint, name: str, path: str | pathlib.Path) -> Checkpoint:
    """Return a new checkpoint that has a further mask decoder, of a safetensors file.

    `name` is that of its use in `litemed.runtime.precision.DECODERS`.

    Raises:
        CheckpointError: it cannot be read, is no safetensors file, or has other entries than a mask decoder.
    """
    path = pathlib.Path(path)
    if is_zip(path):
        raise CheckpointError(f"{path}: is no safetensors file; save the mask decoder's entries as one")
    state, _ = tensors_of(path, read_file(path))
    check_entries(state, decoder_tensors(base.state), str(path))
    state = {k: v.float() for k, v in state.items()}
    added = FurtherDecoder(state, path.name, sha256_of_file(path))
    return replace(base, decoders={**base.decoders, name: added})


def untrained_checkpoint(seed: int = 0, encoder: str = TINY_VIT) -> Checkpoint:
    """Return weights drawn at random: for trying the tools out; their masks mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = LiteMedSAM(encoder=encoder).state_dict()
    return Checkpoint(dict(state), encoder, UNTRAINED, f"random, seed {seed}", "")


def _encoder(state: Mapping[str, Tensor], path: pathlib.Path) -> str:
    found = encoders_of(state)
    if len(found) == 1:
        return found[0]
    if any(".lora_" in name for name in state) or all(name.startswith(DECODER) for name in state):
        raise CheckpointError(
            f"{path}: is an adapter or its mask decoder; name the base instead: "
            "litemed-export BASE --adapter FILE"
        )
    if found:
        raise CheckpointError(f"{path}: has entries of {' and '.join(found)} image encoders")
    marks = " or ".join(f"{PREFIX}{row.mark} ({kind})" for kind, row in ENCODERS.items())
    raise CheckpointError(
        f"{path}: has another network's weights, {len(state)} entries such as {next(iter(state))[:100]}, "
        f"and no image encoder known here, whose entries begin with {marks}"
    )

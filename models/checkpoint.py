"""Read a LiteMedSAM checkpoint of any known layout into one complete float32 state dict.

Layouts:
    plain      a bare state dict with the names of `LiteMedSAM` (.pth or .safetensors): the
               435 published ones, or those of another encoder; which one is told by the entries
    training   {"model": state dict, ...} or {"state_dict": ...}, names possibly
               prefixed with "module." by data-parallel training
    loralib    either of these in which some linear layers carry `lora_A` and
               `lora_B` next to their frozen weight, as the paper's training code
               saves it; it is folded on reading

Nothing is unpickled beyond tensors and plain containers, and sizes are checked
from the file's own table before anything is read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from litemed.models.encoders import ENCODERS, TINY_VIT, encoders_of
from litemed.models.errors import CheckpointError
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.loralib import LORALIB_ALPHA, SUFFIXES, FoldedLoRA, fold, loralib_summary, wrap_loralib
from litemed.models.weight_files import check_entries, file_sha256, listing, read_file

CONTAINER_KEYS = ("model", "state_dict")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Checkpoint:
    """A complete set of weights.

    Attributes:
        state: all entries of a `LiteMedSAM` by its names, float32 (counters int64), on the CPU.
        encoder: which image encoder it has, a name in `litemed.models.encoders.ENCODERS`.
        layout: "plain", "training", "loralib" or "training, loralib", or "untrained".
        file: name of the file it came from.
        sha256: of that file.
        lora: what was folded, or None.
    """

    state: dict[str, Tensor]
    encoder: str
    layout: str
    file: str
    sha256: str
    lora: FoldedLoRA | None = None

    @property
    def trained(self) -> bool:
        """False for weights drawn at random, whose masks mean nothing."""
        return self.layout != UNTRAINED

    def model(self, size: int = 256) -> LiteMedSAM:
        """Build the network with these weights, in evaluation mode.

        Args:
            size: side of its input in pixels, a multiple of 64.
        """
        model = LiteMedSAM(size, self.encoder)
        model.load_state_dict(self.state)
        return model.eval()


def read_checkpoint(path: str | pathlib.Path, *, loralib_alpha: float = LORALIB_ALPHA) -> Checkpoint:
    """Read a checkpoint of any known layout; LoRA inside it is folded.

    Args:
        path: a .pth / .pt file in torch's zip format, or a .safetensors file.
        loralib_alpha: alpha of the loralib layout, which does not record it.

    Raises:
        CheckpointError: unreadable, not tensors, missing, unexpected or wrongly
            shaped entries (all listed), values that are not finite.
    """
    path = pathlib.Path(path)
    state, training = _state_dict(path, read_file(path))
    has_lora = any(name.endswith(SUFFIXES) for name in state)
    layout = ", ".join(["training"] * training + ["loralib"] * has_lora) or "plain"
    plain = {k: v for k, v in state.items() if not k.endswith(SUFFIXES)}
    encoder = _encoder(plain, path)
    if has_lora and not ENCODERS[encoder].takes_lora:
        raise CheckpointError(f"{path}: carries LoRA, which the {encoder} encoder has no layers for")
    check_entries(plain, expected_entries(encoder), str(path))
    plain = {k: v.float() if v.is_floating_point() else v for k, v in plain.items()}
    lora = None
    if has_lora:
        model = wrap_loralib(
            plain, {k: v for k, v in state.items() if k not in plain}, loralib_alpha, str(path)
        )
        plain, lora = fold(model, str(path)), loralib_summary(model, loralib_alpha)
    return Checkpoint(plain, encoder, layout, path.name, file_sha256(path), lora)


def untrained_checkpoint(seed: int = 0, encoder: str = TINY_VIT) -> Checkpoint:
    """Return weights drawn at random: for trying the tools out; their masks mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = LiteMedSAM(encoder=encoder).state_dict()
    return Checkpoint(dict(state), encoder, UNTRAINED, f"random, seed {seed}", "")


def _state_dict(path: pathlib.Path, loaded: Any) -> tuple[dict[str, Tensor], bool]:
    """Find the state dict in what a file held; second, whether it was inside a training checkpoint."""
    training = False
    if isinstance(loaded, Mapping):
        for key in CONTAINER_KEYS:
            if isinstance(loaded.get(key), Mapping):
                loaded, training = loaded[key], True
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(
            f"{path}: holds no state dict (looked at the top level and under {CONTAINER_KEYS})"
        )
    wrong = [str(k) for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong:
        raise CheckpointError(f"{path}: entries that are not tensors: {listing(wrong)}")
    if all(name.startswith("module.") for name in loaded):
        return {name.removeprefix("module."): v for name, v in loaded.items()}, True
    return dict(loaded), training


def expected_entries(encoder: str = TINY_VIT) -> dict[str, Tensor]:
    """Return the entries of a network as tensors without storage (shape and dtype only)."""
    with torch.device("meta"):
        return dict(LiteMedSAM(encoder=encoder).state_dict())


def _encoder(state: Mapping[str, Tensor], path: pathlib.Path) -> str:
    """The encoder whose entries these are; hundreds of missing names would say less than these messages."""
    found = encoders_of(state)
    if len(found) > 1:
        raise CheckpointError(f"{path}: holds entries of several image encoders: {listing(found)}")
    if not found:
        raise CheckpointError(
            f"{path}: holds no image encoder known here ({listing(list(ENCODERS))}), so it is no whole "
            "checkpoint; name the base instead (an adapter and its mask decoder go with it: litemed-export "
            "BASE --adapter FILE)"
        )
    return found[0]

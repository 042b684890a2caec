"""The image encoders that a LiteMedSAM can have, in one table.

All of them take image (B, 3, S, S) in [0, 1] to embedding (B, 256, S/4, S/4), so that the prompt encoder and
the mask decoder are the same for all. To add one: its module beside this one, a row here, and its graph in
`litemed.export.graphs`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from litemed.models.light_encoder import LightEncoder
from litemed.models.tiny_vit import TinyViT

PREFIX: Final = "image_encoder."
"""Of an encoder's entries in a checkpoint."""


@dataclass(frozen=True)
class EncoderKind:
    """One row of the table.

    Attributes:
        build: makes the module, its weights drawn at random.
        takes_lora: whether it has the layers that `litemed.models.lora` adapts.
    """

    build: Callable[[], nn.Module]
    takes_lora: bool


TINY_VIT: Final = "tiny_vit"
LIGHT: Final = "light"
ENCODERS: Final = {
    TINY_VIT: EncoderKind(TinyViT, takes_lora=True),
    LIGHT: EncoderKind(LightEncoder, takes_lora=False),
}


def encoders_of(names: Iterable[str]) -> list[str]:
    """Return the encoders that a checkpoint with these entries has parts of.

    Told by the entries that the encoders do not share.
    """
    present = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    return [kind for kind, own in _own_entries().items() if present & own]


@functools.cache
def _own_entries() -> dict[str, set[str]]:
    """The entries that only one encoder has, without the prefix."""
    with torch.device("meta"):
        entries = {kind: set(row.build().state_dict()) for kind, row in ENCODERS.items()}
    return {
        kind: own.difference(*(other for name, other in entries.items() if name != kind))
        for kind, own in entries.items()
    }

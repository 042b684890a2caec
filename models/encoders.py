"""The image encoders that a LiteMedSAM can have, in one table.

All of them take image (B, 3, S, S) in [0, 1] to embedding (B, 256, S/4, S/4), so that the prompt encoder and
the mask decoder are the same for all. To add one: its module beside this one, a row here, and its graph in
`litemed.export.graphs`.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from torch import nn

from litemed.models.light_encoder import LightEncoder
from litemed.models.tiny_vit import TinyViT

PREFIX: Final = "image_encoder."
"""Of an encoder's entries in a checkpoint."""


class EncoderKind(NamedTuple):
    """One row of the table."""

    build: Callable[[], nn.Module]
    mark: str  # how entries begin that every checkpoint of this encoder has, and none of another
    takes_lora: bool  # whether it has the layers that `litemed.models.lora` adapts


TINY_VIT: Final = "tiny_vit"
LIGHT: Final = "light"
ENCODERS: Final = {
    TINY_VIT: EncoderKind(TinyViT, "patch_embed.", takes_lora=True),
    LIGHT: EncoderKind(LightEncoder, "gamma", takes_lora=False),
}


def encoders_of(names: Collection[str]) -> list[str]:
    """Return the encoders that a checkpoint with these entries has parts of."""
    return [
        kind for kind, row in ENCODERS.items() if any(name.startswith(PREFIX + row.mark) for name in names)
    ]

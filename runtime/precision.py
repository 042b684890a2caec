"""The precisions that a bundle offers, and which of them agree so well with float32 that they need no asking.

How much the masks of the others differ was measured on real images when the bundle was made and stands in its
manifest, for each engine apart. Whether that is good enough is judged here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from litemed.runtime.method import MERGES
from litemed.runtime.strict_json import Record

REFERENCE = "float32"
# bf16: an engine's own rounding of a float32 graph, on a CPU that computes in it; int8: quantised graphs,
# with float32 between the quantised operators; int8-bf16: the same with bf16 between them.
PRECISIONS = (REFERENCE, "bf16", "int8", "int8-bf16")

ROLES = ("encoder", "decoder")  # what may be computed in another precision
MASK_ENCODER = "mask_encoder"
# Graphs of the role "decoder", as fields of `Precision`: the network's own, and those for loose boxes and for
# tiles, which not every bundle has.
DECODERS = ("decoder", "loose_decoder", "tile_decoder")
ENGINES = ("onnxruntime", "openvino")

MIN_DICE = 0.99  # the least mean Dice of a precision's label maps with those of float32, in every modality
MAX_DSC_LOSS = 0.005  # the most that a modality's DSC against the ground truth may fall below float32's


@dataclass(frozen=True)
class ModalityAgreement(Record):
    """How a precision did on the `cases` of one modality.

    `dice` is the mean Dice of its label maps with float32's; `dsc_change` is its mean DSC against the ground
    truth minus float32's, None where there is no ground truth.
    """

    cases: int
    dice: float
    dsc_change: float | None


@dataclass(frozen=True)
class EngineAgreement(Record):
    """How a precision did on one engine, by modality."""

    modalities: Mapping[str, ModalityAgreement]

    def shortcoming(self) -> str | None:
        """Return what keeps it from being used unasked, for a message; None if nothing does."""
        for name, modality in self.modalities.items():
            if modality.dice < MIN_DICE:
                return f"its masks of {name} agree to {modality.dice:.4f}, under {MIN_DICE}"
            if modality.dsc_change is not None and modality.dsc_change < -MAX_DSC_LOSS:
                return f"it lowers the DSC of {name} by {-modality.dsc_change:.4f}, over {MAX_DSC_LOSS}"
        return None


@dataclass(frozen=True)
class Agreement(Record):
    """How a precision did on `images` real images, by engine, with masks merged by the rule `merge`."""

    images: int
    engines: Mapping[str, EngineAgreement]
    merge: str = MERGES[0]


@dataclass(frozen=True)
class Precision(Record):
    """The graphs, by key, that make up one precision; `agreement` is None for float32 alone.

    `bf16` has the roles, "encoder" and "decoder", whose float32 operators are to be computed in bf16.
    `mask_encoder` is that of mask prompts, None where a bundle takes none;
    `loose_decoder` and `tile_decoder`, which not every bundle has, are further graphs of the role "decoder".
    """

    encoder: str
    decoder: str
    agreement: Agreement | None = None
    bf16: tuple[str, ...] = ()
    loose_decoder: str | None = None
    tile_decoder: str | None = None
    mask_encoder: str | None = None

    def check_as(self, name: str) -> None:
        """Raise ValueError if this cannot be the precision of that name."""
        if name not in PRECISIONS:
            raise ValueError(f"{name!r} is not one of {', '.join(PRECISIONS)}; use a newer litemed")
        if (self.agreement is None) != (name == REFERENCE):
            raise ValueError(f"{name} has 'agreement' if, and only if, it is not {REFERENCE}")
        if self.bf16 not in ((ROLES, ROLES[:1], ROLES[1:]) if name.endswith("bf16") else ((),)):
            raise ValueError(f"{name}: 'bf16' is {self.bf16}; in bf16 it names encoder, decoder or both")

    @property
    def graphs(self) -> tuple[str, ...]:
        """The keys of all its graphs."""
        mask_encoder = () if self.mask_encoder is None else (self.mask_encoder,)
        return self.encoder, *self.decoders.values(), *mask_encoder

    @property
    def decoders(self) -> dict[str, str]:
        """The keys of its decoders, by the names in `DECODERS`."""
        return {name: key for name in DECODERS if (key := getattr(self, name)) is not None}

    @property
    def runs_on(self) -> tuple[str, ...]:
        """The engines that can run it at all."""
        return ("openvino",) if self.bf16 else ENGINES

    def shortcoming(self, engine: str) -> str | None:
        """Return what keeps it from being used unasked on an engine, for a message; None if nothing does."""
        if self.agreement is None:
            return None
        if engine not in self.agreement.engines:
            return "how well it agrees was not measured"
        return self.agreement.engines[engine].shortcoming()

"""What a training run can be told, checked once where it is made.

The defaults are those of the paper's Table 2; `default.toml` beside this module lists every key with
its meaning. A table of the file is a dataclass here, a key is a field; `litemed.train.tables` reads the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from litemed.runtime.errors import UsageError
from litemed.runtime.modalities import MODALITIES

TUNE_LORA_DECODER: Final = "lora+decoder"
TUNE_LORA: Final = "lora"
TUNE_DECODER: Final = "decoder"
TUNE_ALL: Final = "all"
TUNES: Final = (TUNE_LORA_DECODER, TUNE_LORA, TUNE_DECODER, TUNE_ALL)

PLATEAU: Final = "plateau"
COSINE: Final = "cosine"


def between(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise UsageError unless a setting lies in [low, high]."""
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UsageError(f"{name} = {value}: must be {limits}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless a setting is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{name} = {value!r}: choose from {', '.join(choices)}")


@dataclass(frozen=True)
class Run:
    """How long, on how much, and which weights.

    samples_per_epoch: 0 means as many as there are training slices. size: side of the network's input
    in pixels.
    average: decay of an exponential moving average of the weights over the steps, which then is what is
    scored and written; 0: none. state_every_steps: how often the state to resume from is written within an
    epoch.
    """

    seed: int = 0
    epochs: int = 20
    samples_per_epoch: int = 0
    batch_size: int = 16
    size: int = 256
    tune: str = TUNE_LORA_DECODER
    average: float = 0.0
    state_every_steps: int = 500

    def __post_init__(self) -> None:
        between("run.seed", self.seed, 0)
        between("run.epochs", self.epochs, 1)
        between("run.samples_per_epoch", self.samples_per_epoch, 0)
        between("run.batch_size", self.batch_size, 1)
        between("run.average", self.average, 0, 0.99999)
        between("run.state_every_steps", self.state_every_steps, 1)
        if self.size < 64 or self.size % 64:
            raise UsageError(f"run.size = {self.size}: must be a positive multiple of 64")
        one_of("run.tune", self.tune, TUNES)


@dataclass(frozen=True)
class Sampling:
    """Which share of the samples comes from which modality; see `litemed.train.sampler`.

    weights: by modality, of any sum. others: what the modalities that `weights` does not name share equally.
    balance_sources: within a modality, draw sources by the square root of their numbers of slices, not slices
    alike. exclude: sources that are not drawn from.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"CT": 40.0, "MR": 10.0})
    others: float = 50.0
    balance_sources: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in MODALITIES:
                raise UsageError(f"sampling.weights: unknown modality {name!r}; use {', '.join(MODALITIES)}")
            between(f"sampling.weights.{name}", weight, 0)
        between("sampling.others", self.others, 0)
        if not any(self.weights.values()) and not self.others:
            raise UsageError("sampling: every weight is 0, so that nothing can be drawn")


@dataclass(frozen=True)
class Prompts:
    """The boxes that are drawn from the labels; see `litemed.train.prompts`.

    per_image: of so many objects of an image at most. min_object_pixels: smaller objects are not prompted.
    tight: share of the boxes that are tight, or a pixel off as the runtime rounds. jittered: share whose
    edges each move either way by up to one of `jitter_shares` of the box's side. Of all others each edge
    moves outwards by 0 to `jitter_pixels` pixels of a 256-pixel input, as published.
    """

    per_image: int = 4
    min_object_pixels: int = 4
    tight: float = 0.0
    jittered: float = 0.0
    jitter_pixels: int = 5
    jitter_shares: tuple[float, ...] = (0.1, 0.2)

    def __post_init__(self) -> None:
        between("prompts.per_image", self.per_image, 1)
        between("prompts.min_object_pixels", self.min_object_pixels, 1)
        between("prompts.tight", self.tight, 0, 1)
        between("prompts.jittered", self.jittered, 0, 1)
        if self.tight + self.jittered > 1:
            raise UsageError("prompts: tight and jittered are above 1 together")
        between("prompts.jitter_pixels", self.jitter_pixels, 0, 128)
        for share in self.jitter_shares:
            between("prompts.jitter_shares", share, 0, 0.5)
        if self.jittered and not self.jitter_shares:
            raise UsageError("prompts.jitter_shares: is empty, and prompts.jittered is above 0")


@dataclass(frozen=True)
class Augmentation:
    """The probability of each augmentation of an image; see `litemed.train.augment`. The paper flips."""

    flip_horizontal: float = 0.5
    flip_vertical: float = 0.5
    zoom: float = 0.0
    turn: float = 0.0
    stretch: float = 0.0
    aspect: float = 0.0
    elastic: float = 0.0
    grey: float = 0.0
    gains: float = 0.0
    gamma: float = 0.0
    window: float = 0.0
    invert: float = 0.0
    blur: float = 0.0
    bias: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, probability in vars(self).items():
            between(f"augmentation.{name}", probability, 0, 1)


@dataclass(frozen=True)
class Loss:
    """Weights of the parts of the loss; gamma and alpha of the focal loss.

    cross_entropy: of the boxes of an image against one another and the background, near the boxes (see
    `litemed.train.losses.merged_cross_entropy`).
    """

    dice: float = 1.0
    focal: float = 1.0
    iou: float = 1.0
    cross_entropy: float = 0.0
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25

    def __post_init__(self) -> None:
        for name in ("dice", "focal", "iou", "cross_entropy"):
            between(f"loss.{name}", getattr(self, name), 0)
        if self.dice == self.focal == self.cross_entropy == 0:
            raise UsageError("loss: dice, focal and cross_entropy are all 0, so that no mask would be learnt")
        between("loss.focal_alpha", self.focal_alpha, 0, 1)
        if self.focal_gamma != 0:  # between 0 and 1 its gradient is infinite at a perfect prediction
            between("loss.focal_gamma", self.focal_gamma, 1)


@dataclass(frozen=True)
class Optimizer:
    """AdamW.

    lr, decoder_lr: of the encoder with its adapters, and of everything else; a decoder_lr of 0 is the same as
    lr. clip_norm: gradients are scaled down to this norm; 0 leaves them alone.
    """

    lr: float = 5e-5
    decoder_lr: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"optimizer.lr = {self.lr}: must be above 0")
        for name in ("decoder_lr", "weight_decay", "clip_norm"):
            between(f"optimizer.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes on.

    kind: "plateau" multiplies it by `factor` when the training loss has not fallen for more than
    `patience_epochs`; "cosine" lets it fall to 0 at the end of the run.
    warmup_steps: optimizer steps over which it first rises from 0.
    """

    kind: str = PLATEAU
    factor: float = 0.9
    patience_epochs: int = 5
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        one_of("schedule.kind", self.kind, (PLATEAU, COSINE))
        if not 0 < self.factor < 1:
            raise UsageError(f"schedule.factor = {self.factor}: must lie between 0 and 1")
        between("schedule.patience_epochs", self.patience_epochs, 0)
        between("schedule.warmup_steps", self.warmup_steps, 0)


@dataclass(frozen=True)
class LoRA:
    """The adapters: inner width, scale (alpha / rank) and which layers of each encoder block."""

    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Validation:
    """After how many epochs, and on how many slices of each modality (0: on all)."""

    every_epochs: int = 1
    slices_per_modality: int = 100

    def __post_init__(self) -> None:
        between("validation.every_epochs", self.every_epochs, 1)
        between("validation.slices_per_modality", self.slices_per_modality, 0)


@dataclass(frozen=True)
class Hardware:
    """device: "auto", "cpu" or "cuda". precision: "auto" is bfloat16 on a GPU, float32 elsewhere.

    compile: whether PyTorch compiles the network before it is trained, which takes a minute or two: "yes",
    "no", or "auto", which is yes on a GPU. workers: loader processes of each training process; -1 is one for
    every core that falls to it, at most 16.
    """

    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    workers: int = -1

    def __post_init__(self) -> None:
        one_of("hardware.device", self.device, ("auto", "cpu", "cuda"))
        one_of("hardware.precision", self.precision, ("auto", "float32", "bfloat16"))
        one_of("hardware.compile", self.compile, ("auto", "yes", "no"))
        between("hardware.workers", self.workers, -1)


@dataclass(frozen=True)
class Config:
    """All settings of a run. `hardware` alone does not change what is learnt, but for rounding."""

    run: Run = Run()
    sampling: Sampling = field(default_factory=Sampling)
    prompts: Prompts = Prompts()
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    lora: LoRA = LoRA()
    validation: Validation = Validation()
    hardware: Hardware = Hardware()

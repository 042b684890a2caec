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
from litemed.train.prepare.modalities import MODALITIES

TUNE_LORA_DECODER: Final = "lora+decoder"
TUNE_LORA: Final = "lora"
TUNE_DECODER: Final = "decoder"
TUNE_ALL: Final = "all"
TUNES: Final = (TUNE_LORA_DECODER, TUNE_LORA, TUNE_DECODER, TUNE_ALL)

ADAMW: Final = "adamw"
MUON: Final = "muon"
OPTIMIZERS: Final = (ADAMW, MUON)

LEAST_SIZE_OF_WINDOWS = 128
"""Of images that are seen through windows, in pixels; see `litemed.train.windows`."""


def _between(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UsageError(f"{name} = {value}: must be {limits}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} = {value!r}: choose from {', '.join(choices)}")


@dataclass(frozen=True)
class Run:
    """How long, on how much, and which weights.

    samples_per_epoch: 0 means as many as there are training slices. size: side of the network's input
    in pixels. freeze: modules of LiteMedSAM, such as "image_encoder.layers.0", that are left alone though
    `tune` would train them. windows: encode only a window of each image (see `litemed.train.windows`).
    crop_masks: masks end at their boxes: pixels outside are neither learnt nor scored, and the weights say so
    to `litemed-export`.
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
    freeze: tuple[str, ...] = ()
    windows: bool = False
    crop_masks: bool = False
    average: float = 0.0
    state_every_steps: int = 500

    def __post_init__(self) -> None:
        _between("run.seed", self.seed, 0)
        _between("run.epochs", self.epochs, 1)
        _between("run.samples_per_epoch", self.samples_per_epoch, 0)
        _between("run.batch_size", self.batch_size, 1)
        _between("run.average", self.average, 0, 0.99999)
        _between("run.state_every_steps", self.state_every_steps, 1)
        if self.size < 64 or self.size % 64:
            raise UsageError(f"run.size = {self.size}: must be a positive multiple of 64")
        _one_of("run.tune", self.tune, TUNES)


@dataclass(frozen=True)
class Sampling:
    """Which share of the samples comes from which modality; see `litemed.train.sampler`.

    weights: by modality, of any sum. others: what the modalities that `weights` does not name share equally.
    balance_sources: within a modality, draw sources by the square root of their numbers of slices, not slices
    alike.
    drawn: share of all samples, from 0 to 1, that are drawn shapes instead (see `litemed.train.shapes`).
    drawn_over: share of these that are drawn over a part of a slice.
    regions: share of the slices, from 0 to 1, whose labels give way to regions that the picture's own edges
    bound (see `litemed.train.regions`), where there are any.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"CT": 40.0, "MR": 10.0})
    others: float = 50.0
    balance_sources: bool = False
    drawn: float = 0.0
    drawn_over: float = 0.0
    regions: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in MODALITIES:
                raise UsageError(f"sampling.weights: unknown modality {name!r}; use {', '.join(MODALITIES)}")
            _between(f"sampling.weights.{name}", weight, 0)
        _between("sampling.others", self.others, 0)
        for name in ("drawn", "drawn_over", "regions"):
            _between(f"sampling.{name}", getattr(self, name), 0, 1)
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
        _between("prompts.per_image", self.per_image, 1)
        _between("prompts.min_object_pixels", self.min_object_pixels, 1)
        _between("prompts.tight", self.tight, 0, 1)
        _between("prompts.jittered", self.jittered, 0, 1)
        if self.tight + self.jittered > 1:
            raise UsageError("prompts: tight and jittered are above 1 together")
        _between("prompts.jitter_pixels", self.jitter_pixels, 0, 128)
        for share in self.jitter_shares:
            _between("prompts.jitter_shares", share, 0, 0.5)
        if self.jittered and not self.jitter_shares:
            raise UsageError("prompts.jitter_shares: is empty, and prompts.jittered is above 0")


@dataclass(frozen=True)
class Pool:
    """Steps of the mask decoder on images that are encoded once an epoch; see `litemed.train.pool`.

    passes: how often an epoch goes through its images, each time encoded as they were the first time; then
    run.tune has to be "decoder". 0: no pool, images are encoded for each step. boxes: how many of an image's
    `prompts.per_image` boxes a step takes, drawn anew each time. ellipses: share of a step's boxes, from 0 to
    1, that lie anywhere instead, with an ellipse for a mask (see `litemed.train.geometry`).
    """

    passes: int = 0
    boxes: int = 1
    ellipses: float = 0.0

    def __post_init__(self) -> None:
        _between("pool.passes", self.passes, 0)
        _between("pool.boxes", self.boxes, 1)
        _between("pool.ellipses", self.ellipses, 0, 1)


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
            _between(f"augmentation.{name}", probability, 0, 1)


@dataclass(frozen=True)
class Loss:
    """Weights of the parts of the loss; gamma and alpha of the focal loss.

    entropy: weight of the cross-entropy of the pixels that are decoded (see `litemed.train.losses`).
    pixels: weight of what a linear head reads of every pixel from the embedding (see `litemed.train.pixels`);
    0: no such head.
    """

    dice: float = 1.0
    focal: float = 1.0
    iou: float = 1.0
    entropy: float = 0.0
    pixels: float = 0.0
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25

    def __post_init__(self) -> None:
        for name in ("dice", "focal", "iou", "entropy", "pixels"):
            _between(f"loss.{name}", getattr(self, name), 0)
        if self.dice == self.focal == self.entropy == self.pixels == 0:
            raise UsageError(
                "loss: dice, focal, entropy and pixels are all 0, so that no mask would be learnt"
            )
        _between("loss.focal_alpha", self.focal_alpha, 0, 1)
        if self.focal_gamma != 0:  # between 0 and 1 its gradient is infinite at a perfect prediction
            _between("loss.focal_gamma", self.focal_gamma, 1)


@dataclass(frozen=True)
class Optimizer:
    """kind: "adamw", or "muon" (see `litemed.train.muon`).

    clip_norm: gradients are scaled down to this norm; 0 leaves them alone. decay_all: also norms, biases and
    tables of positions decay, as PyTorch does by itself.
    """

    kind: str = ADAMW
    lr: float = 5e-5
    weight_decay: float = 0.01
    decay_all: bool = True
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _one_of("optimizer.kind", self.kind, OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"optimizer.lr = {self.lr}: must be above 0")
        _between("optimizer.weight_decay", self.weight_decay, 0)
        _between("optimizer.clip_norm", self.clip_norm, 0)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes on.

    kind: "plateau" multiplies it by `factor` when the training loss has not fallen for more than
    `patience_epochs`; "cosine" lets it fall to 0 at the end of the run; "constant" leaves it.
    warmup_steps: optimizer steps over which it first rises from 0.
    """

    kind: str = "plateau"
    factor: float = 0.9
    patience_epochs: int = 5
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _one_of("schedule.kind", self.kind, ("plateau", "cosine", "constant"))
        if not 0 < self.factor < 1:
            raise UsageError(f"schedule.factor = {self.factor}: must lie between 0 and 1")
        _between("schedule.patience_epochs", self.patience_epochs, 0)
        _between("schedule.warmup_steps", self.warmup_steps, 0)


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
        _between("validation.every_epochs", self.every_epochs, 1)
        _between("validation.slices_per_modality", self.slices_per_modality, 0)


@dataclass(frozen=True)
class Hardware:
    """device: "auto", "cpu" or "cuda". precision: "auto" is bfloat16 on a GPU, float32 elsewhere.

    workers: loader processes of each training process; -1 is one for every core that falls to it, at most 16.
    """

    device: str = "auto"
    precision: str = "auto"
    workers: int = -1

    def __post_init__(self) -> None:
        _one_of("hardware.device", self.device, ("auto", "cpu", "cuda"))
        _one_of("hardware.precision", self.precision, ("auto", "float32", "bfloat16"))
        _between("hardware.workers", self.workers, -1)


@dataclass(frozen=True)
class Config:
    """All settings of a run. `hardware` alone does not change what is learnt, but for rounding."""

    run: Run = Run()
    sampling: Sampling = field(default_factory=Sampling)
    prompts: Prompts = Prompts()
    pool: Pool = Pool()
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    lora: LoRA = LoRA()
    validation: Validation = Validation()
    hardware: Hardware = Hardware()

    def check(self) -> None:
        """Raise UsageError for settings that do not go with one another."""
        run, pool = self.run, self.pool
        if pool.passes and run.tune != TUNE_DECODER:
            raise UsageError(
                f"pool.passes = {pool.passes}: with run.tune = {run.tune!r} the encoder learns, so "
                'images cannot be encoded once an epoch; set run.tune = "decoder", or leave passes at 0'
            )
        if run.windows and not (self.prompts.tokens and run.size >= LEAST_SIZE_OF_WINDOWS):
            raise UsageError(
                f"run.windows: needs prompts.tokens above 0 and run.size of at least {LEAST_SIZE_OF_WINDOWS}"
            )
        if run.windows and pool.ellipses:
            raise UsageError("pool.ellipses: lie anywhere on an image, and run.windows shows a part of it")
        if self.loss.pixels and run.tune == TUNE_DECODER:
            raise UsageError('loss.pixels: asks the encoder, which run.tune = "decoder" leaves alone')

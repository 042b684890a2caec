"""What a training run can be told, checked once where it is made.

The defaults are those of the paper's Table 2; `default.toml` beside this module says what every setting
means. A table of the file is a dataclass here, a key is a field; `litemed.train.toml_settings` reads it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from litemed.runtime.errors import UsageError
from litemed.runtime.modalities import MODALITIES

TUNE_LORA_DECODER: Final = "lora+decoder"
TUNE_LORA: Final = "lora"
TUNE_DECODER: Final = "decoder"
TUNE_ALL: Final = "all"
TUNES: Final = (TUNE_LORA_DECODER, TUNE_LORA, TUNE_DECODER, TUNE_ALL)

PLATEAU: Final = "plateau"
COSINE: Final = "cosine"


def setting(default: Any, low: float = 0, high: float = math.inf, choices: tuple[str, ...] = ()) -> Any:
    """Return a field whose value is in [low, high] if it is a number, one of `choices` if it is a text."""
    return field(default=default, metadata={"low": low, "high": high, "choices": choices})


class Table:
    """A table of settings; making one raises UsageError for a value out of range."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value = f"{type(self).__name__.lower()}.{item.name}", getattr(self, item.name)
            if isinstance(value, str) and value not in item.metadata["choices"]:
                raise UsageError(f"{name} = {value!r}: choose from {', '.join(item.metadata['choices'])}")
            if isinstance(value, int | float):
                check_range(name, value, item.metadata["low"], item.metadata["high"])


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise UsageError unless a setting lies in [low, high] and is finite."""
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UsageError(f"{name} = {value}: must be {limits}")


@dataclass(frozen=True)
class Run(Table):
    """How long, on how much, and which weights."""

    seed: int = setting(0)
    epochs: int = setting(20, low=1)
    samples_per_epoch: int = setting(0)
    batch_size: int = setting(16, low=1)
    size: int = setting(256, low=64)
    tune: str = setting(TUNE_LORA_DECODER, choices=TUNES)
    average: float = setting(0.0, high=0.99999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 64:
            raise UsageError(f"run.size = {self.size}: must be a positive multiple of 64")


@dataclass(frozen=True)
class Sampling(Table):
    """Which share of the samples comes from which modality; see `litemed.train.sampler`."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"CT": 40.0, "MR": 10.0})
    others: float = setting(50.0)
    balance_sources: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.weights.items():
            if name not in MODALITIES:
                raise UsageError(f"sampling.weights: unknown modality {name!r}; use {', '.join(MODALITIES)}")
            check_range(f"sampling.weights.{name}", weight, 0)
        if not any(self.weights.values()) and not self.others:
            raise UsageError("sampling: every weight is 0, so that nothing can be drawn")


@dataclass(frozen=True)
class Prompts(Table):
    """How loose the boxes are that are drawn from the labels; see `litemed.train.prompts`."""

    tight: float = setting(0.0, high=1)
    jittered: float = setting(0.0, high=1)
    jitter_pixels: int = setting(5, high=128)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tight + self.jittered > 1:
            raise UsageError("prompts: tight and jittered are above 1 together")


@dataclass(frozen=True)
class Augmentation(Table):
    """What is done to an image before it is shown; see `litemed.train.augment.CHANCES`. The paper flips."""

    kind: str = setting("flips", choices=("none", "flips", "strong"))


@dataclass(frozen=True)
class Loss(Table):
    """Weights of those parts of the loss that are not Dice and focal; see `litemed.train.losses`."""

    iou: float = setting(1.0)
    cross_entropy: float = setting(0.0)


@dataclass(frozen=True)
class Optimizer(Table):
    """AdamW. lr: of the encoder with its adapters. decoder_lr: of everything else; 0: the same."""

    lr: float = setting(5e-5, low=1e-12)
    decoder_lr: float = setting(0.0)
    weight_decay: float = setting(0.01)


@dataclass(frozen=True)
class Schedule(Table):
    """How the learning rate goes on; see `litemed.train.optimise.LearningRate`."""

    kind: str = setting(PLATEAU, choices=(PLATEAU, COSINE))
    warmup_steps: int = setting(0)


@dataclass(frozen=True)
class LoRA(Table):
    """The inner width of the adapters."""

    rank: int = setting(4, low=1, high=256)


@dataclass(frozen=True)
class Validation(Table):
    """After how many epochs, and on how many slices of each modality (0: on all)."""

    every_epochs: int = setting(1, low=1)
    slices_per_modality: int = setting(100)


@dataclass(frozen=True)
class Hardware(Table):
    """What changes nothing but speed and rounding."""

    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    precision: str = setting("auto", choices=("auto", "float32", "bfloat16"))
    compile: str = setting("auto", choices=("auto", "yes", "no"))
    workers: int = setting(-1, low=-1)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

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

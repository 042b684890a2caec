"""What a training run can be told: its settings, checked where they are made, read from TOML, and compared.

The defaults are those of the paper's Table 2; `default.toml` beside this module says what every setting
means. A table of the file is a dataclass here, a key is a field.
"""

import dataclasses
import math
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from litemed.runtime.errors import UsageError
from litemed.runtime.modalities import MODALITIES

TUNES: Final = ("lora+decoder", "lora", "decoder", "all")
Changes = tuple[Mapping[str, Any], str]
"""Tables of settings, {table: {key: value}}, and what errors call the place they come from."""

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


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
    tune: str = setting("lora+decoder", choices=TUNES)
    average: float = setting(0.0, high=0.99999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 64:
            raise UsageError(f"run.size = {self.size}: must be a positive multiple of 64")


@dataclass(frozen=True)
class Sampling(Table):
    """Which share of the samples comes from which modality."""

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
    """How loose the boxes are that are drawn from the labels, see `litemed.train.prompts.loosen`."""

    tight: float = setting(0.0, high=1)
    jittered: float = setting(0.0, high=1)
    loose: float = setting(0.0, high=1)
    volume: float = setting(0.0, high=1)
    jitter_pixels: int = setting(5, high=128)

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.fsum(self.shares) > 1:
            raise UsageError("prompts: tight, jittered, loose and volume are above 1 together")

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the kinds of boxes; all others are the paper's."""
        return self.tight, self.jittered, self.loose, self.volume


@dataclass(frozen=True)
class Augmentation(Table):
    """What is done to an image before it is shown; see `litemed.train.augment.Chances`."""

    kind: str = setting("flips", choices=("none", "flips", "strong"))
    tiles: float = setting(0.0, high=1)


@dataclass(frozen=True)
class Loss(Table):
    """Weights of those parts of the loss that are not Dice and focal."""

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
    """How the learning rate goes on; see `litemed.train.network.LearningRate`."""

    kind: str = setting("plateau", choices=("plateau", "cosine"))
    warmup_steps: int = setting(0)


@dataclass(frozen=True)
class LoRA(Table):
    """The inner width of the adapters."""

    rank: int = setting(4, low=1, high=256)


@dataclass(frozen=True)
class Validation(Table):
    """After how many epochs, on how many slices of each modality (0: on all), and what volumes count."""

    every_epochs: int = setting(1, low=1)
    slices_per_modality: int = setting(100)
    volume_share: float = setting(0.0, high=1)


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


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises UsageError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error


def parse_setting(text: str) -> dict[str, Any]:
    """Return the tables of one `TABLE.KEY=VALUE`; a VALUE that is not TOML is text. Raises UsageError."""
    key, _, value = (part.strip() for part in text.partition("="))
    for candidate in (value, f'"{value}"') if key and value else ():
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise UsageError(f"setting {text!r}: write TABLE.KEY=VALUE, such as optimizer.lr=1e-4")


def updated(config: AnyConfig, tables: Mapping[str, Any], source: str) -> AnyConfig:
    """Return `config` with the settings in `tables`, which come from `source`, replaced.

    Raises UsageError for unknown tables and keys, wrong types and values out of range.
    """
    _check_known(tables, list(vars(config)), source, "table")
    parts: dict[str, Any] = {}
    for table, values in tables.items():
        current = getattr(config, table)
        if not isinstance(values, Mapping):
            raise UsageError(f"{source}: {table} is a table: write {table}.KEY or [{table}]")
        _check_known(values, list(vars(current)), source, f"key in [{table}]")
        kinds = typing.get_type_hints(type(current))
        converted = {k: _convert(v, kinds[k], f"{source}: {table}.{k}") for k, v in values.items()}
        try:
            parts[table] = dataclasses.replace(current, **converted)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None
    return dataclasses.replace(config, **parts)


def differences(a: Config, b: Config) -> list[str]:
    """Return the settings in which two configurations differ, as `table.key`, `hardware` aside."""
    return [
        f"{table}.{key}"
        for table, values in vars(a).items()
        for key, value in vars(values).items()
        if table != "hardware" and value != getattr(getattr(b, table), key)
    ]


def _check_known(given: Mapping[str, Any], names: list[str], source: str, what: str) -> None:
    for name in given:
        if name not in names:
            raise UsageError(f"{source}: unknown {what} {name!r}; known: {', '.join(names)}")


def _convert(value: Any, kind: Any, name: str) -> Any:
    """Return `value` as the field's type; integers serve as floats, nothing else is converted."""
    if kind not in _KINDS:  # the one mapping, of numbers
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} = {value!r}: must be a table of numbers")
        return {key: _convert(one, float, f"{name}.{key}") for key, one in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{name} = {value!r}: must be {_KINDS[kind]}")
    return value

"""What a distillation can be told: for each of its two stages the settings of training, and a few more.

The defaults are those of the recipe, `train/recipes/light.toml`, which says what they mean. Its tables hold
for both stages, those whose names begin with `stage1` or `stage2` for one.
"""

from __future__ import annotations

import importlib.resources
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from litemed.runtime.errors import UsageError
from litemed.train.config import COSINE, TUNE_ALL, Config, between
from litemed.train.tables import updated

STAGES: Final = ("stage1", "stage2")


@dataclass(frozen=True)
class Distillation:
    """How a student is shown what its teacher says.

    views: how many augmented images are kept with the teacher's embeddings. fresh: share of each batch that
    the teacher encodes anew. unlabelled: share of these that are unlabelled images, where there are any.
    masks: whether the mask losses are learnt beside the embedding, by the mask decoder too.
    """

    views: int = 20_000
    fresh: float = 0.25
    unlabelled: float = 0.0
    masks: bool = False

    def __post_init__(self) -> None:
        between("distillation.views", self.views, 1)
        between("distillation.unlabelled", self.unlabelled, 0, 1)
        if not 0 < self.fresh <= 1:
            raise UsageError(f"distillation.fresh = {self.fresh}: must be above 0 and at most 1")


@dataclass(frozen=True)
class DistillConfig(Config):
    """All settings of one stage."""

    distillation: Distillation = Distillation()

    @property
    def fresh(self) -> int:
        """How many views of a step are new."""
        return max(1, math.ceil(self.distillation.fresh * self.run.batch_size))

    def check(self, stage: str) -> None:
        """Raise UsageError for settings that a distillation has no use for, or too few views."""
        if self.run.tune != TUNE_ALL:
            raise UsageError(f"{stage}: run.tune = {self.run.tune!r}: the student learns as a whole")
        if self.schedule.kind != COSINE:
            raise UsageError(f"{stage}: schedule.kind = {self.schedule.kind!r}: must be {COSINE!r}")
        if self.distillation.views < self.fresh:
            raise UsageError(
                f"{stage}: distillation.views = {self.distillation.views}: must be at least the {self.fresh} "
                "new ones of a step"
            )


def recipe_text() -> str:
    """Return the recipe with all defaults and what they mean, as TOML."""
    return importlib.resources.files("litemed.train").joinpath("recipes/light.toml").read_text("utf-8")


def stage_configs(changes: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, DistillConfig]:
    """Return the settings of each stage.

    changes: what differs from the recipe, as pairs of tables and what they are called in errors.
    Raises UsageError for unknown tables and keys, wrong types and values out of range.
    """
    start = DistillConfig()
    configs = dict.fromkeys(STAGES, start)
    for tables, source in [(tomllib.loads(recipe_text()), "light.toml"), *changes]:
        common = {name: table for name, table in tables.items() if name not in STAGES}
        for stage, config in configs.items():
            own = tables.get(stage, {})
            if not isinstance(own, Mapping):
                raise UsageError(f"{source}: {stage} is a table of tables: write [{stage}.run] and the like")
            configs[stage] = updated(updated(config, common, source), own, f"{source}: {stage}")
    for stage, config in configs.items():
        config.check(stage)
    return configs

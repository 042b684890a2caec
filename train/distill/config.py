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
from typing import Final

from litemed.runtime.errors import UsageError
from litemed.train.config import COSINE, TUNE_ALL, Config, Table, setting
from litemed.train.toml_settings import Changes, updated

STAGES: Final = ("stage1", "stage2")


@dataclass(frozen=True)
class Distillation(Table):
    """How a student is shown what its teacher says.

    views: how many augmented images are kept with the teacher's embeddings. fresh: share of each batch that
    the teacher encodes anew. unlabelled: share of these that are unlabelled images, where there are any.
    masks: whether the mask losses are learnt beside the embedding, by the mask decoder too.
    """

    views: int = setting(20_000, low=1)
    fresh: float = setting(0.25, low=1e-6, high=1)
    unlabelled: float = setting(0.0, high=1)
    masks: bool = setting(False)


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


def stage_configs(changes: Sequence[Changes]) -> dict[str, DistillConfig]:
    """Return the settings of each stage, given what differs from the recipe.

    Raises UsageError for unknown tables and keys, wrong types and values out of range.
    """
    configs = dict.fromkeys(STAGES, DistillConfig())
    for tables, source in [(tomllib.loads(recipe_text()), "light.toml"), *changes]:
        for stage, config in configs.items():
            own = tables.get(stage, {})
            if not isinstance(own, Mapping):
                raise UsageError(f"{source}: {stage} is a table of tables: write [{stage}.run] and the like")
            common = updated(config, tables, source, others=STAGES)
            configs[stage] = updated(common, own, f"{source}: {stage}")
    for stage, config in configs.items():
        config.check(stage)
    return configs

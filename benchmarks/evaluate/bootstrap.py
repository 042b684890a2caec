"""Percentile bootstrap intervals over cases.

Cases are drawn with replacement within each modality, so that a modality keeps its number of cases, as the
macro average needs. All runs are scored on the same draws: differences between runs are paired by case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK_DRAWS = 2**22


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def resample_means(
    groups: Sequence[npt.NDArray[np.float64]], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return the group means of bootstrap samples.

    Args:
        groups: one array (cases, columns) per modality, with at least one case each and the same columns:
            a column is one score of one run.
        resamples: how many bootstrap samples.
        seed: of the random draws; the same seed gives the same samples.

    Returns:
        float64 (resamples, groups, columns).
    """
    random = np.random.default_rng(seed)
    means = np.empty((resamples, len(groups), groups[0].shape[1]))
    for index, scores in enumerate(groups):
        cases = len(scores)
        step = max(1, _CHUNK_DRAWS // cases)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            # How often each case is drawn.
            draws = random.multinomial(cases, np.full(cases, 1 / cases), size=count)
            means[start : start + count, index] = draws @ scores / cases
    return means


def interval(value: float, samples: npt.NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """Return `value` with the percentiles of its bootstrap `samples` (resamples,) as bounds."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))

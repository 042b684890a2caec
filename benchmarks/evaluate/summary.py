"""From the scores of cases to the numbers of the paper's Table 3, with percentile bootstrap intervals.

A modality's score is the mean over its cases, the overall score the mean over the modalities (macro average).
The bootstrap draws cases with replacement within each modality, so that a modality keeps its number of cases,
as the macro average needs. All runs share the draws: differences between runs are paired by case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.scores import CaseResult
from litemed.runtime.errors import InputError
from litemed.runtime.modalities import MODALITIES

RESAMPLES, SEED, CONFIDENCE = 2000, 0, 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RunScore:
    """DSC and NSD of one run, in [0, 1]; for a difference between two runs in [-1, 1]."""

    run: str
    dsc: Interval
    nsd: Interval


@dataclass(frozen=True)
class Row:
    """One row of the table: a modality or the macro average, and a score for each run."""

    modality: str
    cases: int
    scores: tuple[RunScore, ...]


@dataclass(frozen=True)
class Summary:
    """Everything that the tables show.

    Attributes:
        runs: names of the columns; trivial predictors come last.
        rows: one row per modality that has cases, in the challenge's order.
        overall: the macro average over the modalities.
        differences: macro average of the first run minus that of each other, paired by case.
    """

    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    overall: Row
    differences: tuple[RunScore, ...]


def summarise(results: Sequence[CaseResult]) -> Summary:
    """Average over cases and modalities, of the cases that could be scored.

    Raises:
        InputError: not a single case could be scored.
    """
    scored = [result for result in results if result.scores]
    if not scored:
        raise InputError(f"none of the {len(results)} cases could be scored; see the errors above")
    runs = tuple(score.run for score in scored[0].scores)
    groups: dict[str, Values] = {}  # modality -> (cases, runs, DSC and NSD)
    for modality in MODALITIES:
        if of_modality := [result for result in scored if result.modality == modality]:
            groups[modality] = np.array([[(s.dsc, s.nsd) for s in result.scores] for result in of_modality])
    samples = resample_means(list(groups.values()))
    means = np.stack([scores.mean(axis=0) for scores in groups.values()])

    def run_scores(names: Sequence[str], values: Values, draws: Values) -> tuple[RunScore, ...]:
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
        found = np.stack([values, low, high], axis=-1).tolist()
        return tuple(
            RunScore(name, Interval(*dsc), Interval(*nsd))
            for name, (dsc, nsd) in zip(names, found, strict=True)
        )

    overall, draws = means.mean(axis=0), samples.mean(axis=1)
    return Summary(
        runs=runs,
        rows=tuple(
            Row(modality, len(scores), run_scores(runs, means[index], samples[:, index]))
            for index, (modality, scores) in enumerate(groups.items())
        ),
        overall=Row("Average", len(scored), run_scores(runs, overall, draws)),
        differences=run_scores(runs[1:], overall[:1] - overall[1:], draws[:, :1] - draws[:, 1:]),
    )


def resample_means(groups: Sequence[Values]) -> Values:
    """Return the group means of bootstrap samples, float64 (resamples, groups, runs, 2).

    groups: one array (cases, runs, 2) per modality, with at least one case each.
    """
    random = np.random.default_rng(SEED)
    means = []
    for scores in groups:
        cases = len(scores)
        # How often each case is drawn.
        draws = random.multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES)
        means.append(np.tensordot(draws, scores, axes=1) / cases)
    return np.stack(means, axis=1)

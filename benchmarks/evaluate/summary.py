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

Values = NDArray[np.float64]

_CHUNK_DRAWS = 2**22


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
        resamples: number of bootstrap samples.
        seed: of the bootstrap.
        confidence: of the intervals.
    """

    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    overall: Row
    differences: tuple[RunScore, ...]
    resamples: int
    seed: int
    confidence: float


def summarise(
    results: Sequence[CaseResult], *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Summary:
    """Average the scores of all cases that could be scored.

    Raises:
        InputError: not a single case could be scored.
    """
    scored = [result for result in results if result.scores]
    if not scored:
        raise InputError(f"none of the {len(results)} cases could be scored; see the errors above")
    runs = tuple(score.run for score in scored[0].scores)
    groups: dict[str, Values] = {}  # modality -> (cases, runs, DSC and NSD)
    for modality in MODALITIES:
        of_modality = [result for result in scored if result.modality == modality]
        if of_modality:
            groups[modality] = np.array(
                [[(score.dsc, score.nsd) for score in result.scores] for result in of_modality]
            )
    samples = resample_means(list(groups.values()), resamples, seed)
    means = np.stack([scores.mean(axis=0) for scores in groups.values()])

    def run_scores(names: Sequence[str], values: Values, draws: Values) -> tuple[RunScore, ...]:
        tail = 50 * (1 - confidence)
        low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
        found = np.stack([values, low, high], axis=-1).tolist()
        return tuple(
            RunScore(name, *(Interval(*s) for s in one)) for name, one in zip(names, found, strict=True)
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
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


def resample_means(groups: Sequence[Values], resamples: int, seed: int) -> Values:
    """Return the group means of bootstrap samples, float64 (resamples, groups, runs, 2).

    Args:
        groups: one array (cases, runs, 2) per modality, with at least one case each.
        resamples: how many bootstrap samples.
        seed: of the random draws; the same seed gives the same samples.
    """
    random = np.random.default_rng(seed)
    means = np.empty((resamples, len(groups), *groups[0].shape[1:]))
    for index, scores in enumerate(groups):
        cases = len(scores)
        step = max(1, _CHUNK_DRAWS // cases)
        for start in range(0, resamples, step):
            # How often each case is drawn.
            count = min(step, resamples - start)
            draws = random.multinomial(cases, np.full(cases, 1 / cases), size=count)
            means[start : start + count, index] = np.tensordot(draws, scores, axes=1) / cases
    return means

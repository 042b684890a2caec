"""From the scores of cases to the numbers of the paper's Table 3.

A modality's score is the mean over its cases, the overall score the mean over the modalities (macro average).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from litemed.benchmarks.evaluate.bootstrap import Interval, interval, resample_means
from litemed.benchmarks.evaluate.scores import CaseResult
from litemed.runtime.errors import InputError
from litemed.train.prepare.modalities import MODALITIES


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
    groups: dict[str, npt.NDArray[np.float64]] = {}
    for modality in MODALITIES:
        # Columns: DSC of every run, then NSD of every run.
        table = [
            [score.dsc for score in result.scores] + [score.nsd for score in result.scores]
            for result in scored
            if result.scores[0].modality == modality
        ]
        if table:
            groups[modality] = np.array(table)
    samples = resample_means(list(groups.values()), resamples, seed)
    means = np.stack([table.mean(axis=0) for table in groups.values()])

    def row(name: str, cases: int, values: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]) -> Row:
        return Row(name, cases, _run_scores(runs, values, draws, confidence))

    rows = [
        row(modality, len(table), means[index], samples[:, index])
        for index, (modality, table) in enumerate(groups.items())
    ]
    overall, overall_samples = means.mean(axis=0), samples.mean(axis=1)
    # The first run's column, for DSC and for NSD, less those of the others.
    first, others = [0] * (len(runs) - 1), list(range(1, len(runs)))
    left = first + [len(runs)] * len(others)
    right = others + [len(runs) + other for other in others]
    return Summary(
        runs=runs,
        rows=tuple(rows),
        overall=row("Average", len(scored), overall, overall_samples),
        differences=_run_scores(
            runs[1:],
            overall[left] - overall[right],
            overall_samples[:, left] - overall_samples[:, right],
            confidence,
        ),
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


def _run_scores(
    runs: Sequence[str], values: npt.NDArray[np.float64], samples: npt.NDArray[np.float64], confidence: float
) -> tuple[RunScore, ...]:
    """Return one score for each run from columns: DSC of every run, then NSD of every run."""
    intervals = [
        interval(value, samples[:, column], confidence) for column, value in enumerate(values.tolist())
    ]
    return tuple(
        RunScore(run, intervals[index], intervals[len(runs) + index]) for index, run in enumerate(runs)
    )

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
AVERAGE = "Average"

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Everything that the tables show.

    Attributes:
        runs: names of the columns; trivial predictors come last.
        rows: the modalities that have cases, in the challenge's order, and the macro average over them.
        cases: how many there are in each row.
        scores: (rows, runs, DSC and NSD, 3): the value and the bounds of its confidence interval.
        differences: (runs - 1, 2, 3): macro average of the first run minus that of each other.
    """

    runs: tuple[str, ...]
    rows: tuple[str, ...]
    cases: tuple[int, ...]
    scores: Values
    differences: Values


def summarise(results: Sequence[CaseResult]) -> Summary:
    """Average over cases and modalities, of the cases that could be scored.

    Raises:
        InputError: not a single case could be scored.
    """
    scored = [result for result in results if result.scores]
    if not scored:
        raise InputError(f"none of the {len(results)} cases could be scored; see the errors above")
    groups: dict[str, Values] = {}  # modality -> (cases, runs, DSC and NSD)
    for modality in MODALITIES:
        if of_modality := [result for result in scored if result.modality == modality]:
            groups[modality] = np.array([[(s.dsc, s.nsd) for s in result.scores] for result in of_modality])
    random = np.random.default_rng(SEED)
    drawn = []
    for scores in groups.values():
        cases = len(scores)
        often = random.multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES)
        drawn.append(np.tensordot(often, scores, axes=1) / cases)
    samples = np.stack(drawn, axis=1)  # (resamples, modalities, runs, 2)
    means = np.stack([scores.mean(axis=0) for scores in groups.values()])
    # With the macro average as a last row.
    samples = np.concatenate([samples, samples.mean(axis=1, keepdims=True)], axis=1)
    means = np.concatenate([means, means.mean(axis=0, keepdims=True)])
    return Summary(
        runs=tuple(score.run for score in scored[0].scores),
        rows=(*groups, AVERAGE),
        cases=(*map(len, groups.values()), len(scored)),
        scores=_intervals(means, samples),
        differences=_intervals(means[-1, :1] - means[-1, 1:], samples[:, -1, :1] - samples[:, -1, 1:]),
    )


def _intervals(values: Values, draws: Values) -> Values:
    tail = 50 * (1 - CONFIDENCE)
    return np.stack([values, *np.percentile(draws, [tail, 100 - tail], axis=0)], axis=-1)

"""Averages: over cases and modalities, with intervals; of slices and volumes apart; by size of the objects.

A modality's score is the mean over its cases, the overall score the mean over the modalities (macro average).
The bootstrap draws cases with replacement within each modality, so that a modality keeps its number of cases,
as the macro average needs. All runs share the draws: differences between runs are paired by case.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.metrics import ClassScore
from litemed.benchmarks.evaluate.scores import CaseResult
from litemed.runtime.errors import InputError
from litemed.runtime.modalities import MODALITIES

RESAMPLES, SEED, CONFIDENCE = 2000, 0, 0.95
AVERAGE = "Average"
SIZES = (8, 16, 32, 64)
"""Where the classes of objects by size begin and end, in pixels of the network's input."""
KINDS = {2: "Slices and images", 3: "Volumes"}

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
        scores=_with_bounds(means, samples),
        differences=_with_bounds(means[-1, :1] - means[-1, 1:], samples[:, -1, :1] - samples[:, -1, 1:]),
    )


def _with_bounds(values: Values, draws: Values) -> Values:
    tail = 50 * (1 - CONFIDENCE)
    return np.stack([values, *np.percentile(draws, [tail, 100 - tail], axis=0)], axis=-1)


@dataclass(frozen=True)
class Group:
    """A row of a smaller table: what it is of, how many, and their mean DSC and NSD, float64 (runs, 2)."""

    name: str
    count: int
    scores: Values


def by_kind(results: Sequence[CaseResult]) -> list[Group]:
    """Return the macro averages of slices and images alone, and of volumes; none if all are of one kind."""
    kinds = {kind: [one for one in results if one.dimensions == kind] for kind in KINDS}
    if not all(kinds.values()):
        return []
    summaries = {KINDS[kind]: summarise(of_kind) for kind, of_kind in kinds.items()}
    return [
        Group(f"{kind}, modalities: {len(one.rows) - 1}", one.cases[-1], one.scores[-1, ..., 0])
        for kind, one in summaries.items()
    ]


def by_size(results: Sequence[CaseResult]) -> list[Group]:
    """Return the means over the objects, labels of a ground truth, of each class of size that has any."""
    objects: list[tuple[ClassScore, ...]] = []
    for result in results:
        of_runs = [[one for one in score.classes if one.size is not None] for score in result.scores]
        objects += zip(*of_runs, strict=True)
    values = np.array([[(one.dsc, one.nsd) for one in of_runs] for of_runs in objects])
    numbers = np.digitize(np.array([one.size for one, *_ in objects], np.float64), SIZES)
    between = (f"{low} to {high}" for low, high in itertools.pairwise(SIZES))
    return [
        Group(name, int(own.sum()), values[own].mean(axis=0))
        for number, name in enumerate((f"under {SIZES[0]}", *between, f"{SIZES[-1]} and more"))
        if (own := numbers == number).any()
    ]

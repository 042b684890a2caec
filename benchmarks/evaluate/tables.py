"""The numbers of the paper's Table 3, as Markdown, CSV and JSON; those of cases and classes, too.

A modality's score is the mean over its cases, the overall score the mean over the modalities (macro average).
The bootstrap draws cases with replacement within each modality, so that a modality keeps its number of cases,
as the macro average needs. All runs share the draws: differences between runs are paired by case.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.evaluate.metrics import TOLERANCE
from litemed.benchmarks.evaluate.predictors import Trivial
from litemed.benchmarks.evaluate.scores import CaseResult
from litemed.benchmarks.report import table
from litemed.runtime.errors import InputError
from litemed.runtime.modalities import MODALITIES

# Runs that fit into one table, and how many stand in each of several: as many as in the paper's.
_WIDEST = 6
_COLUMNS = 4
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
        scores=_with_bounds(means, samples),
        differences=_with_bounds(means[-1, :1] - means[-1, 1:], samples[:, -1, :1] - samples[:, -1, 1:]),
    )


def _with_bounds(values: Values, draws: Values) -> Values:
    tail = 50 * (1 - CONFIDENCE)
    return np.stack([values, *np.percentile(draws, [tail, 100 - tail], axis=0)], axis=-1)


def files(summary: Summary, results: Sequence[CaseResult], about: Mapping[str, object]) -> dict[str, str]:
    """Return what is written, by file name; `about` goes into the report."""
    ends = [f"{metric}{end}" for metric in ("dsc", "nsd") for end in ("", "_low", "_high")]
    runs = [(result, score) for result in results for score in result.scores]
    settings = {"tolerance": TOLERANCE, "resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE}
    problems = [line for result in results for line in result.problems]
    extra = {"settings": settings, "notes": notes(summary, results), "problems": problems}
    lines = list(zip(summary.rows, summary.cases, summary.scores.tolist(), strict=True))
    rows = [
        {"modality": name, "cases": cases, "scores": [*map(_named, summary.runs, scores)]}
        for name, cases, scores in lines
    ]
    report = {
        **about,
        "runs": summary.runs,
        "rows": rows[:-1],
        "overall": rows[-1],
        "differences": [*map(_named, summary.runs[1:], summary.differences.tolist())],
        **extra,
    }
    return {
        "table.md": markdown(summary, results),
        "table.csv": _csv(
            ["modality", "cases", "run", *ends],
            (
                [name, cases, run, *dsc, *nsd]
                for name, cases, scores in lines
                for run, (dsc, nsd) in zip(summary.runs, scores, strict=True)
            ),
        ),
        "cases.csv": _csv(
            ["case", "modality", "run", "dsc", "nsd", "problem"],
            ([one.case, one.modality, s.run, s.dsc, s.nsd, s.problem] for one, s in runs),
        ),
        "classes.csv": _csv(
            ["case", "run", "label", "dsc", "nsd"],
            ([one.case, s.run, *asdict(label).values()] for one, s in runs for label in s.classes),
        ),
        "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
    }


def markdown(summary: Summary, results: Sequence[CaseResult]) -> str:
    """Return Table 3 with the intervals of its last row, and what was counted, as Markdown.

    The first run, which the others are compared with, stands after them, as the paper's Proposed does, and
    before the trivial predictors. More than six columns are set in tables of four.
    """
    given = len(summary.runs) - len(_trivial(summary))
    order = [*range(1, given), 0, *range(given, len(summary.runs))]
    width = len(order) if len(order) <= _WIDEST else _COLUMNS
    lines = []
    for start in range(0, len(order), width):
        lines += [*_scores(summary, order[start : start + width]), ""]
    lines += [
        f"Average: macro average over the modalities. NSD at a tolerance of {TOLERANCE:g} "
        "(mm in 3D, pixels in 2D), challenge rule.",
        "",
        f"Average with {100 * CONFIDENCE:.0f} % intervals: percentile bootstrap over cases, "
        f"{RESAMPLES} samples, seed {SEED}; differences are paired by case.",
        "",
        *_intervals(summary, order),
        "",
        *[f"- {note}" for note in notes(summary, results)],
        "",
    ]
    return "\n".join(lines)


def _scores(summary: Summary, order: Sequence[int]) -> list[str]:
    """Return the table of some of the runs, by their numbers."""
    columns = [f"{summary.runs[index]} {metric}" for index in order for metric in ("DSC", "NSD")]
    values = summary.scores[..., 0][:, order].reshape(len(summary.rows), -1).tolist()
    *rows, average = [
        [name, str(cases), *(f"{value:.3f}" for value in line)]
        for name, cases, line in zip(summary.rows, summary.cases, values, strict=True)
    ]
    return table(["Modality", "Cases", *columns], [*rows, [f"**{cell}**" for cell in average]])


def _intervals(summary: Summary, order: Sequence[int]) -> list[str]:
    """Return the table of the averages with their intervals, and of the differences from the first run."""
    titles = [f"{summary.runs[0]} minus it, {metric}" for metric in ("DSC", "NSD")]
    rows = []
    for index in order:
        less = [bounds(one, "+") for one in summary.differences[index - 1]] if index else ["", ""]
        rows.append([summary.runs[index], *map(bounds, summary.scores[-1, index]), *less])
    columns = 5 if len(summary.runs) > 1 else 3
    return table(["Run", "DSC", "NSD", *titles][:columns], [row[:columns] for row in rows])


def notes(summary: Summary, results: Sequence[CaseResult]) -> list[str]:
    """Return one line each on what the numbers leave out or hide, and on the best trivial predictor."""
    scored = [result.scores for result in results if result.scores]
    lines = [
        f"{run}: {bad} of {len(scored)} predictions missing or bad, counted as 0"
        for index, run in enumerate(summary.runs)
        if (bad := sum(bool(scores[index].problem) for scores in scored))
    ]
    if left_out := len(results) - len(scored):
        lines.append(f"{left_out} of {len(results)} cases could not be scored and are left out for all")
    if trivial := _trivial(summary):
        dsc, ours = summary.scores[..., 0, 0], summary.runs[0]
        best = max(trivial, key=lambda index: dsc[-1, index])
        beaten = dsc[:-1, 0] <= dsc[:-1, trivial].max(axis=1)
        where = ", ".join(itertools.compress(summary.rows, beaten)) or "none"
        lines += [
            f"best trivial predictor: {summary.runs[best]}, DSC {dsc[-1, best]:.3f}; "
            f"{ours} is {bounds(summary.differences[best - 1, 0], '+')} from it",
            f"modalities where {ours} does not beat every trivial predictor: {where}",
        ]
    return lines


def bounds(interval: Values, sign: str = "") -> str:
    """Return a value with its interval: 0.812 [0.790, 0.833]."""
    value, low, high = (f"{number:{sign}.3f}" for number in interval)
    return f"{value} [{low}, {high}]"


def _named(run: str, scores: Sequence[Sequence[float]]) -> dict[str, object]:
    """Return DSC and NSD of a run for the report."""
    dsc, nsd = (dict(zip(("value", "low", "high"), one, strict=True)) for one in scores)
    return {"run": run, "dsc": dsc, "nsd": nsd}


def _trivial(summary: Summary) -> list[int]:
    """Return the numbers of the runs that are trivial predictors."""
    return [index for index, run in enumerate(summary.runs) if run in set(Trivial)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV; floats to six places."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return stream.getvalue()

"""The numbers of the paper's Table 3, as Markdown, CSV and JSON; those of cases and classes, too."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from litemed.benchmarks.evaluate.metrics import TOLERANCE
from litemed.benchmarks.evaluate.predictors import Trivial
from litemed.benchmarks.evaluate.scores import CaseResult
from litemed.benchmarks.evaluate.summary import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Group,
    Summary,
    Values,
    by_kind,
    by_size,
)
from litemed.benchmarks.report import table
from litemed.runtime.preprocess import INPUT_SIZE

# Runs that fit into one table, and how many stand in each of several: as many as in the paper's.
_WIDEST = 6
_COLUMNS = 4


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

    def named(group: Group) -> dict[str, object]:
        scores = zip(summary.runs, group.scores.tolist(), strict=True)
        means = [{"run": run, "dsc": dsc, "nsd": nsd} for run, (dsc, nsd) in scores]
        return {"name": group.name, "count": group.count, "scores": means}

    report = {
        **about,
        "runs": summary.runs,
        "rows": rows[:-1],
        "overall": rows[-1],
        "kinds": [*map(named, by_kind(results))],
        "sizes": [*map(named, by_size(results))],
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
            ["case", "modality", "dimensions", "run", "dsc", "nsd", "problem"],
            ([one.case, one.modality, one.dimensions, s.run, s.dsc, s.nsd, s.problem] for one, s in runs),
        ),
        "classes.csv": _csv(
            ["case", "modality", "run", "label", "dsc", "nsd", "size"],
            ([one.case, one.modality, s.run, *asdict(it).values()] for one, s in runs for it in s.classes),
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
        *_groups("DSC / NSD", "Cases", by_kind(results), summary.runs, order),
        "DSC / NSD by size, mean over objects: the longest side of the object's box, in volumes across the "
        f"slice, in pixels at the network's scale ({INPUT_SIZE} for the longest side of image or slice).",
        "",
        *_groups("Longest side", "Objects", by_size(results), summary.runs, order),
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


def _groups(
    title: str, count: str, groups: Sequence[Group], runs: Sequence[str], order: Sequence[int]
) -> list[str]:
    """Return a table of groups, DSC and NSD in one cell for each run; nothing if there are none."""
    scores = [[f"{dsc:.3f} / {nsd:.3f}" for dsc, nsd in group.scores[order].tolist()] for group in groups]
    rows = [[group.name, str(group.count), *cells] for group, cells in zip(groups, scores, strict=True)]
    return [*table([title, count, *(runs[index] for index in order)], rows), ""] if rows else []


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
    if doubtful := [result.note for result in results if result.note]:
        others = f" (and {len(doubtful) - 1} more)" if len(doubtful) > 1 else ""
        lines.append(f"{doubtful[0]}{others}")
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

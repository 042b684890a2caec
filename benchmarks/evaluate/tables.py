"""Show scores as the paper's Table 3 (Markdown, CSV), per case and class (CSV), and as a report (JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from litemed.benchmarks.evaluate.predictors import Trivial
from litemed.benchmarks.evaluate.scores import CaseResult
from litemed.benchmarks.evaluate.summary import Interval, Row, Summary
from litemed.benchmarks.markdown import table

# Runs that fit into one table, and how many stand in each of several: as many as in the paper's.
_WIDEST = 6
_COLUMNS = 4


def markdown(summary: Summary, results: Sequence[CaseResult], tolerance: float) -> str:
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
        f"Average: macro average over the modalities. NSD at a tolerance of {tolerance:g} "
        "(mm in 3D, pixels in 2D), challenge rule.",
        "",
        f"Average with {100 * summary.confidence:.0f} % intervals: percentile bootstrap over cases, "
        f"{summary.resamples} samples, seed {summary.seed}; differences are paired by case.",
        "",
        *_intervals(summary, order),
        "",
        *[f"- {note}" for note in notes(summary, results)],
        "",
    ]
    return "\n".join(lines)


def _scores(summary: Summary, order: Sequence[int]) -> list[str]:
    """Return the table of some of the runs, by their numbers."""

    def cells(row: Row) -> list[str]:
        scores = [row.scores[index] for index in order]
        values = [f"{value:.3f}" for score in scores for value in (score.dsc.value, score.nsd.value)]
        return [row.modality, str(row.cases), *values]

    columns = [f"{summary.runs[index]} {metric}" for index in order for metric in ("DSC", "NSD")]
    average = [f"**{cell}**" for cell in cells(summary.overall)]
    return table(["Modality", "Cases", *columns], [*map(cells, summary.rows), average])


def _intervals(summary: Summary, order: Sequence[int]) -> list[str]:
    """Return the table of the averages with their intervals, and of the differences from the first run."""
    titles = [f"{summary.runs[0]} minus it, {metric}" for metric in ("DSC", "NSD")] * bool(
        summary.differences
    )
    rows = []
    for index in order:
        score = summary.overall.scores[index]
        less = ["" for _ in titles]
        if index:
            difference = summary.differences[index - 1]
            less = [bounds(difference.dsc, "+"), bounds(difference.nsd, "+")]
        rows.append([score.run, bounds(score.dsc), bounds(score.nsd), *less])
    return table(["Run", "DSC", "NSD", *titles], rows)


def notes(summary: Summary, results: Sequence[CaseResult]) -> list[str]:
    """Return one line each on what the numbers leave out or hide, and on the best trivial predictor."""
    lines = []
    for index, run in enumerate(summary.runs):
        statuses = [result.scores[index].status for result in results if result.scores]
        lines += [
            f"{run}: {statuses.count(status)} of {len(statuses)} predictions {status}, counted as 0"
            for status in ("missing", "bad")
            if status in statuses
        ]
    if left_out := sum(not result.scores for result in results):
        lines.append(f"{left_out} of {len(results)} cases could not be scored and are left out for all")
    if not (trivial := _trivial(summary)):
        return lines
    best = max(trivial, key=lambda index: summary.overall.scores[index].dsc.value)
    ours = summary.runs[0]
    beaten_by = [
        row.modality
        for row in summary.rows
        if row.scores[0].dsc.value <= max(row.scores[index].dsc.value for index in trivial)
    ]
    return [
        *lines,
        f"best trivial predictor: {summary.runs[best]}, DSC {summary.overall.scores[best].dsc.value:.3f}; "
        f"{ours} is {bounds(summary.differences[best - 1].dsc, '+')} from it",
        f"modalities where {ours} does not beat every trivial predictor: {', '.join(beaten_by) or 'none'}",
    ]


def table_csv(summary: Summary) -> str:
    """Return one line for each modality and run, then for the average; intervals as columns."""
    ends = [f"{metric}{end}" for metric in ("dsc", "nsd") for end in ("", "_low", "_high")]
    return _csv(
        ["modality", "cases", "run", *ends],
        (
            [row.modality, row.cases, score.run]
            + [number for one in (score.dsc, score.nsd) for number in (one.value, one.low, one.high)]
            for row in (*summary.rows, summary.overall)
            for score in row.scores
        ),
    )


def cases_csv(results: Sequence[CaseResult]) -> str:
    """Return one line for each case and run."""
    return _csv(
        ["case", "modality", "run", "dsc", "nsd", "status", "problem"],
        (
            [result.case, result.modality, score.run, score.dsc, score.nsd, score.status, score.problem]
            for result in results
            for score in result.scores
        ),
    )


def classes_csv(results: Sequence[CaseResult]) -> str:
    """Return one line for each case, run and class of the cases that were scored."""
    return _csv(
        ["case", "run", "label", "dsc", "nsd"],
        (
            [result.case, score.run, one.label, one.dsc, one.nsd]
            for result in results
            for score in result.scores
            for one in score.classes
        ),
    )


def report_json(
    summary: Summary, results: Sequence[CaseResult], tolerance: float, **about: Mapping[str, object]
) -> str:
    """Return everything but the single cases: versions and folders (`about`), settings, table, problems."""
    report = {
        **about,
        "settings": {
            "tolerance": tolerance,
            "rule": "challenge",
            "trivial": [summary.runs[index] for index in _trivial(summary)],
        },
        **asdict(summary),
        "notes": notes(summary, results),
        "problems": [
            {"case": result.case, "run": run, "problem": line}
            for result in results
            for run, line in result.problems
        ],
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def bounds(interval: Interval, sign: str = "") -> str:
    """Return a value with its interval, to three places: 0.812 [0.790, 0.833]."""
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


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

"""Show scores as the paper's Table 3 (Markdown, CSV), per case and class (CSV), and as a report (JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from litemed.benchmarks.evaluate.bootstrap import Interval
from litemed.benchmarks.evaluate.predictors import Trivial
from litemed.benchmarks.evaluate.scores import CaseResult, Settings, Status
from litemed.benchmarks.evaluate.summary import Row, Summary
from litemed.benchmarks.markdown import table

# Runs that fit into one table, and how many stand in each of several: as many as in the paper's.
_WIDEST = 6
_COLUMNS = 4


def markdown(summary: Summary, results: Sequence[CaseResult], settings: Settings) -> str:
    """Return Table 3 with the intervals of its last row, and what was counted, as Markdown.

    The first run, which the others are compared with, stands after them, as the paper's Proposed does, and
    before the trivial predictors. More than six columns are set in tables of four.
    """
    trivial = sum(run in set(Trivial) for run in summary.runs[1:])
    given = len(summary.runs) - trivial
    order = [*range(1, given), 0, *range(given, len(summary.runs))]
    width = len(order) if len(order) <= _WIDEST else _COLUMNS
    percent = f"{summary.confidence:.0%}".replace("%", " %")
    lines = []
    for start in range(0, len(order), width):
        lines += [*_scores(summary, order[start : start + width]), ""]
    return "\n".join(
        [
            *lines,
            f"Average: macro average over the modalities. NSD at a tolerance of {settings.tolerance:g} "
            f"(mm in 3D, pixels in 2D), {settings.rule.value} rule.",
            "",
            f"Average with {percent} intervals: percentile bootstrap over cases, {summary.resamples} "
            f"samples, seed {summary.seed}; differences are paired by case.",
            "",
            *_intervals(summary, order),
            "",
            *[f"- {note}" for note in notes(summary, results)],
            "",
        ]
    )


def _scores(summary: Summary, order: Sequence[int]) -> list[str]:
    """Return the table of some of the runs, by their numbers."""
    columns = [f"{summary.runs[index]} {metric}" for index in order for metric in ("DSC", "NSD")]
    rows = [_cells(row, order) for row in summary.rows]
    rows.append([f"**{cell}**" for cell in _cells(summary.overall, order)])
    return table(["Modality", "Cases", *columns], rows)


def _intervals(summary: Summary, order: Sequence[int]) -> list[str]:
    """Return the table of the averages with their intervals, and of the differences from the first run."""
    first = summary.runs[0]
    titles = [f"{first} minus it, {metric}" for metric in ("DSC", "NSD")] if summary.differences else []
    rows = []
    for index in order:
        score = summary.overall.scores[index]
        cells = [score.run, _bounds(score.dsc), _bounds(score.nsd)]
        if index:
            difference = summary.differences[index - 1]
            cells += [_bounds(difference.dsc, "+"), _bounds(difference.nsd, "+")]
        rows.append(cells + [""] * (3 + len(titles) - len(cells)))
    return table(["Run", "DSC", "NSD", *titles], rows)


def notes(summary: Summary, results: Sequence[CaseResult]) -> list[str]:
    """Return one line each on what the numbers leave out or hide."""
    lines = []
    for index, run in enumerate(summary.runs):
        statuses = [result.scores[index].status for result in results if result.scores]
        for status in (Status.MISSING, Status.BAD):
            if count := statuses.count(status):
                lines.append(f"{run}: {count} of {len(statuses)} predictions {status.value}, counted as 0")
    if left_out := sum(not result.scores for result in results):
        lines.append(f"{left_out} of {len(results)} cases could not be scored and are left out for all")
    return lines + _against_trivial(summary)


def table_csv(summary: Summary) -> str:
    """Return one line for each modality and run, then for the average; intervals as columns."""
    bounds = [f"{metric}{end}" for metric in ("dsc", "nsd") for end in ("", "_low", "_high")]
    return _csv(
        ["modality", "cases", "run", *bounds],
        (
            [row.modality, row.cases, score.run, *_numbers(score.dsc), *_numbers(score.nsd)]
            for row in (*summary.rows, summary.overall)
            for score in row.scores
        ),
    )


def cases_csv(results: Sequence[CaseResult]) -> str:
    """Return one line for each case and run."""
    return _csv(
        ["case", "modality", "run", "dsc", "nsd", "status", "problem"],
        (
            [s.case, s.modality, s.run, f"{s.dsc:.6f}", f"{s.nsd:.6f}", s.status.value, s.problem]
            for result in results
            for s in result.scores
        ),
    )


def classes_csv(results: Sequence[CaseResult]) -> str:
    """Return one line for each case, run and class of the cases that were scored."""
    return _csv(
        ["case", "run", "label", "dsc", "nsd"],
        (
            [score.case, score.run, one.label, f"{one.dsc:.6f}", f"{one.nsd:.6f}"]
            for result in results
            for score in result.scores
            for one in score.classes
        ),
    )


def report_json(
    summary: Summary,
    results: Sequence[CaseResult],
    settings: Settings,
    *,
    folders: Mapping[str, object],
    versions: Mapping[str, str],
) -> str:
    """Return everything but the single cases: folders, settings, versions, table, intervals, problems."""
    problems = [
        {"case": result.case, "run": None, "problem": result.problem} for result in results if result.problem
    ] + [
        {"case": score.case, "run": score.run, "problem": score.problem}
        for result in results
        for score in result.scores
        if score.problem
    ]
    report: dict[str, Any] = {
        "versions": versions,
        "folders": folders,
        "settings": asdict(settings),
        **asdict(summary),
        "notes": notes(summary, results),
        "problems": problems,
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _against_trivial(summary: Summary) -> list[str]:
    """Return how the first run compares with the trivial predictor of the highest average DSC."""
    trivial = [index for index, run in enumerate(summary.runs) if run in set(Trivial) and index]
    if not trivial:
        return []
    best = max(trivial, key=lambda index: summary.overall.scores[index].dsc.value)
    ours = summary.runs[0]
    difference = summary.differences[best - 1].dsc
    beaten_by = [
        row.modality
        for row in summary.rows
        if row.scores[0].dsc.value <= max(row.scores[index].dsc.value for index in trivial)
    ]
    return [
        f"best trivial predictor: {summary.runs[best]}, DSC {summary.overall.scores[best].dsc.value:.3f}; "
        f"{ours} is {_bounds(difference, '+')} from it",
        f"modalities where {ours} does not beat every trivial predictor: {', '.join(beaten_by) or 'none'}",
    ]


def _cells(row: Row, order: Sequence[int]) -> list[str]:
    scores = [row.scores[index] for index in order]
    values = [f"{value:.3f}" for score in scores for value in (score.dsc.value, score.nsd.value)]
    return [row.modality, str(row.cases), *values]


def _bounds(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _numbers(interval: Interval) -> list[str]:
    return [f"{value:.6f}" for value in (interval.value, interval.low, interval.high)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()

"""Write Table 4 as Markdown and CSV."""

from __future__ import annotations

import csv
import io

from litemed.benchmarks.table4.contenders import BASELINE, PROPOSED
from litemed.benchmarks.table4.stages import STAGES
from litemed.benchmarks.table4.store import Clock
from litemed.benchmarks.table4.summary import Cell, Table

STAND_IN = "†"

CLOCKS = {
    "process": "Process: each case in a fresh process, from start to exit",
    "warm": "Warm: model loaded, from the case's file to the label map's",
}


def markdown(table: Table, notes: list[str]) -> str:
    """Return `notes`, a line each, and the tables: one for each clock, one of work, one of agreement."""
    parts = ["# Table 4: seconds for each case", "", *(f"- {note}" for note in notes)]
    if any(one.stand_in for one in table.rows):
        parts.append(
            f"- {STAND_IN} A drawn stand-in of the same size and number of objects; the challenge's own "
            f"case was not at hand. In volumes, each object spans {table.coverage:.0%} of the slices."
        )
    parts += ["- Seconds are medians (lowest to highest of all repeats)."]
    for clock in table.clocks:
        parts += ["", f"## {CLOCKS[clock]}", "", *_seconds(table, clock)]
    parts += ["", "## Peak memory and work", "", *_work(table)]
    parts += ["", f"## Agreement of label maps with {PROPOSED}", "", *_agreement(table)]
    return "\n".join(parts) + "\n"


def _seconds(table: Table, clock: Clock) -> list[str]:
    titles = [one for one in table.titles if any((r.row.name, one, clock) in table.cells for r in table.rows)]
    head = ["Case", "Size", "Objects", *titles, f"{BASELINE} / {PROPOSED}"]
    head += ["Baseline as published (paper)"] if table.published else []
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for one in table.rows:
        name, ratio = one.row.name, table.ratio(one.row.name, clock)
        lines.append(
            [
                name + (f" {STAND_IN}" if one.stand_in else ""),
                "×".join(map(str, one.row.shape)),
                str(one.row.objects),
                *(_cell(table.cells.get((name, title, clock))) for title in titles),
                "–" if ratio is None else f"{ratio:.1f}",
                *([_reference(table.published.get(name))] if table.published else []),
            ]
        )
    return [_line(line) for line in lines]


def _work(table: Table) -> list[str]:
    head = ["Case", *(f"{t}: {what}" for t in table.titles for what in ("MiB", "slices", "boxes"))]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for one in table.rows:
        line = [one.row.name]
        for title in table.titles:
            cells = [table.cells.get((one.row.name, title, clock)) for clock in table.clocks]
            found = [cell for cell in cells if cell is not None]
            if found:
                numbers = (found[0].slices, found[0].boxes)
                line += [f"{found[0].peak_mib:.0f}", *("–" if n is None else str(n) for n in numbers)]
            else:
                line += ["–"] * 3
        lines.append(line)
    note = (
        f"Peak resident memory by the {table.clocks[0]} clock. Slices encoded; boxes decoded, each slice's "
        "counted."
    )
    return [*map(_line, lines), "", note]


def _agreement(table: Table) -> list[str]:
    lines = [
        ["Case", "Column", "Dice, mean of the objects", "Equal pixels", "Compared"],
        ["---"] * 2 + ["---:"] * 3,
    ]
    for one in table.rows:
        for title in table.titles:
            found = table.agreements.get((one.row.name, title))
            if found is None:
                continue
            if found.dice is None or found.equal is None:
                lines.append([one.row.name, title, "–", "–", found.problem or "–"])
                continue
            lines.append([one.row.name, title, f"{found.dice:.4f}", f"{found.equal:.4%}", "whole case"])
    note = (
        f"{BASELINE} differs from {PROPOSED} by design: in volumes it prompts each slice by the last "
        "one's mask instead of the box given, and where objects overlap the later one wins, not the likelier."
    )
    return [*map(_line, lines), "", note]


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    spread = f" ({_number(cell.low)} to {_number(cell.high)})" if cell.repeats > 1 else ""
    return f"{_number(cell.median)}{spread}"


def _number(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def _reference(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:g}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def table_csv(table: Table) -> str:
    """Return one line for each row, column and clock, with the seconds of the stages."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "case",
            "stand_in",
            "column",
            "clock",
            "median_s",
            "lowest_s",
            "highest_s",
            "repeats",
        ]
        + ["peak_mib", "slices_encoded", "boxes_decoded", "dice_with_proposed"]
        + [f"{stage}_s" for stage in STAGES]
    )
    for one in table.rows:
        for title in table.titles:
            agreement = table.agreements.get((one.row.name, title))
            for clock in table.clocks:
                cell = table.cells.get((one.row.name, title, clock))
                if cell is None:
                    continue
                dice = "" if agreement is None or agreement.dice is None else f"{agreement.dice:.6f}"
                writer.writerow(
                    [one.row.name, int(one.stand_in), title, clock]
                    + [f"{value:.4f}" for value in (cell.median, cell.low, cell.high)]
                    + [cell.repeats, f"{cell.peak_mib:.1f}"]
                    + [cell.slices, cell.boxes, dice]
                    + (
                        [f"{cell.stages[stage]:.4f}" for stage in STAGES]
                        if cell.stages
                        else [""] * len(STAGES)
                    )
                )
    return text.getvalue()

"""Draw Table 4: seconds on a log scale, and where each case's time goes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from litemed.benchmarks.table4.contenders import BASELINE
from litemed.benchmarks.table4.stages import STAGES
from litemed.benchmarks.table4.store import Clock
from litemed.benchmarks.table4.summary import Table
from litemed.benchmarks.table4.tables import CLOCKS, EXTRAPOLATED, STAND_IN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def charts(table: Table) -> dict[str, bytes]:
    """Return the charts of every clock by file name: `seconds-CLOCK` and `stages-CLOCK`, as PNG and SVG."""
    files = {}
    for clock in table.clocks:
        for name, figure in (
            (f"seconds-{clock}", _seconds(table, clock)),
            (f"stages-{clock}", _stages(table, clock)),
        ):
            for suffix in FORMATS:
                stream = io.BytesIO()
                # Without the date the same table gives the same bytes.
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(stream, format=suffix, dpi=150, metadata=metadata)
                files[f"{name}.{suffix}"] = stream.getvalue()
    return files


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(9, 1.6 + height), layout="constrained")


def _seconds(table: Table, clock: Clock) -> Figure:
    """Horizontal bars, one group for each case, with the spread as a whisker; hatched if extrapolated."""
    figure = _figure(0.18 * len(table.rows) * (len(table.titles) + 1))
    axes = figure.subplots()
    height = 0.8 / len(table.titles)
    for number, title in enumerate(table.titles):
        for position, one in enumerate(table.rows):
            cell = table.cells.get((one.row.name, title, clock))
            if cell is None:
                continue
            axes.barh(
                position - 0.4 + (number + 0.5) * height,
                cell.median,
                height,
                color=f"C{number}",
                xerr=[[cell.median - cell.low], [cell.high - cell.median]],
                error_kw={"linewidth": 0.8},
                hatch="///" if cell.measured_boxes is not None else None,
                edgecolor="white" if cell.measured_boxes is not None else None,
            )
        axes.barh(0, 0, color=f"C{number}", label=title)
    axes.set_xscale("log")
    axes.set_xlabel("seconds, logarithmic")
    axes.set_yticks(range(len(table.rows)), [_name(table, i) for i in range(len(table.rows))])
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_axisbelow(True)
    figure.suptitle(f"{CLOCKS[clock]}\n{_legend(table)}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(table.titles))
    return figure


def _stages(table: Table, clock: Clock) -> Figure:
    """Stacked horizontal bars: the share of each stage in the time of each case and column."""
    bars = [
        (position, title, cell)
        for position in range(len(table.rows))
        for title in table.titles
        if (cell := table.cells.get((table.rows[position].row.name, title, clock))) and cell.stages
    ]
    figure = _figure(0.22 * len(bars))
    axes = figure.subplots()
    for place, (_, _, cell) in enumerate(bars):
        stages = cell.stages or {}
        # What no stage accounts for: starting the interpreter, importing, loading the model.
        rest = max(0.0, cell.median - sum(stages.values()))
        left = 0.0
        for number, share in enumerate(
            [*(stages[stage] / cell.median for stage in STAGES), rest / cell.median]
        ):
            axes.barh(place, share, 0.8, left, color="lightgrey" if number == len(STAGES) else f"C{number}")
            left += share
    for number, stage in enumerate(STAGES):
        axes.barh(0, 0, color=f"C{number}", label=stage)
    axes.barh(0, 0, color="lightgrey", label="start and rest")
    axes.set_yticks(range(len(bars)), [f"{_name(table, row)}, {title}" for row, title, _ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlabel("share of the time")
    figure.suptitle(f"{CLOCKS[clock]}\n{_legend(table)}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(STAGES) + 1, fontsize=8)
    return figure


def _name(table: Table, position: int) -> str:
    one = table.rows[position]
    return one.row.name + (f" {STAND_IN}" if one.stand_in else "")


def _legend(table: Table) -> str:
    parts = []
    if any(one.stand_in for one in table.rows):
        parts.append(f"{STAND_IN} drawn stand-in")
    if any(cell.measured_boxes is not None for cell in table.cells.values()):
        parts.append(f"{EXTRAPOLATED} hatched: {BASELINE} extrapolated from a part")
    return "; ".join(parts)

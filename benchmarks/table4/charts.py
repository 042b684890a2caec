"""Draw Table 4: seconds on a log scale."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from litemed.benchmarks.table4.store import Clock
from litemed.benchmarks.table4.summary import Table
from litemed.benchmarks.table4.tables import CLOCKS, STAND_IN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def charts(table: Table) -> dict[str, bytes]:
    """Return the chart of every clock by file name: `seconds-CLOCK`, as PNG and SVG."""
    files = {}
    for clock in table.clocks:
        figure = _seconds(table, clock)
        for suffix in FORMATS:
            stream = io.BytesIO()
            # Without the date the same table gives the same bytes.
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(stream, format=suffix, dpi=150, metadata=metadata)
            files[f"seconds-{clock}.{suffix}"] = stream.getvalue()
    return files


def _seconds(table: Table, clock: Clock) -> Figure:
    """Horizontal bars, one group for each case, with the spread as a whisker."""
    from matplotlib.figure import Figure

    height = 0.18 * len(table.rows) * (len(table.titles) + 1)
    figure = Figure(figsize=(9, 1.6 + height), layout="constrained")
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
            )
        axes.barh(0, 0, color=f"C{number}", label=title)
    axes.set_xscale("log")
    axes.set_xlabel("seconds, logarithmic")
    axes.set_yticks(range(len(table.rows)), [_name(table, i) for i in range(len(table.rows))])
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_axisbelow(True)
    drawn = f"{STAND_IN} drawn stand-in" if any(one.stand_in for one in table.rows) else ""
    figure.suptitle(f"{CLOCKS[clock]}\n{drawn}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(table.titles))
    return figure


def _name(table: Table, position: int) -> str:
    one = table.rows[position]
    return one.row.name + (f" {STAND_IN}" if one.stand_in else "")

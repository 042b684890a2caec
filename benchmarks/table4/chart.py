"""Draw Table 4: seconds on a log scale."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from litemed.benchmarks.table4.tables import Table


def chart(found: Table) -> bytes:
    """Return an SVG: horizontal bars, one group for each case, with the spread as a whisker."""
    figure = Figure(figsize=(9, 1.6 + 0.18 * len(found.rows) * (len(found.titles) + 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(found.titles)
    for number, title in enumerate(found.titles):
        for position, row in enumerate(found.rows):
            if cell := found.spread(row, title):
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
    axes.set_xlabel("seconds of a process from start to exit, logarithmic; † drawn stand-in")
    axes.set_yticks(range(len(found.rows)), [row.name for row in found.rows])
    axes.set_ylim(len(found.rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(found.titles))
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})  # the same table gives the same file
    return stream.getvalue()

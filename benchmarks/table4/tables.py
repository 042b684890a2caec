"""Show Table 4: in Markdown, and as a chart of seconds on a log scale."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from litemed.benchmarks.markdown import spread, table
from litemed.benchmarks.table4.rows import Prepared

BASELINE, ABLATION, PROPOSED, FAST = "Baseline", "Ablation", "Proposed", "Proposed, fast"


@dataclass(frozen=True)
class Measurement:
    """One contender on one case, once: a process of its own from start to exit.

    Attributes:
        row, contender: the case's name and the column's title.
        repeat: from 0.
        seconds: wall clock; None if it failed, see `error`.
        peak_mib: peak resident memory.
        load_average: of the machine in the minute before.
        dice: with the label map of the column Proposed, mean over the labels that either has.
        error: why it failed.
    """

    row: str
    contender: str
    repeat: int
    seconds: float | None = None
    peak_mib: float = 0.0
    load_average: float = 0.0
    dice: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows, the columns' titles, and what was measured for each row's name and title."""

    rows: Sequence[Prepared]
    titles: Sequence[str]
    cells: Mapping[tuple[str, str], Sequence[Measurement]]

    def seconds(self, row: Prepared, title: str) -> list[float]:
        """Return the seconds of a column on a row, of each repeat; none if it failed."""
        return [one.seconds for one in self.cells[row.row.name, title] if one.seconds is not None]

    def markdown(self, notes: Sequence[str]) -> str:
        """Return notes, the table of seconds and the one of memory and agreement."""
        lines = [
            "# Table 4: seconds for each case",
            "",
            *(f"- {note}" for note in notes),
            "",
            *table(
                ["Case", "Size", "Objects", *self.titles, f"{BASELINE} / {PROPOSED}"],
                map(self._seconds, self.rows),
            ),
            "",
            "Median (lowest to highest) over the repeats, of whole processes from start to exit.",
            "",
            "## Peak memory in MiB, and Dice with Proposed",
            "",
            *table(["Case", *self.titles], map(self._others, self.rows)),
            "",
            "Baseline's label maps differ by design: it has its checkpoint's weights, in volumes it prompts "
            "each slice by the last one's mask instead of the box given, and where objects overlap the later "
            "one wins, not the likelier.",
        ]
        return "\n".join(lines) + "\n"

    def chart(self) -> bytes:
        """Return an SVG: horizontal bars, one group for each case, with the spread as a whisker."""
        size = 9, 1.6 + 0.18 * len(self.rows) * (len(self.titles) + 1)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(self.titles)
        for number, title in enumerate(self.titles):
            for position, row in enumerate(self.rows):
                if cell := self.seconds(row, title):
                    middle = statistics.median(cell)
                    axes.barh(
                        position - 0.4 + (number + 0.5) * height,
                        middle,
                        height,
                        color=f"C{number}",
                        xerr=[[middle - min(cell)], [max(cell) - middle]],
                        error_kw={"linewidth": 0.8},
                    )
            axes.barh(0, 0, color=f"C{number}", label=title)
        axes.set_xscale("log")
        axes.set_xlabel("seconds of a process from start to exit, logarithmic; † drawn stand-in")
        axes.set_yticks(range(len(self.rows)), [row.name for row in self.rows])
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(axis="x", which="both", linewidth=0.3)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=len(self.titles))
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})  # the same table gives the same file
        return stream.getvalue()

    def _seconds(self, one: Prepared) -> list[str]:
        values = {title: self.seconds(one, title) for title in self.titles}
        slow, fast = values.get(BASELINE), values[PROPOSED]
        return [
            one.name,
            "×".join(map(str, one.row.shape)),
            str(one.row.objects),
            *(spread(cell, _three_digits) if cell else "–" for cell in values.values()),
            f"{statistics.median(slow) / statistics.median(fast):.1f}" if slow and fast else "–",
        ]

    def _others(self, one: Prepared) -> list[str]:
        line = [one.name]
        for title in self.titles:
            cell = self.cells[one.row.name, title]
            dice = next((f"; {m.dice:.4f}" for m in cell if m.dice is not None), "")
            line.append(f"{max(m.peak_mib for m in cell):.0f}{dice}")
        return line


def _three_digits(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"

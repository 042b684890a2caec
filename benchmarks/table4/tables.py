"""Write Table 4 as Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from litemed.benchmarks.markdown import table
from litemed.benchmarks.table4.contenders import BASELINE, PROPOSED
from litemed.benchmarks.table4.rows import Prepared


@dataclass(frozen=True)
class Measurement:
    """One contender on one case, once.

    Attributes:
        row, contender: the case's name and the column's title.
        repeat: from 0.
        seconds: wall clock, from start to exit of a process of its own; None if it failed, see `error`.
        peak_mib: peak resident memory.
        load_average: of the machine in the minute before.
        dice: with the label map of the column Proposed: mean over the labels that either has.
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
class Spread:
    """Seconds of all repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, measured: Sequence[Measurement]) -> Spread | None:
        """Sum up measurements; None if all failed."""
        seconds = [one.seconds for one in measured if one.seconds is not None]
        return cls(statistics.median(seconds), min(seconds), max(seconds)) if seconds else None

    def __str__(self) -> str:
        """Return median (lowest to highest)."""
        return f"{_number(self.median)} ({_number(self.low)} to {_number(self.high)})"


@dataclass(frozen=True)
class Table:
    """The rows, the columns' titles, and what was measured for each row's name and title."""

    rows: Sequence[Prepared]
    titles: Sequence[str]
    cells: Mapping[tuple[str, str], Sequence[Measurement]]

    def spread(self, row: Prepared, title: str) -> Spread | None:
        """Return the seconds of a column on a row; None if it failed."""
        return Spread.of(self.cells[row.row.name, title])

    def markdown(self, notes: Sequence[str]) -> str:
        """Return `notes`, a line each, and two tables: seconds; memory, work and agreement."""
        head = ["Case", "Size", "Objects", *self.titles, f"{BASELINE} / {PROPOSED}"]
        lines = ["# Table 4: seconds for each case", "", *(f"- {note}" for note in notes), ""]
        lines += ["Seconds of whole processes, from start to exit: median (lowest to highest).", ""]
        lines += table(head, map(self._seconds, self.rows), left=2)
        lines += ["", "## Peak memory in MiB, and mean Dice of the objects with Proposed", ""]
        lines += table(["Case", "Slices", "Boxes", *self.titles], map(self._others, self.rows))
        lines += [
            "",
            "Slices that a box covers; boxes, each slice's counted. Baseline encodes a volume's slice anew "
            "for each of its boxes. Its label maps differ by design: it has its checkpoint's weights, in "
            "volumes it prompts each slice by the last one's mask instead of the box given, and where "
            "objects overlap the later one wins, not the likelier.",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return one line for each measurement."""
        text = io.StringIO()
        names = [field.name for field in dataclasses.fields(Measurement)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(one) for cell in self.cells.values() for one in cell)
        return text.getvalue()

    def _seconds(self, one: Prepared) -> list[str]:
        spreads = {title: self.spread(one, title) for title in self.titles}
        slow, fast = spreads.get(BASELINE), spreads[PROPOSED]
        return [
            one.name,
            "×".join(map(str, one.row.shape)),
            str(one.row.objects),
            *(str(spread or "–") for spread in spreads.values()),
            f"{slow.median / fast.median:.1f}" if slow and fast else "–",
        ]

    def _others(self, one: Prepared) -> list[str]:
        line = [one.name, str(one.slices), str(one.prompts)]
        for title in self.titles:
            cell = self.cells[one.row.name, title]
            dice = next((f"; {m.dice:.4f}" for m in cell if m.dice is not None), "")
            line.append(f"{max(m.peak_mib for m in cell):.0f}{dice}")
        return line


def _number(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"

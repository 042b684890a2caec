"""What contenders took on the rows of a table, in Markdown, JSON and as a chart."""

import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litemed.runtime.files import atomic_write

PUBLISHED, PROPOSED = "Baseline", "Proposed"
"""Titles of the contender that the others are timed against, and of the one that masks are compared with."""


@dataclass(frozen=True)
class Contender:
    """A column of Table 4, or of the table of speed.

    what: runs, with which weights, in words. command: segments a case, given CASE -o FOLDER after it.
    parts: the command that times the parts of its work, see `litemed.benchmarks.worker`.
    """

    title: str
    what: str
    command: tuple[str, ...]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One contender on one row, once.

    seconds: wall clock; None if it failed, see `error`. peak_mib: peak resident memory, of a process from
    start to exit. dice: with another contender's label map, mean over the labels that either has.
    """

    row: str
    contender: str
    repeat: int
    seconds: float | None = None
    peak_mib: float | None = None
    dice: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Table:
    """A row for each key of `rows`, by what it is called in the table, and a column for each contender."""

    title: str
    machine: str
    contenders: Sequence[Contender]
    rows: Mapping[str, str]
    measured: Sequence[Measurement]

    @property
    def setup(self) -> dict[str, object]:
        """What must be equal for measurements to belong into one table."""
        return {"machine": self.machine, "contenders": {one.title: one.what for one in self.contenders}}

    @property
    def complete(self) -> bool:
        """Whether nothing failed."""
        return not any(one.error for one in self.measured)

    def write_json(self, path: Path, **more: object) -> None:
        """Write all that was measured, and what with."""
        content = {**self.setup, **more, "measurements": [asdict(one) for one in self.measured]}
        with atomic_write(path) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def markdown(self, *notes: str) -> str:
        """Return the tables of seconds and of memory and agreement, with what they were measured on."""
        failed = {f"{one.row}, {one.contender} failed: {one.error}." for one in self.measured if one.error}
        titles = [one.title for one in self.contenders]
        rows = [[name, *(self._cell(row, title) for title in titles)] for row, name in self.rows.items()]
        runs = [f"{one.title}: {one.what}." for one in self.contenders]
        lines = [
            f"# {self.title}",
            "",
            *(f"- {line}" for line in (f"Machine: {self.machine}.", *runs, *notes, *sorted(failed))),
            "",
            "Seconds, median (lowest to highest); how many times as fast as the published procedure; peak "
            f"memory of the process; mean Dice of the objects with {PROPOSED}.",
            "",
            *table(["", *titles], rows),
        ]
        return "\n".join(lines) + "\n"

    def chart(self) -> bytes:
        """Return an SVG: horizontal bars on a log scale, one group for each row, the spread as a whisker."""
        from matplotlib.figure import Figure

        height = 0.8 / len(self.contenders)
        figure = Figure(figsize=(9, 1.6 + 0.144 * len(self.rows) * (1 / height + 1)), layout="constrained")
        axes = figure.subplots()
        for number, title in enumerate(one.title for one in self.contenders):
            seconds = [self.seconds(row, title) or [math.nan] for row in self.rows]
            middle = [statistics.median(one) for one in seconds]
            low = [median - min(one) for median, one in zip(middle, seconds, strict=True)]
            high = [max(one) - median for median, one in zip(middle, seconds, strict=True)]
            places = [row - 0.4 + (number + 0.5) * height for row in range(len(self.rows))]
            whiskers: dict[str, Any] = {"xerr": [low, high], "error_kw": {"linewidth": 0.8}}
            axes.barh(places, middle, height, color=f"C{number}", label=title, **whiskers)
        axes.set_xscale("log")
        axes.set_xlabel("seconds of a process from start to exit, logarithmic; † drawn stand-in")
        axes.set_yticks(range(len(self.rows)), list(self.rows.values()))
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(axis="x", which="both", linewidth=0.3)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=len(self.contenders))
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})  # the same table gives the same file
        return stream.getvalue()

    def seconds(self, row: str, title: str) -> list[float]:
        """Return the seconds of a contender on a row, of each repeat; none if it failed."""
        return [one.seconds for one in self._of(row, title) if one.seconds is not None]

    def _of(self, row: str, title: str) -> list[Measurement]:
        return [one for one in self.measured if (one.row, one.contender) == (row, title)]

    def _cell(self, row: str, title: str) -> str:
        if not (seconds := self.seconds(row, title)):
            return "–"
        text = _digits(middle := statistics.median(seconds))
        if len(seconds) > 1:
            text += f" ({_digits(min(seconds))} to {_digits(max(seconds))})"
        if title != PUBLISHED and (slow := self.seconds(row, PUBLISHED)):
            text += f", **{statistics.median(slow) / middle:.1f}x**"
        measured = self._of(row, title)
        if peaks := [one.peak_mib for one in measured if one.peak_mib is not None]:
            text += f", {max(peaks):.0f} MiB"
        if dice := [one.dice for one in measured if one.dice is not None]:
            text += f", Dice {dice[0]:.4f}"
        return text


def _digits(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first column is set to the left, the others to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    # A bar in a cell would start a new one.
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *rows))
    return [f"| {' | '.join(cells)} |" for cells in lines]

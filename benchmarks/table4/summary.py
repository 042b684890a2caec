"""What many measurements come to: a median and a spread for each cell of the table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from litemed.benchmarks.table4.contenders import BASELINE, PROPOSED, Contender
from litemed.benchmarks.table4.rows import Prepared
from litemed.benchmarks.table4.store import Agreement, Clock, Measurement


@dataclass(frozen=True)
class Cell:
    """A contender on a row by one clock.

    Attributes:
        median, low, high: of the seconds of all repeats.
        repeats: how many there are.
        peak_mib: the highest of them.
        stages: medians by stage, or None.
        slices, boxes: encoded and decoded, or None.
    """

    median: float
    low: float
    high: float
    repeats: int
    peak_mib: float
    stages: dict[str, float] | None
    slices: int | None
    boxes: int | None


@dataclass(frozen=True)
class Table:
    """Everything that the table and the charts show.

    Attributes:
        rows: its rows.
        titles: its columns, contenders in order.
        clocks: the clocks measured.
        cells: by row, title and clock; what failed or was not measured is absent.
        agreements: by row and title.
        published: the paper's seconds of the baseline by row, for reference; empty if not given.
        coverage: share of the slices that each object of a stand-in spans.
    """

    rows: tuple[Prepared, ...]
    titles: tuple[str, ...]
    clocks: tuple[Clock, ...]
    cells: dict[tuple[str, str, Clock], Cell]
    agreements: dict[tuple[str, str], Agreement]
    published: dict[str, float]
    coverage: float

    def ratio(self, row: str, clock: Clock) -> float | None:
        """Return how many times as long the Baseline takes as the column Proposed."""
        slow, fast = self.cells.get((row, BASELINE, clock)), self.cells.get((row, PROPOSED, clock))
        return slow.median / fast.median if slow and fast else None


def summarise(
    rows: Sequence[Prepared],
    contenders: Sequence[Contender],
    clocks: Sequence[Clock],
    measurements: Sequence[Measurement],
    agreements: Sequence[Agreement],
    published: dict[str, float],
    coverage: float,
) -> Table:
    """Sum up measurements, those of the plan and no others."""
    groups = by_cell(measurements)
    return Table(
        tuple(rows),
        tuple(contender.title for contender in contenders),
        tuple(clocks),
        {name: _cell(group) for name, group in groups.items()},
        {(one.row, one.contender): one for one in agreements},
        published,
        coverage,
    )


def by_cell(measurements: Iterable[Measurement]) -> dict[tuple[str, str, Clock], list[Measurement]]:
    """Group measurements by row, title and clock."""
    groups: dict[tuple[str, str, Clock], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.row, one.contender, one.clock), []).append(one)
    return groups


def _cell(group: list[Measurement]) -> Cell:
    seconds = [one.seconds for one in group]
    stages = [one.stages for one in group if one.stages is not None]
    return Cell(
        median=statistics.median(seconds),
        low=min(seconds),
        high=max(seconds),
        repeats=len(group),
        peak_mib=max(one.peak_mib for one in group),
        stages={name: statistics.median(one[name] for one in stages) for name in stages[0]}
        if stages
        else None,
        slices=group[0].slices,
        boxes=group[0].boxes,
    )

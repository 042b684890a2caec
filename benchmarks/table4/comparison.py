"""Compare two runs: do their medians differ by less than the spread that the first one states?"""

from __future__ import annotations

import statistics
from pathlib import Path

from litemed.benchmarks.table4.spread import difference
from litemed.benchmarks.table4.store import Measurement, read_run
from litemed.benchmarks.table4.summary import by_cell, limits
from litemed.runtime.errors import UsageError


def compare_runs(first: Path, second: Path) -> tuple[str, bool]:
    """Compare the cells that two runs share: the same case by its hash, column by title, and clock.

    Args:
        first: a run's table4.json; states the spread.
        second: another's.

    Returns:
        A table in Markdown, and whether no median differs by more than the spread.

    Raises:
        OutputError: a file is no run's.
        UsageError: the runs share nothing, or nothing was repeated in the first.
    """
    one, other = read_run(first), read_run(second)
    planned = [m for m in one.measurements if m.key in one.plan]
    stated = limits(planned)
    cells, others = by_cell(planned), by_cell(m for m in other.measurements if m.key in other.plan)
    shared = [
        name for name in cells if name in others and one.cases.get(name[0], 1) == other.cases.get(name[0], 2)
    ]
    if not shared:
        raise UsageError(f"{second}: has no case, column and clock in common with {first}")
    machines = dict.fromkeys((one.machine.line(), other.machine.line()))
    lines = [
        *(f"Machine: {line}." for line in machines),
        "",
        "| Clock | Medians compared | Spread stated | Largest difference | Median difference | Beyond |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    beyond = []
    for clock in dict.fromkeys(name[2] for name in shared):
        limit = stated[clock]
        if limit is None:
            raise UsageError(f"{first}: nothing was repeated by the clock {clock}; no spread is stated")
        found = {
            name: difference(_median(cells[name]), _median(others[name]))
            for name in shared
            if name[2] == clock
        }
        more = [name for name, value in found.items() if value > limit]
        beyond += [(*name, _median(cells[name]), _median(others[name]), found[name]) for name in more]
        lines.append(
            f"| {clock} | {len(found)} | {limit:.1%} | {max(found.values()):.1%} | "
            f"{statistics.median(found.values()):.1%} | {len(more)} |"
        )
    for row, title, clock, before, after, value in beyond:
        lines.append(f"\n- {row}, {title}, {clock}: {before:.2f} s and {after:.2f} s, {value:.1%}")
    return "\n".join(lines) + "\n", not beyond


def _median(group: list[Measurement]) -> float:
    return statistics.median(measurement.seconds for measurement in group)

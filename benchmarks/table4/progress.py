"""Tell on stderr how a run goes on, and how long it will take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import click

from litemed.benchmarks.table4.processes import ContenderError
from litemed.benchmarks.table4.runner import Observer, Task
from litemed.benchmarks.table4.store import Measurement


@dataclass
class Progress(Observer):
    """Prints a line for each measurement; `total` is how many there are, `earlier` the ones made before."""

    total: int
    earlier: Sequence[Measurement] = ()
    _seconds: dict[tuple[str, str, str], float] = field(default_factory=dict)
    _rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Learn from what was measured before."""
        for one in self.earlier:
            self._seconds[one.row, one.contender, one.clock] = one.seconds

    def measured(self, task: Task, measurement: Measurement, remaining: Sequence[Task]) -> None:
        """Print what a measurement was and the time left."""
        title, row = task.contender.title, task.prepared.row.name
        self._seconds[row, title, task.clock] = measurement.seconds
        self._rates.setdefault((title, task.clock), []).append(measurement.seconds / _work(task))
        click.echo(
            f"[{self.total - len(remaining)}/{self.total}] {row} {title} {task.clock}: "
            f"{measurement.seconds:.2f} s, {measurement.peak_mib:.0f} MiB; {self.left(remaining)}",
            err=True,
        )

    def failed(self, task: Task, error: ContenderError) -> None:
        """Print what failed."""
        text = "".join(char for char in str(error) if char.isprintable())
        click.echo(f"error: {task.prepared.row.name} {task.contender.title} {task.clock}: {text}", err=True)

    def left(self, remaining: Sequence[Task]) -> str:
        """Return how long the remaining measurements are likely to take, in words."""
        seconds = 0.0
        for task in remaining:
            title = task.contender.title
            known = self._seconds.get((task.prepared.row.name, title, task.clock))
            rates = self._rates.get((title, task.clock)) or [r for v in self._rates.values() for r in v]
            guess = statistics.median(rates) * _work(task) if rates else 0.0
            seconds += guess if known is None else known
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        return (
            f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
        )


def _work(task: Task) -> float:
    """Return roughly the work of a task, in encoder runs; a box is a tenth of one, a start another."""
    boxes = task.prepared.prompts
    encodes_each = task.contender.kind == "baseline" and task.prepared.row.is_volume
    return 1 + 0.1 * boxes + (boxes if encodes_each else task.prepared.slices)

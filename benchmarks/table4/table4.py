"""Carry out a run of Table 4: prepare the rows, measure, write the table and the charts."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import click

from litemed.benchmarks.table4.charts import charts
from litemed.benchmarks.table4.contenders import Contender
from litemed.benchmarks.table4.machine import Machine, load_average
from litemed.benchmarks.table4.progress import Progress
from litemed.benchmarks.table4.rows import Row, prepare
from litemed.benchmarks.table4.runner import agreement_keys, plan, run
from litemed.benchmarks.table4.store import Clock, Store
from litemed.benchmarks.table4.summary import summarise
from litemed.benchmarks.table4.tables import markdown, table_csv
from litemed.runtime.files import FolderLock, atomic_write, make_folder

NAME = "table4"


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        rows: of the table.
        contenders: its columns.
        clocks: process, warm or both.
        repeats: of each measurement.
        coverage: share of a stand-in volume's slices that each object spans.
        cases: folder of real files, if there is one.
        published: a paper's seconds by row, for reference.
        notes: lines to print above the tables.
    """

    rows: tuple[Row, ...]
    contenders: tuple[Contender, ...]
    clocks: tuple[Clock, ...]
    repeats: int
    coverage: float
    cases: Path | None
    published: dict[str, float]
    notes: tuple[str, ...]


def run_table4(settings: Settings, output: Path) -> tuple[str, bool]:
    """Measure what is not measured yet, and write all files.

    Returns:
        The table in Markdown, and whether everything was measured.

    Raises:
        LitemedError: a case, or what lies in the output folder, cannot be used.
    """
    make_folder(output)
    with FolderLock(output):
        return _run(settings, output)


def _run(settings: Settings, output: Path) -> tuple[str, bool]:
    machine = Machine.current()
    rows = []
    for row in settings.rows:
        click.echo(f"preparing {row.name}", err=True)
        rows.append(prepare(row, settings.cases, output / "stand-ins", settings.coverage))
    tasks = plan(rows, settings.contenders, settings.clocks, settings.repeats)
    description = {
        "settings": {
            "clocks": settings.clocks,
            "repeats": settings.repeats,
            "coverage": settings.coverage,
            "notes": settings.notes,
            "published": settings.published,
        },
        "contenders": [_described(contender) for contender in settings.contenders],
        "rows": [
            dataclasses.asdict(one.row)
            | {
                "stand_in": one.stand_in,
                "sha256": one.sha256,
                "covered_slices": one.slices,
                "boxes_each_slice_counted": one.prompts,
            }
            for one in rows
        ],
    }
    path, labels = output / f"{NAME}.json", output / "labels"
    if not path.exists():  # moved away: what made these label maps may not be what runs now
        shutil.rmtree(labels, ignore_errors=True)
    store = Store(path, machine, description)
    done = [store.measurements[task.key] for task in tasks if task.key in store.measurements]
    failed = run(tasks, store, labels, Progress(len(tasks), done))
    store.write()

    measured = [store.measurements[task.key] for task in tasks if task.key in store.measurements]
    agreed = [store.agreements[key] for key in agreement_keys(tasks) if key in store.agreements]
    table = summarise(
        rows,
        settings.contenders,
        settings.clocks,
        measured,
        agreed,
        settings.published,
        settings.coverage,
    )
    loads = [one.load_average for one in measured] or [load_average()]
    text = markdown(table, [*settings.notes, *_notes(settings, machine, loads)])
    files = {f"{NAME}.md": text.encode(), f"{NAME}.csv": table_csv(table).encode(), **charts(table)}
    for name, content in files.items():
        with atomic_write(output / name, durable=False) as file:
            file.write(content)
    return text, not failed


def _described(contender: Contender) -> dict[str, object]:
    """Return a contender's fields; of a file its name alone, since where it lay is nobody's business."""
    name = contender.model if contender.kind == "command" else Path(contender.model).name
    return dataclasses.asdict(contender) | {"model": name}


def _notes(settings: Settings, machine: Machine, loads: list[float]) -> list[str]:
    notes = [
        f"Machine: {machine.line()}.",
        f"Load average before each measurement: {min(loads):.2f} to {max(loads):.2f} (an idle machine's is "
        f"below 1; what ran before a measurement counts).",
    ]
    for contender in settings.contenders:
        threads = "all threads" if contender.threads is None else f"{contender.threads} threads"
        digest = contender.digest[:12]
        ran_by = f"bundle {digest}, engine {contender.engine}, precision {contender.precision}"
        what = {
            "baseline": f"the published LiteMedSAM procedure in PyTorch, checkpoint {digest}, {threads}",
            "ablation": f"{ran_by}, one box at a time, {threads}",
            "bundle": f"litemed-run, {ran_by}, {threads}",
            "command": f"`{contender.model}`",
        }[contender.kind]
        notes.append(f"{contender.title}: {what}.")
    return notes

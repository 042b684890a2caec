"""Carry out a run of Table 4: prepare the rows, measure, write the table and the chart."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from litemed.benchmarks.measure import (
    Contender,
    describe_machine,
    load_average,
    of_bundle,
    published,
    run_process,
    turns,
)
from litemed.benchmarks.table4.rows import COVERAGE, Prepared, Row, prepare
from litemed.benchmarks.table4.tables import ABLATION, BASELINE, FAST, PROPOSED, Measurement, Table
from litemed.export.agreement import mean_dice
from litemed.runtime.bundle import Bundle
from litemed.runtime.errors import LitemedError, OutputError, UsageError
from litemed.runtime.files import atomic_write, make_folder, sha256_of_file
from litemed.runtime.npz import NpzReader


def columns(
    bundle: Bundle, checkpoint: Path | None, engine: str, threads: int | None
) -> tuple[Contender, ...]:
    """Return the columns of Table 4; without a checkpoint there is no Baseline."""
    return (
        *([] if checkpoint is None else [published(BASELINE, checkpoint, threads)]),
        of_bundle(ABLATION, bundle, engine, "exact", threads, one_box=True),
        of_bundle(PROPOSED, bundle, engine, "exact", threads),
        of_bundle(FAST, bundle, engine, "fast", threads),
    )


def run_table4(
    rows: Sequence[Row],
    contenders: Sequence[Contender],
    output: Path,
    *,
    repeats: int,
    cases: Path | None = None,
) -> tuple[str, bool]:
    """Measure what is not measured yet, and write table4.json, table4.md and seconds.svg into a folder.

    Each repeat is a pass through all rows, so that the spread of a cell shows the drifts of the machine as
    well. Within a row contender by contender, beginning with another one in each pass. table4.json is written
    after each row of each pass; the next run goes on from there, and tries again what failed.

    `rows` and `contenders` are those of the table, `cases` the folder of real files, if there is one.

    Returns:
        The table in Markdown, and whether everything was measured.

    Raises:
        InputError, UsageError: a case cannot be used; the folder holds what was measured otherwise.
        OutputError: the folder cannot be written to, or its table4.json is none.
    """
    make_folder(output)
    prepared = [prepare(row, cases, output / "stand-ins") for row in rows]
    setup = {
        "machine": describe_machine(),
        "contenders": {one.title: one.what for one in contenders},
        "cases": {one.name: sha256_of_file(one.path) for one in prepared},
    }
    path = output / "table4.json"
    measured = _read(path, setup)
    done = {(one.repeat, one.row) for one in measured}
    passes = [(repeat, one) for repeat in range(repeats) for one in prepared]
    for repeat, one in tqdm(passes, unit="row", disable=None):
        if (repeat, one.row.name) not in done:
            measured += _measure_row(repeat, one, turns(contenders, repeat))
            content = setup | {"measurements": [dataclasses.asdict(entry) for entry in measured]}
            _write(path, json.dumps(content, indent=1).encode() + b"\n")

    chosen = [one for one in measured if one.repeat < repeats]
    loads = [one.load_average for one in chosen]
    notes = [
        f"Machine: {setup['machine']}.",
        f"Load average before each measurement: {min(loads):.2f} to {max(loads):.2f} (an idle machine's is "
        "below 1; what ran before a measurement counts).",
        *(f"{one.title}: {one.what}." for one in contenders),
        f"† A drawn stand-in of the same size and number of objects; the challenge's own case was not at "
        f"hand. In volumes, each object spans {COVERAGE:.0%} of the slices.",
        *sorted({f"{one.row}, {one.contender} failed: {one.error}." for one in chosen if one.error}),
    ]
    cells = {
        (row.name, title): [one for one in chosen if (one.row, one.contender) == (row.name, title)]
        for row in rows
        for title in setup["contenders"]
    }
    table = Table(prepared, list(setup["contenders"]), cells)
    text = table.markdown(notes)
    _write(output / "table4.md", text.encode())
    _write(output / "seconds.svg", table.chart())
    return text, not any(one.error for one in chosen)


def _measure_row(repeat: int, prepared: Prepared, contenders: Sequence[Contender]) -> list[Measurement]:
    """Run every contender once on a case, and compare what they wrote."""
    row = prepared.row.name
    found: dict[str, Measurement] = {}
    labels: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as scratch:
        for number, contender in enumerate(contenders):
            title, output = contender.title, Path(scratch, str(number))
            load = load_average()
            try:
                run = run_process([*contender.command, str(prepared.path), "-o", str(output)])
                with NpzReader(output / prepared.path.name) as archive:
                    labels[title] = archive.read("segs")
            except LitemedError as error:
                found[title] = Measurement(row, title, repeat, load_average=load, error=str(error))
                tqdm.write(f"error: {row}, {title}: {error}", file=sys.stderr)
            else:
                found[title] = Measurement(row, title, repeat, run.seconds, run.peak_mib, load)
                tqdm.write(f"{row}, {title}: {run.seconds:.2f} s, {run.peak_mib:.0f} MiB", file=sys.stderr)
    if PROPOSED in labels:
        for title in labels.keys() - {PROPOSED}:
            dice = mean_dice(labels[title], labels[PROPOSED], prepared.row.objects)
            found[title] = dataclasses.replace(found[title], dice=dice)
    return list(found.values())


def _read(path: Path, setup: dict[str, Any]) -> list[Measurement]:
    """Return what was measured before; not the passes of a row in which something failed."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        before = [Measurement(**entry) for entry in content.pop("measurements")]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(f"{path}: no measurements of this litemed-bench; move it away") from error
    for name, value in setup.items():
        if content.get(name) != value:
            raise UsageError(f"{path}: was measured with another {name}; choose another output folder")
    failed = {(one.repeat, one.row) for one in before if one.error}
    return [one for one in before if (one.repeat, one.row) not in failed]


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)

"""Carry out a run of Table 4: prepare the rows, measure, write the table and the chart."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from litemed.benchmarks import measure
from litemed.benchmarks.measure import Contender
from litemed.benchmarks.report import PROPOSED, PUBLISHED, Measurement, Table
from litemed.benchmarks.table4.rows import COVERAGE, Row, prepare
from litemed.export.agreement import mean_dice
from litemed.runtime.bundle import Bundle
from litemed.runtime.errors import LitemedError, OutputError, UsageError
from litemed.runtime.files import atomic_write, make_folder, sha256_of_file
from litemed.runtime.npz import NpzReader

ABLATION, FAST = "Ablation", "Proposed, fast"


def columns(bundle: Bundle, checkpoint: Path | None, threads: int | None) -> list[Contender]:
    """Return the columns of Table 4; without a checkpoint there is no Baseline."""
    return [
        *([] if checkpoint is None else [measure.published(PUBLISHED, checkpoint, threads)]),
        measure.of_bundle(ABLATION, bundle, "auto", "exact", threads, one_box=True),
        measure.of_bundle(PROPOSED, bundle, "auto", "exact", threads),
        measure.of_bundle(FAST, bundle, "auto", "fast", threads),
    ]


def run_table4(
    rows: Sequence[Row],
    contenders: Sequence[Contender],
    output: Path,
    repeats: int,
    cases: Path | None = None,
) -> tuple[str, bool]:
    """Measure what is not measured yet, and write table4.json, table4.md and seconds.svg into a folder.

    Each repeat is a pass through all rows, so that the spread of a cell shows the drifts of the machine as
    well. Within a row contender by contender, beginning with another one in each pass. table4.json is written
    after each row of each pass; the next run goes on from there, and tries again what failed.

    `cases` is the folder of real files, if there is one. Returns the table in Markdown, and whether all was
    measured. Raises UsageError where a case cannot be used or the folder holds what was measured otherwise.
    """
    make_folder(output)
    titles, hashes, paths = {}, {}, {}
    for row in rows:
        path, stand_in = prepare(row, cases, output / "stand-ins")
        shape = "×".join(map(str, row.shape))
        titles[row.name] = f"{row.name}{' †' if stand_in else ''}, {shape}, boxes: {row.objects}"
        hashes[row.name], paths[row.name] = sha256_of_file(path), path
    measured: list[Measurement] = []
    found = Table("Table 4: seconds for each case", measure.describe_machine(), contenders, titles, measured)
    kept = output / "table4.json"
    measured += _read(kept, {**found.setup, "cases": hashes})
    done = {(one.repeat, one.row) for one in measured}
    passes = [(repeat, one) for repeat in range(repeats) for one in rows]
    for repeat, one in tqdm(passes, unit="row", disable=None):
        if (repeat, one.name) not in done:
            measured += _measure_row(repeat, paths[one.name], measure.turns(contenders, repeat), one.objects)
            found.write_json(kept, cases=hashes)
    shown = replace(found, measured=[one for one in measured if one.repeat < repeats])
    text = shown.markdown(
        "† A drawn stand-in of the same size and number of objects; the challenge's own was not at hand. In "
        f"volumes, each object spans {COVERAGE:.0%} of the slices.",
        "Seconds of whole processes, from start to exit. Baseline's label maps differ by design: it has its "
        "checkpoint's weights, in volumes it prompts each slice by the last one's mask instead of the box "
        "given, and where objects overlap the later one wins, not the likelier.",
    )
    for name, content in (("table4.md", text.encode()), ("seconds.svg", shown.chart())):
        with atomic_write(output / name) as file:
            file.write(content)
    return text, shown.complete


def _measure_row(repeat: int, case: Path, contenders: Sequence[Contender], objects: int) -> list[Measurement]:
    """Run every contender once on a case, and compare what they wrote."""
    row = case.stem
    found: dict[str, Measurement] = {}
    labels: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as scratch:
        for number, contender in enumerate(contenders):
            title, output = contender.title, Path(scratch, str(number))
            try:
                run = measure.run_process([*contender.command, str(case), "-o", str(output)])
                with NpzReader(output / case.name) as archive:
                    labels[title] = archive.read("segs")
            except LitemedError as error:
                found[title] = Measurement(row, title, repeat, error=str(error))
                tqdm.write(f"error: {row}, {title}: {error}", file=sys.stderr)
            else:
                found[title] = Measurement(row, title, repeat, run.seconds, run.peak_mib)
                tqdm.write(f"{row}, {title}: {run.seconds:.2f} s, {run.peak_mib:.0f} MiB", file=sys.stderr)
    if PROPOSED in labels:
        for title in labels.keys() - {PROPOSED}:
            dice = mean_dice(labels[title], labels[PROPOSED], objects)
            found[title] = replace(found[title], dice=dice)
    return list(found.values())


def _read(path: Path, setup: dict[str, object]) -> list[Measurement]:
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

"""The 14 cases of the paper's Table 4: find or draw them, measure, write the table and the chart."""

import json
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure  # noqa: F401  to lack it here, not once all is measured
import numpy as np
from tqdm import tqdm

from litemed.benchmarks import measure
from litemed.benchmarks.phantoms import Phantom, draw_image, draw_volume
from litemed.benchmarks.report import PROPOSED, PUBLISHED, Contender, Measurement, Table
from litemed.export.agreement import mean_dice
from litemed.runtime.bundle import Bundle
from litemed.runtime.errors import LitemedError, OutputError, UsageError
from litemed.runtime.files import atomic_write, make_folder, sha256_of_file
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.npz import NpzReader

ABLATION, FAST, DEFAULT = "Ablation", "Proposed, fast", "litemed-run"
# Proposed is as the paper has it, whatever litemed-run does by default.
PAPER = ("--merge", "argmax", "--volume", "box", "--zoom", "off", "--boxes", "tight")
# Share of a stand-in volume's slices that each object spans: an assumption.
COVERAGE = 0.1


class Row(NamedTuple):
    """A case as the paper lists it: its ID, (H, W, 3) or (D, H, W) in 3D, and how many boxes."""

    name: str
    shape: tuple[int, int, int]
    objects: int


ROWS = (
    Row("3DBox_CT_0566", (287, 512, 512), 6),
    Row("3DBox_CT_0888", (237, 512, 512), 6),
    Row("3DBox_CT_0860", (246, 512, 512), 1),
    Row("3DBox_MR_0621", (115, 400, 400), 6),
    Row("3DBox_MR_0121", (64, 290, 320), 6),
    Row("3DBox_MR_0179", (84, 512, 512), 1),
    Row("3DBox_PET_0001", (264, 200, 200), 1),
    Row("2DBox_US_0525", (256, 256, 3), 1),
    Row("2DBox_X-Ray_0053", (320, 640, 3), 34),
    Row("2DBox_Dermoscopy_0003", (3024, 4032, 3), 1),
    Row("2DBox_Endoscopy_0086", (480, 560, 3), 1),
    Row("2DBox_Fundus_0003", (2048, 2048, 3), 1),
    Row("2DBox_Microscope_0008", (1536, 2040, 3), 19),
    Row("2DBox_Microscope_0016", (1920, 2560, 3), 241),
)


def find_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """Return rows by name, in the paper's order, or all of them; raises UsageError for one there is not."""
    if unknown := set(names) - {row.name for row in ROWS}:
        raise UsageError(
            f"{min(unknown)}: no row of Table 4; choose of {', '.join(row.name for row in ROWS)}"
        )
    return tuple(row for row in ROWS if not names or row.name in names)


def draw(row: Row) -> Phantom:
    """Draw the stand-in of a row; it follows from the row's name alone."""
    seed = zlib.crc32(row.name.encode())
    if row.name.startswith("3D"):
        return draw_volume(*row.shape, row.objects, seed, COVERAGE)
    return draw_image(row.shape[0], row.shape[1], row.objects, seed)


def find_case(row: Row, real: Path | None, folder: Path) -> tuple[Path, bool]:
    """Find a row's file in `real`, the folder of the challenge's, or draw its stand-in into `folder`.

    Returns the file, and whether it was drawn.
    Raises UsageError where the real file has another shape or number of boxes than the paper says.
    """
    path = (real or folder) / f"{row.name}.npz"
    if stand_in := real is None or not path.exists():
        path = folder / path.name
        if not path.exists():
            draw(row).write(path)
    case = read_case(path)
    if case.image.shape != row.shape or len(case.boxes) != row.objects:
        raise UsageError(
            f"{path}: has shape {case.image.shape} and {len(case.boxes)} boxes, in Table 4 it is {row.shape} "
            f"and {row.objects}; give another --cases"
        )
    return path, stand_in


def columns(bundle: Bundle, checkpoint: Path | None, threads: int | None) -> list[Contender]:
    """Return the columns of Table 4; without a checkpoint there is no Baseline."""
    return [
        *([] if checkpoint is None else [measure.published(PUBLISHED, checkpoint, threads)]),
        measure.of_bundle(ABLATION, bundle, "auto", "exact", threads, one_box=True),
        measure.of_bundle(PROPOSED, bundle, "auto", "exact", threads, method=PAPER),
        measure.of_bundle(FAST, bundle, "auto", "fast", threads, method=PAPER),
        measure.of_bundle(DEFAULT, bundle, "auto", "auto", threads),
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
        path, stand_in = find_case(row, cases, output / "stand-ins")
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
        "given, and where objects overlap the later one wins, not the likelier. litemed-run also has planes, "
        "tiles, nested boxes and two passes.",
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

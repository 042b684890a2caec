"""Time bundles and the published procedure part by part, in turns, and give their ratios."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from litemed.benchmarks import measure
from litemed.benchmarks.phantoms import draw_image
from litemed.benchmarks.report import PUBLISHED, Contender, Measurement, Table
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES
from litemed.runtime.errors import LitemedError
from litemed.runtime.files import atomic_write, make_folder

PROCESS = "process"


def contenders(models: Mapping[str, Bundle], checkpoint: Path | None, threads: int | None) -> list[Contender]:
    """Return the published procedure, if there is a checkpoint, and all engines and precisions of models."""
    return [
        *([] if checkpoint is None else [measure.published(PUBLISHED, checkpoint, threads)]),
        *(
            measure.of_bundle(f"{name}, {engine} {precision}", bundle, engine, precision, threads)
            for name, bundle in models.items()
            for engine in filter(importlib.util.find_spec, ENGINES)
            for precision, graphs in bundle.manifest.precisions.items()
            if engine in graphs.runs_on
        ),
    ]


def time_all(chosen: Sequence[Contender], repeats: int) -> list[Measurement]:
    """Time everything, `repeats` times; in each pass another contender has the first turn."""
    measured: list[Measurement] = []
    order = [(repeat, one) for repeat in range(repeats) for one in measure.turns(chosen, repeat)]
    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as folder:
        case = Path(folder, "2DBox_small.npz")
        draw_image(256, 256, 1).write(case)
        for repeat, one in tqdm(order, unit="contender", disable=None):
            try:
                whole = measure.run_process([*one.command, str(case), "-o", tempfile.mkdtemp(dir=folder)])
                parts = json.loads(measure.run_process(one.parts).output.splitlines()[-1])
            except LitemedError as error:
                measured.append(Measurement(PROCESS, one.title, repeat, error=str(error)))
                tqdm.write(f"error: {one.title}: {error}", file=sys.stderr)
                continue
            measured += [Measurement(part, one.title, repeat, value) for part, value in parts.items()]
            measured.append(Measurement(PROCESS, one.title, repeat, whole.seconds, whole.peak_mib))
    return measured


def run_speed(
    models: Mapping[str, Bundle],
    checkpoint: Path | None,
    repeats: int,
    threads: int | None,
    output: Path | None,
) -> tuple[str, bool]:
    """Measure; write speed.md and speed.json into `output`; return the table, and whether nothing failed."""
    if output is not None:
        make_folder(output)
    chosen = contenders(models, checkpoint, threads)
    measured = time_all(chosen, repeats)
    rows = {one.row: one.row for one in measured}
    found = Table("Times of the parts", measure.describe_machine(), chosen, rows, measured)
    text = found.markdown(
        "Published is LiteMedSAM in eager PyTorch, float32, one box at a time, a volume's slice encoded anew "
        "for every box.",
        "Decoder: all boxes at once, per box. Slice: of a volume, 512 x 512, from array to label map. "
        "Process: an image of 256 x 256 pixels with one box, from start to exit.",
    )
    if output is not None:
        found.write_json(output / "speed.json")
        with atomic_write(output / "speed.md") as file:
            file.write(text.encode())
    return text, found.complete

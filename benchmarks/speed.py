"""Time bundles and the published procedure part by part, in turns, and give their ratios."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from litemed.benchmarks.markdown import spread, table
from litemed.benchmarks.measure import (
    Contender,
    ContenderError,
    describe_machine,
    load_average,
    of_bundle,
    published,
    run_process,
    turns,
)
from litemed.benchmarks.phantoms import draw_image
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES
from litemed.runtime.errors import UsageError
from litemed.runtime.files import atomic_write, make_folder

PUBLISHED = "published"
PROCESS, PEAK = "process", "peak MiB"

Values = dict[str, list[float]]


def contenders(models: Mapping[str, Bundle], checkpoint: Path | None, threads: int | None) -> list[Contender]:
    """Return the published procedure, if there is a checkpoint, and every installed engine and precision.

    `models` are bundles by the name to show; `threads` None: all.
    """
    return [
        *([] if checkpoint is None else [published(PUBLISHED, checkpoint, threads)]),
        *(
            of_bundle(f"{name}, {engine} {precision}", bundle, engine, precision, threads)
            for name, bundle in models.items()
            for engine in filter(importlib.util.find_spec, ENGINES)
            for precision, graphs in bundle.manifest.precisions.items()
            if engine in graphs.runs_on
        ),
    ]


def measure(chosen: Sequence[Contender], repeats: int) -> tuple[dict[str, Values], dict[str, str]]:
    """Time everything, `repeats` times; in each pass another contender has the first turn.

    Returns:
        By title and part the seconds of each repeat, the process's peak memory in MiB beside them; by title
        why a contender failed, which is left out from there on.
    """
    found: dict[str, Values] = {one.title: {} for one in chosen}
    failed: dict[str, str] = {}
    order = [one for repeat in range(repeats) for one in turns(chosen, repeat)]
    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as folder:
        case = Path(folder, "2DBox_small.npz")
        draw_image(256, 256, 1).write_case(case)
        for one in tqdm(order, unit="contender", disable=None):
            if one.title in failed:
                continue
            try:
                output = tempfile.mkdtemp(dir=folder)
                whole = run_process([*one.command, str(case), "-o", output])
                parts = json.loads(run_process(one.parts).output.splitlines()[-1])
            except ContenderError as error:
                failed[one.title] = str(error)
                tqdm.write(f"error: {one.title}: {error}", file=sys.stderr)
            else:
                for part, value in (parts | {PROCESS: whole.seconds, PEAK: whole.peak_mib}).items():
                    found[one.title].setdefault(part, []).append(value)
    return {title: values for title, values in found.items() if values}, failed


def ratio(found: Mapping[str, Values], title: str, part: str) -> float | None:
    """Return how many times as fast as published a contender is at a part; None where that is not known."""
    if title == PUBLISHED or part == PEAK or PUBLISHED not in found:
        return None
    return statistics.median(found[PUBLISHED][part]) / statistics.median(found[title][part])


def markdown(found: Mapping[str, Values], notes: Sequence[str]) -> str:
    """Return `notes`, a line each, and the table, a row for each contender."""

    def cell(title: str, part: str) -> str:
        values = found[title][part]
        if part == PEAK:
            return f"{max(values):.0f}"
        text = spread(values, lambda seconds: f"{1e3 * seconds:.0f}")
        times = ratio(found, title, part)
        return text if times is None else f"{text}, **{times:.1f}x**"

    parts = list(next(iter(found.values())))
    lines = [
        "# Times of the parts",
        "",
        "Milliseconds, median (lowest to highest), and how many times as fast as the published procedure: "
        "LiteMedSAM in eager PyTorch, float32, one box at a time, a volume's slice encoded anew for every "
        "box. Decoder: all boxes at once, per box. Slice: of a volume, 512 x 512, from array to label map. "
        "Process: an image of 256 x 256 pixels with one box, from start to exit; peak memory is its.",
        "",
        *(f"- {note}" for note in notes),
        "",
        *table(["", *parts], [[title, *(cell(title, part) for part in parts)] for title in found]),
    ]
    return "\n".join(lines) + "\n"


def run_speed(
    models: Mapping[str, Bundle],
    checkpoint: Path | None,
    *,
    repeats: int,
    threads: int | None = None,
    output: Path | None = None,
) -> tuple[str, bool]:
    """Measure; write speed.md and speed.json into `output` if it is given.

    Returns:
        The table in Markdown, and whether nothing failed.

    Raises:
        UsageError: everything failed.
        OutputError: the folder cannot be written to.
    """
    chosen = contenders(models, checkpoint, threads)
    if output is not None:
        make_folder(output)
    machine, load = describe_machine(), load_average()
    found, failed = measure(chosen, repeats)
    if not found:
        raise UsageError("nothing could be timed; see the errors above")
    notes = [
        f"Machine: {machine}.",
        f"Load average before: {load:.2f}; {repeats} repeats.",
        *(f"{one.title}: {one.what}." for one in chosen),
        *(f"{title} failed: {why}." for title, why in failed.items()),
    ]
    text = markdown(found, notes)
    if output is not None:
        content = {
            "machine": machine,
            "load_average": load,
            "contenders": {one.title: one.what for one in chosen},
            "failed": failed,
            "values": found,
            "ratios": {title: {part: ratio(found, title, part) for part in found[title]} for title in found},
        }
        for name, data in (("speed.md", text), ("speed.json", json.dumps(content, indent=1) + "\n")):
            with atomic_write(output / name) as file:
                file.write(data.encode())
    return text, not failed

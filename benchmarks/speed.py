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

from litemed.benchmarks.machine import describe_machine, load_average, machine_line
from litemed.benchmarks.markdown import table
from litemed.benchmarks.phantoms import draw_image
from litemed.benchmarks.processes import ContenderError, run_process
from litemed.benchmarks.table4.contenders import Contender, of_bundle, published
from litemed.benchmarks.table4.rows import write_case
from litemed.benchmarks.table4.table4 import turns
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES
from litemed.runtime.errors import UsageError
from litemed.runtime.files import atomic_write, make_folder

PUBLISHED = "published"
PROCESS, PEAK = "process", "peak MiB"

Values = dict[str, list[float]]


def contenders(models: Mapping[str, Bundle], checkpoint: Path | None, threads: int | None) -> list[Contender]:
    """Return the published procedure, if there is a checkpoint, and every installed engine and precision.

    Args:
        models: bundles by the name to show.
        checkpoint: of the published procedure.
        threads: to compute with; None leaves it to each contender.

    Raises:
        UsageError: the checkpoint cannot be read.
    """
    found = [] if checkpoint is None else [published(PUBLISHED, checkpoint, threads)]
    engines = [engine for engine in ENGINES if importlib.util.find_spec(engine)]
    for name, bundle in models.items():
        for engine in engines:
            for precision, graphs in bundle.manifest.precisions.items():
                if engine in graphs.runs_on:
                    title = f"{name}, {engine} {precision}"
                    found.append(of_bundle(title, bundle, engine, precision, threads))
    return found


def measure(chosen: Sequence[Contender], repeats: int) -> tuple[dict[str, Values], dict[str, str]]:
    """Time everything, `repeats` times; in each pass another contender has the first turn.

    Returns:
        By title and part the seconds of each repeat, the process's peak memory in MiB beside them; by title
        why a contender failed, which is left out from there on.
    """
    found: dict[str, Values] = {one.title: {} for one in chosen}
    failed: dict[str, str] = {}
    bar = tqdm(total=repeats * len(chosen), unit="contender", disable=None, file=sys.stderr)
    with bar, tempfile.TemporaryDirectory(prefix="litemed-bench-") as folder:
        phantom, case = draw_image(256, 256, 1), Path(folder, "2DBox_small.npz")
        write_case(case, phantom.image, phantom.boxes)
        for repeat in range(repeats):
            for contender in turns(chosen, repeat):
                title = contender.title
                if title not in failed:
                    try:
                        output = Path(tempfile.mkdtemp(dir=folder))
                        whole = run_process(contender.process(case, output))
                        values = json.loads(run_process(contender.parts).output.splitlines()[-1])
                    except ContenderError as error:
                        failed[title] = str(error)
                        bar.write(f"error: {title}: {error}", file=sys.stderr)
                    else:
                        values |= {PROCESS: whole.seconds, PEAK: whole.peak_mib}
                        for part, value in values.items():
                            found[title].setdefault(part, []).append(value)
                        bar.write(f"{title}: {repeat + 1} of {repeats}", file=sys.stderr)
                bar.update()
    return {title: values for title, values in found.items() if values}, failed


def ratio(found: Mapping[str, Values], title: str, part: str) -> float | None:
    """Return how many times as fast as published a contender is at a part; None where that is not known."""
    if title == PUBLISHED or part == PEAK or PUBLISHED not in found:
        return None
    return statistics.median(found[PUBLISHED][part]) / statistics.median(found[title][part])


def markdown(found: Mapping[str, Values], notes: Sequence[str]) -> str:
    """Return `notes`, a line each, and the table, a row for each contender."""
    parts = list(next(iter(found.values()), {}))
    rows = [[title, *(_cell(found, title, part) for part in parts)] for title in found]
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
        *table(["", *parts], rows),
    ]
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, Values], title: str, part: str) -> str:
    values = found[title][part]
    if part == PEAK:
        return f"{max(values):.0f}"
    median, low, high = (1e3 * one for one in (statistics.median(values), min(values), max(values)))
    text = f"{median:.0f}" + (f" ({low:.0f} to {high:.0f})" if len(values) > 1 else "")
    times = ratio(found, title, part)
    return text if times is None else f"{text}, **{times:.1f}x**"


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
        UsageError: the checkpoint cannot be read, or everything failed.
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
        f"Machine: {machine_line(machine)}.",
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

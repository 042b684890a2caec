"""Time the published procedure and every engine and precision of a bundle in turns, and give their ratios."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from litemed.benchmarks.phantoms import draw_image
from litemed.benchmarks.table4.contenders import Contender
from litemed.benchmarks.table4.machine import Machine, load_average
from litemed.benchmarks.table4.processes import ContenderError, Worker, run_process
from litemed.benchmarks.table4.rows import write_case
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES
from litemed.runtime.errors import UsageError
from litemed.runtime.files import atomic_write, sha256_of_file

PUBLISHED = "published"
PROCESS = "process"
PUBLISHED_BOXES = 6  # the published decoder takes them one by one: more of them change nothing per box

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A part of the work: `name` as the worker knows it, or "process"; how many boxes; its title."""

    name: str
    boxes: int
    title: str


PARTS = (
    Part("encoder", 1, "encoder"),
    Part("decoder", 1, "decoder, 1 box at once, per box"),
    Part("decoder", 6, "decoder, 6 boxes at once, per box"),
    Part("decoder", 34, "decoder, 34 boxes at once, per box"),
    Part("slice", 6, "slice of a volume, 6 boxes, whole pipeline"),
    Part("slice", 1, "slice of a volume, 1 box, whole pipeline"),
    Part(PROCESS, 1, "whole process, 256 x 256 image, 1 box"),
)


@dataclass
class Times:
    """What one contender took for one part: seconds of each repeat; peak MiB, of a whole process only."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratios:
    """All that was measured.

    Attributes:
        machine: what on.
        load_average: before it began.
        bundle, checkpoint: sha256 of the manifest and of the weights.
        threads: asked for; None leaves it to each contender.
        times: by contender ("published" or "ENGINE PRECISION"), then by the title of the part.
        left_out: contenders that failed, and why.
    """

    machine: Machine
    load_average: float
    bundle: str
    checkpoint: str
    threads: int | None
    times: dict[str, dict[str, Times]]
    left_out: dict[str, str]

    def ratio(self, contender: str, part: str) -> float | None:
        """Return how many times as fast as published a contender is at a part; None if either is missing."""
        slow, fast = self.times[PUBLISHED].get(part), self.times[contender].get(part)
        return slow.median / fast.median if slow and fast else None


def measure(
    model: Path,
    checkpoint: Path,
    threads: int | None,
    repeats: int,
    parts: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> Ratios:
    """Time everything.

    Part by part and repeat by repeat the contenders take turns, so that what else the machine does falls on
    all alike. The first of each is not counted. A contender that fails is left out from there on. `parts` are
    names of `PARTS`; none means all.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: the checkpoint cannot be read.
    """
    bundle = Bundle.open(model)
    try:
        digest = sha256_of_file(checkpoint)
    except OSError as error:
        raise UsageError(f"{checkpoint}: cannot be read: {error.strerror}; give a checkpoint") from error
    chosen = [part for part in PARTS if not parts or part.name in parts]
    contenders = {PUBLISHED: Contender(PUBLISHED, "baseline", str(checkpoint), digest, threads=threads)}
    for engine in ENGINES:
        if importlib.util.find_spec(engine) is not None:
            for precision, graphs in bundle.manifest.precisions.items():
                if engine not in graphs.runs_on:
                    continue
                title = f"{engine} {precision}"
                contenders[title] = Contender(
                    title, "bundle", str(model), bundle.digest, engine, threads, precision
                )
    found = Ratios(
        Machine.current(),
        load_average(),
        bundle.digest,
        digest,
        threads,
        {title: {} for title in contenders},
        {},
    )
    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as name:
        folder = Path(name)
        phantom = draw_image(256, 256, 1)
        write_case(folder / "cases" / "2DBox_small.npz", phantom.image, phantom.boxes)
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for title, contender in contenders.items():
                tell(f"loading {title}")
                try:
                    workers[title] = stack.enter_context(Worker(_worker(contender)))
                except ContenderError as error:
                    found.left_out[title] = str(error)
            _take_turns(
                [part for part in chosen if part.name != PROCESS],
                contenders,
                workers,
                folder,
                repeats,
                found,
                tell,
            )
        # After the workers are gone: their memory and threads would be in the way of whole processes.
        _take_turns(
            [part for part in chosen if part.name == PROCESS], contenders, {}, folder, repeats, found, tell
        )
    return found


def _take_turns(
    parts: Sequence[Part],
    contenders: Mapping[str, Contender],
    workers: Mapping[str, Worker],
    folder: Path,
    repeats: int,
    found: Ratios,
    tell: Tell,
) -> None:
    for part in parts:
        for repeat in range(repeats + 1):
            tell(f"{part.title}: {repeat} of {repeats}")
            for title, contender in contenders.items():
                if title in found.left_out:
                    continue
                times = found.times[title].setdefault(part.title, Times())
                try:
                    _take(part, contender, workers.get(title), folder, times, counted=repeat > 0)
                except ContenderError as error:
                    found.left_out[title] = str(error)
                    del found.times[title][part.title]


def _worker(contender: Contender) -> list[str]:
    command = [sys.executable, "-m", "litemed.benchmarks.ratios.worker"]
    if contender.kind == "baseline":
        command += [PUBLISHED, contender.model]
    else:
        options = ["--engine", contender.engine, "--precision", contender.precision]
        command += ["bundle", contender.model, *options]
    return command + ([] if contender.threads is None else ["--threads", str(contender.threads)])


def _take(
    part: Part, contender: Contender, worker: Worker | None, folder: Path, times: Times, *, counted: bool
) -> None:
    """Measure once."""
    if part.name == PROCESS:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            taken = run_process(contender.process(folder / "cases", Path(output)))
        seconds = taken.seconds
        times.peak_mib = max(times.peak_mib or 0.0, taken.peak_mib)
    else:
        if worker is None:
            raise ContenderError("was not loaded")
        one_by_one = contender.kind == "baseline" and part.name == "decoder"
        boxes = min(part.boxes, PUBLISHED_BOXES) if one_by_one else part.boxes
        seconds = float(worker.ask({"part": part.name, "boxes": boxes})["seconds"])
    if counted:
        times.seconds.append(seconds)


def markdown(found: Ratios) -> str:
    """Return the table: milliseconds, lowest and highest, and the ratio to published."""
    titles = [title for title in found.times if found.times[title]]
    lines = [
        "# Times against the published procedure",
        "",
        "Published: LiteMedSAM in eager PyTorch, float32, one box at a time, a volume's slice encoded anew "
        "for every box. Medians in milliseconds (lowest to highest), how many times as fast as published.",
        "",
        f"- Machine: {found.machine.line()}.",
        f"- {'All' if found.threads is None else found.threads} threads; load average before: "
        f"{found.load_average:.2f}; bundle {found.bundle[:12]}, checkpoint {found.checkpoint[:12]}.",
        *(f"- {title} is left out: {why}." for title, why in found.left_out.items()),
        "",
        "| | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for part in PARTS:
        if not any(part.title in times for times in found.times.values()):
            continue
        cells = [_cell(found, title, part.title) for title in titles]
        lines.append(f"| {part.title} | " + " | ".join(cells) + " |")
    peaks = [(title, times.peak_mib) for title in titles for times in found.times[title].values()]
    if any(peak is not None for _, peak in peaks):
        lines += ["", "Peak memory of the whole process, MiB:", ""]
        lines += [f"- {title}: {peak:.0f}" for title, peak in peaks if peak is not None]
    return "\n".join(lines) + "\n"


def _cell(found: Ratios, title: str, part: str) -> str:
    times = found.times[title].get(part)
    if times is None:
        return "failed"
    low, high = min(times.seconds), max(times.seconds)
    text = f"{1e3 * times.median:.0f} ({1e3 * low:.0f} to {1e3 * high:.0f})"
    ratio = found.ratio(title, part)
    return text if title == PUBLISHED or ratio is None else f"{text}, **{ratio:.1f}x**"


def report(
    model: Path,
    checkpoint: Path,
    threads: int | None,
    repeats: int,
    json_path: Path | None,
    parts: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> tuple[str, bool]:
    """Measure, write the JSON if asked; return the table in Markdown and whether nothing was left out.

    Raises:
        BundleError, UsageError: see `measure`.
        OutputError: the JSON cannot be written.
    """
    found = measure(model, checkpoint, threads, repeats, parts, tell)
    if json_path is not None:
        content = dataclasses.asdict(found) | {
            "ratios": {
                title: {part: found.ratio(title, part) for part in parts}
                for title, parts in found.times.items()
            }
        }
        with atomic_write(json_path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    return markdown(found), not found.left_out

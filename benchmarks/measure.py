"""What is timed against what, in turns, each in a process of its own, and where; the table of speed."""

import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from tqdm import tqdm

from litemed.benchmarks.phantoms import draw_image
from litemed.benchmarks.report import PUBLISHED, Contender, Measurement, Table
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES, available_threads
from litemed.runtime.engines.cpu import cpu_instructions
from litemed.runtime.errors import LitemedError
from litemed.runtime.files import atomic_write, make_folder, sha256_of_file

_PACKAGES = ("litemed", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")

# The instruction sets that decide how fast matrices are multiplied.
_FAST = re.compile("avx|fma$|amx|asimd$|i8mm|bf16")
_POLL_SECONDS = 0.02
_WORKER = "litemed.benchmarks.worker"
PROCESS = "process"


def published(title: str, checkpoint: Path, threads: int | None) -> Contender:
    """Return the published procedure; `threads`: all, if None."""
    what = f"the published procedure in PyTorch, checkpoint {sha256_of_file(checkpoint)[:12]}"
    return _contender(title, what, _WORKER, ("--checkpoint", str(checkpoint)), threads)


def of_bundle(
    title: str,
    bundle: Bundle,
    engine: str,
    precision: str,
    threads: int | None,
    *,
    method: tuple[str, ...] = (),
    one_box: bool = False,
) -> Contender:
    """Return a bundle as litemed-run segments with it, or by the paper's method with one box at a time.

    `method` has more options of litemed-run.
    """
    how, module = ("one box at a time", _WORKER) if one_box else ("litemed-run", "litemed.runtime.cli")
    how = " ".join((how, *method))
    what = f"{how}, {bundle.name} ({bundle.digest[:12]}), engine {engine}, precision {precision}"
    options = ("--model", str(bundle.path), "--engine", engine, "--precision", precision, *method)
    return _contender(title, what, module, options, threads)


def _contender(
    title: str, what: str, module: str, options: tuple[str, ...], threads: int | None
) -> Contender:
    if threads is not None:
        options = (*options, "--threads", str(threads))
    command, parts = ((sys.executable, "-m", name, *options) for name in (module, _WORKER))
    return Contender(title, f"{what}, {threads or 'all'} threads", command, parts)


def turns(contenders: Sequence[Contender], repeat: int) -> list[Contender]:
    """Return the order in which the contenders have their turn: another one is first in each pass."""
    shift = repeat % len(contenders)
    return [*contenders[shift:], *contenders[:shift]]


class Process(NamedTuple):
    """What a command took: wall-clock seconds, peak resident memory in MiB; and its standard output."""

    seconds: float
    peak_mib: float
    output: str


def run_process(command: Sequence[str]) -> Process:
    """Run a command from start to exit; raises LitemedError where it cannot be started or fails.

    Peak memory is that of the process without its children, as seen every 20 ms.
    """
    peaks, ended, pipe = [0], threading.Event(), subprocess.PIPE
    start = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
    except OSError as error:
        raise LitemedError(f"cannot be started: {error.strerror}") from error
    watch = threading.Thread(target=_watch_memory, args=(process.pid, peaks, ended), daemon=True)
    watch.start()
    try:
        output, errors = process.communicate()
        seconds = time.perf_counter() - start
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        ended.set()
        watch.join()
    if process.returncode:
        lines = errors.strip().splitlines() or ["said nothing"]
        raise LitemedError(f"exit code {process.returncode}: {lines[-1][:300]}")
    return Process(seconds, round(max(peaks) / 2**20, 1), output)


def _watch_memory(pid: int, peaks: list[int], ended: threading.Event) -> None:
    """Put into `peaks` the resident bytes of a process, again and again until it has `ended`."""
    with contextlib.suppress(psutil.Error):  # it has just ended
        process = psutil.Process(pid)
        peaks.append(process.memory_info().rss)
        while not ended.wait(_POLL_SECONDS):
            peaks.append(process.memory_info().rss)


def describe_machine() -> str:
    """Return what must be equal for times to belong into one table: CPU, cores, memory, system, versions."""
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpus.read_text() if cpus.exists() else "", re.MULTILINE)
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES if name in installed)
    return (
        f"{names[0] if names else platform.machine()}, {available_threads()} cores "
        f"({' '.join(sorted(filter(_FAST.match, cpu_instructions())))}), "
        f"{psutil.virtual_memory().total / 2**30:.1f} GiB; {platform.platform()}; "
        f"Python {platform.python_version()}, {versions}"
    )


def contenders(models: Mapping[str, Bundle], checkpoint: Path | None, threads: int | None) -> list[Contender]:
    """Return the published procedure, if there is a checkpoint, and all engines and precisions of models."""
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


def time_all(chosen: Sequence[Contender], repeats: int) -> list[Measurement]:
    """Time everything, `repeats` times; in each pass another contender has the first turn."""
    measured: list[Measurement] = []
    order = [(repeat, one) for repeat in range(repeats) for one in turns(chosen, repeat)]
    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as folder:
        case = Path(folder, "2DBox_small.npz")
        draw_image(256, 256, 1).write(case)
        for repeat, one in tqdm(order, unit="contender", disable=None):
            try:
                whole = run_process([*one.command, str(case), "-o", tempfile.mkdtemp(dir=folder)])
                parts = json.loads(run_process(one.parts).output.splitlines()[-1])
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
    found = Table("Times of the parts", describe_machine(), chosen, rows, measured)
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

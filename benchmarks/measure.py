"""What is timed against what, in turns, each in a process of its own; and on which machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from litemed.benchmarks.report import Contender
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import available_threads
from litemed.runtime.engines.cpu import cpu_instructions
from litemed.runtime.errors import LitemedError, printable
from litemed.runtime.files import sha256_of_file

_PACKAGES = ("litemed", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")

# The instruction sets that decide how fast matrices are multiplied.
_FAST = re.compile("avx|fma$|amx|asimd$|i8mm|bf16")
_POLL_SECONDS = 0.02
_WORKER = "litemed.benchmarks.worker"


def published(title: str, checkpoint: Path, threads: int | None) -> Contender:
    """Return the published procedure; `threads`: all, if None."""
    what = f"the published procedure in PyTorch, checkpoint {sha256_of_file(checkpoint)[:12]}"
    return _contender(title, what, _WORKER, ("--checkpoint", str(checkpoint)), threads)


def of_bundle(
    title: str, bundle: Bundle, engine: str, precision: str, threads: int | None, *, one_box: bool = False
) -> Contender:
    """Return a bundle as litemed-run segments with it, or with one box decoded at a time."""
    how, module = ("one box at a time", _WORKER) if one_box else ("litemed-run", "litemed.runtime.cli")
    what = f"{how}, {bundle.name} ({bundle.digest[:12]}), engine {engine}, precision {precision}"
    options = ("--model", str(bundle.path), "--engine", engine, "--precision", precision)
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
        raise LitemedError(f"exit code {process.returncode}: {printable(lines[-1][:300])}")
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

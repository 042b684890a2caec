"""Run a command from start to exit; measure its seconds and peak memory."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from litemed.runtime.errors import LitemedError, printable

_POLL_SECONDS = 0.02


class ContenderError(LitemedError):
    """A contender failed; the message says how."""


@dataclass(frozen=True)
class Run:
    """What a command took: wall-clock seconds, peak resident memory in MiB; and its standard output."""

    seconds: float
    peak_mib: float
    output: str


def run_process(command: Sequence[str]) -> Run:
    """Run a command.

    Peak memory is that of the process without its children, as seen every 20 ms.

    Raises:
        ContenderError: it cannot be started or fails.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        except OSError as error:
            raise ContenderError(f"cannot be started: {error.strerror}") from error
        peaks: list[int] = []
        ended = threading.Event()
        watch = threading.Thread(target=_watch_memory, args=(process.pid, peaks, ended), daemon=True)
        watch.start()
        try:
            code = process.wait()
            seconds = time.perf_counter() - start
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            ended.set()
            watch.join()
        if code:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            said = printable(lines[-1][:300]) if lines else "said nothing"
            raise ContenderError(f"exit code {code}: {said}")
        output.seek(0)
        return Run(seconds, round(max(peaks, default=0) / 2**20, 1), output.read().decode(errors="replace"))


def _watch_memory(pid: int, peaks: list[int], ended: threading.Event) -> None:
    """Put into `peaks` the resident bytes of a process, again and again until it has `ended`."""
    with contextlib.suppress(psutil.Error):  # it has just ended
        process = psutil.Process(pid)
        peaks.append(process.memory_info().rss)
        while not ended.wait(_POLL_SECONDS):
            peaks.append(process.memory_info().rss)

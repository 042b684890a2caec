"""Start contenders, and measure seconds and peak memory of what was started."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from litemed.benchmarks.table4.stages import CaseTiming
from litemed.runtime.errors import LitemedError

_POLL_SECONDS = 0.02


class ContenderError(LitemedError):
    """A contender failed on a case; the message says how."""


@dataclass(frozen=True)
class Run:
    """What a case took: wall-clock seconds, peak resident memory in MiB, and stages where they are known."""

    seconds: float
    peak_mib: float
    timing: CaseTiming | None = None


def run_process(command: list[str]) -> Run:
    """Run a command from start to exit.

    Peak memory is that of the process, or of it and its children together as seen every 20 ms, whichever is
    more. What happens in another process tree, such as that of a container service, is not seen.

    Raises:
        ContenderError: it cannot be started or fails.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise ContenderError(f"cannot be started: {error.strerror}") from error
        watch = _MemoryWatch(process.pid)
        try:
            process.wait()
            seconds = time.perf_counter() - start
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            peak = watch.stop()
        if process.returncode:
            output.seek(max(0, output.seek(0, 2) - 4096))
            raise ContenderError(_last_line(output.read(), process.returncode))
    return Run(seconds, peak)


class Worker:
    """A contender's process with its model loaded, see `litemed.benchmarks.table4.worker`.

    A context manager.

    Attributes:
        load_seconds: that it took to load and to run once.
    """

    def __init__(self, command: list[str]) -> None:
        """Start it and wait until it is ready.

        Raises:
            ContenderError: it fails to load.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        try:
            self.load_seconds = float(self._read()["ready"])
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Worker:
        """Return the worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process."""
        self._stop()

    def run(self, case: Path, output: Path) -> Run:
        """Segment a file into a folder.

        Raises:
            ContenderError: it fails.
        """
        answer = self.ask({"input": str(case), "output": str(output)})
        return Run(float(answer["seconds"]), self.peak_mib, CaseTiming(**answer["timing"]))

    def ask(self, request: dict[str, object]) -> dict:
        """Send a line of JSON and return the one that comes back.

        Raises:
            ContenderError: it fails.
        """
        if self._process.stdin is None:
            raise ContenderError("has no standard input")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ContenderError(f"ended with exit code {self._process.wait()}") from error
        return self._read()

    @property
    def peak_mib(self) -> float:
        """Its peak resident memory so far, in MiB."""
        return _high_water(self._process.pid)

    def _read(self) -> dict:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            code = self._process.wait()
            self._errors.seek(max(0, self._errors.seek(0, 2) - 4096))
            raise ContenderError(_last_line(self._errors.read(), code))
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()


class _MemoryWatch:
    """Follows the memory of a process and its children from a thread, until stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in MiB."""
        self._done.set()
        self._thread.join()
        return round(self._peak, 1)

    def _follow(self) -> None:
        while True:
            tree = _tree(self._pid)
            together = sum(_status_mib(pid, "VmRSS") for pid in tree)
            self._peak = max([self._peak, together, *map(_high_water, tree)])
            if self._done.wait(_POLL_SECONDS):
                return


def _tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        try:
            tasks = list(Path(f"/proc/{one}/task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
        found += children
    return found


def _high_water(pid: int) -> float:
    """Return the peak resident memory of a process in MiB; 0 if it has ended or the system does not say."""
    return _status_mib(pid, "VmHWM")


def _status_mib(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def _last_line(output: bytes, code: int) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    said = "".join(c for c in lines[-1][:300] if c.isprintable()) if lines else "said nothing"
    return f"exit code {code}: {said}"

"""What is timed against what."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from litemed.runtime.bundle import Bundle
from litemed.runtime.errors import UsageError
from litemed.runtime.files import sha256_of_file

BASELINE, ABLATION, PROPOSED, FAST = "Baseline", "Ablation", "Proposed", "Proposed, fast"
INPUT, OUTPUT = "{input}", "{output}"

_RUN = ("litemed.runtime.cli", INPUT, "-o", OUTPUT, "--quiet")
_ONE_BOX = ("litemed.benchmarks.table4.ablation", INPUT, OUTPUT)


@dataclass(frozen=True)
class Contender:
    """A column of Table 4, or a row of the table of speed.

    Attributes:
        title: of the column.
        what: runs, with which weights, in words; of two with equal words the results are equal.
        command: segments the case `INPUT` into the folder `OUTPUT`, in a process of its own.
        parts: the command that times the parts of its work, see `litemed.benchmarks.speed_parts`.
    """

    title: str
    what: str
    command: tuple[str, ...]
    parts: tuple[str, ...]

    def process(self, case: Path, output: Path) -> list[str]:
        """Return the command for a case and a folder."""
        filled = {INPUT: str(case), OUTPUT: str(output)}
        return [filled.get(part, part) for part in self.command]


def published(title: str, checkpoint: Path, threads: int | None) -> Contender:
    """Return the published procedure.

    Raises:
        UsageError: the checkpoint cannot be read.
    """
    try:
        digest = sha256_of_file(checkpoint)
    except OSError as error:
        raise UsageError(f"{checkpoint}: cannot be read: {error.strerror}; give a checkpoint") from error
    what = f"the published procedure in PyTorch, checkpoint {digest[:12]}"
    command = ("litemed.benchmarks.table4.baseline", INPUT, OUTPUT, "--checkpoint", str(checkpoint))
    return _contender(title, what, command, ("published", str(checkpoint)), (), threads)


def of_bundle(
    title: str, bundle: Bundle, engine: str, precision: str, threads: int | None, *, one_box: bool = False
) -> Contender:
    """Return a bundle as litemed-run segments with it, or with one box decoded at a time."""
    how = "one box at a time" if one_box else "litemed-run"
    what = f"{how}, {bundle.name} ({bundle.digest[:12]}), engine {engine}, precision {precision}"
    command = (*(_ONE_BOX if one_box else _RUN), "--model", str(bundle.path))
    options = ("--engine", engine, "--precision", precision)
    return _contender(title, what, command, ("bundle", str(bundle.path)), options, threads)


def columns(
    bundle: Bundle, checkpoint: Path | None, engine: str, threads: int | None
) -> tuple[Contender, ...]:
    """Return the columns of Table 4; without a checkpoint there is no Baseline.

    Raises:
        UsageError: the checkpoint cannot be read.
    """
    return (
        *([] if checkpoint is None else [published(BASELINE, checkpoint, threads)]),
        of_bundle(ABLATION, bundle, engine, "exact", threads, one_box=True),
        of_bundle(PROPOSED, bundle, engine, "exact", threads),
        of_bundle(FAST, bundle, engine, "fast", threads),
    )


def _contender(
    title: str,
    what: str,
    command: tuple[str, ...],
    model: tuple[str, str],
    options: tuple[str, ...],
    threads: int | None,
) -> Contender:
    python = (sys.executable, "-m")
    end = options if threads is None else (*options, "--threads", str(threads))
    what += ", all threads" if threads is None else f", {threads} threads"
    parts = (*python, "litemed.benchmarks.speed_parts", *model, *end)
    return Contender(title, what, (*python, *command, *end), parts)

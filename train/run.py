"""One training run from files to files: what `litemed-train` does, for scripts."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from litemed.models.adapter import decoder_path
from litemed.models.checkpoint import Checkpoint, read_checkpoint
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import InputError, LitemedError, UsageError
from litemed.runtime.files import (
    FolderLock,
    make_folder,
    refuse_odd_target,
    remove_leftovers,
    sha256_of_file,
)
from litemed.train import report, state
from litemed.train.config import COSINE, Config
from litemed.train.dataset import Data
from litemed.train.distributed import Processes, joined
from litemed.train.history import CURVE, EVENTS, LOG
from litemed.train.loop import BEST, LAST, Trainer
from litemed.train.network import check_base
from litemed.train.prepare.store import MANIFEST, Slices
from litemed.train.progress import Reporter
from litemed.train.tables import differences, updated

# A run that is resumed may differ in these: they say when and how well it is watched, not what is learnt.
_MAY_CHANGE = (
    "run.epochs",
    "run.state_every_steps",
    "validation.every_epochs",
    "validation.slices_per_modality",
)


OUTPUTS = (LOG, CURVE, BEST, decoder_path(Path(BEST)).name, LAST, decoder_path(Path(LAST)).name)
"""What a run leaves besides its report, its state and TensorBoard's folder."""


@dataclass(frozen=True)
class Request:
    """What to train, from what, and where to.

    data: a folder that `litemed-prepare` made. folder: for everything that is written. base: the weights to
    start from, in any layout that `litemed-export` reads. changes: settings that
    differ from the defaults (from those of the run, when resumed), as pairs of tables and what they are
    called in errors. resume: go on with the run in `folder`. overwrite: start over though there is one.
    stop_after_s: stop after so many seconds, to be resumed.
    """

    data: Path
    folder: Path
    base: Path
    changes: Sequence[tuple[Mapping[str, Any], str]] = ()
    resume: bool = False
    overwrite: bool = False
    stop_after_s: float | None = None


def train(request: Request, reporter: Reporter) -> bool:
    """Carry out a training run; returns whether it reached its end, otherwise it can be resumed.

    The first SIGINT or SIGTERM lets the run finish its step and write its state; a second one interrupts at
    once.

    Raises:
        LitemedError: it cannot start, go on or write; the message says what to do.
        KeyboardInterrupt: after a signal.
    """
    check_request(request)
    stored = state.read_state(request.folder) if request.resume else None
    config = updated(Config(), stored.config, str(request.folder / state.FILE)) if stored else Config()
    for tables, source in request.changes:
        config = updated(config, tables, source)
    base = read_checkpoint(request.base)
    check_base(base, config.run.tune)  # before the folder is made, or an earlier run in it gives way
    data = open_data(request.data)
    if stored is not None:
        check_same(stored, config, base, data)
    elif not request.overwrite:
        refuse_run(request.folder)
    with joined(config.hardware.device) as processes, contextlib.ExitStack() as stack:
        processes.wait()  # until all have looked into the folder
        if processes.is_first:
            make_folder(request.folder)
            stack.enter_context(FolderLock(request.folder))
            clean(request.folder, request.overwrite)
        else:
            reporter = Reporter(None)
        processes.wait()
        stop = stack.enter_context(stop_signal(request.stop_after_s))
        trainer = Trainer(config, base, data, request.folder, processes, reporter, stop.is_set)
        if stored is not None:
            trainer.resume(stored)
        finished = run_reported(trainer, request.folder, request.data, base, data, processes)
        # Until all is written. Gloo's threads let go of their last tensors meanwhile: else they may wait for
        # the interpreter, which waits for them as it frees their group.
        processes.wait()
    if stop.signalled and not finished:
        raise KeyboardInterrupt
    return finished


def check_request(request: Request) -> None:
    """Raise UsageError for a request that contradicts itself."""
    if request.resume and request.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite starts over: choose one")
    if request.overwrite and request.base.parent.resolve() == request.folder.resolve():
        raise UsageError(f"{request.base}: lies in the folder that --overwrite empties; choose another one")


def refuse_run(folder: Path) -> None:
    """Raise UsageError where a folder holds a run already."""
    if (folder / state.FILE).exists():
        raise UsageError(
            f"{folder}: holds a run already; go on with --resume, or start over with --overwrite"
        )


def clean(folder: Path, overwrite: bool) -> None:
    """Remove what killed processes left; to start over also what the earlier run wrote, its state first.

    Otherwise a run that is killed before its first state would be resumed as the earlier one.
    """
    for name in (state.FILE, report.FILE, *OUTPUTS):
        remove_leftovers(folder / name)
        if overwrite:
            refuse_odd_target(folder / name)
            (folder / name).unlink(missing_ok=True)
    if overwrite:
        shutil.rmtree(folder / EVENTS, ignore_errors=True)


def run_reported(
    trainer: Trainer, folder: Path, prepared: Path, base: Checkpoint, data: Data, processes: Processes
) -> bool:
    """Run a trainer and say in the report of `folder` how that went; returns what `Trainer.run` does."""

    def write(status: str) -> None:
        if processes.is_first:
            report.write_report(
                folder,
                status,
                trainer.config,
                base,
                prepared,
                data.digest,
                processes,
                trainer.progress,
                OUTPUTS,
            )

    write("running")
    try:
        finished = trainer.run()
    except LitemedError:
        write("failed")
        raise
    write("finished" if finished else "stopped")
    return finished


class Stop:
    """Whether a run was told to stop, by a signal or because its time is over."""

    def __init__(self, after_s: float | None) -> None:
        self.signalled = False
        self._end = None if after_s is None else time.monotonic() + after_s

    def is_set(self) -> bool:
        """Whether to stop."""
        return self.signalled or (self._end is not None and time.monotonic() >= self._end)


@contextlib.contextmanager
def stop_signal(after_s: float | None) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; from the second on they interrupt.

    Outside the main thread signals are left alone.
    """
    stop = Stop(after_s)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signalled:
            raise KeyboardInterrupt
        stop.signalled = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_data(folder: Path) -> Data:
    """Return what `litemed-prepare` wrote to a folder. Raises InputError without training slices."""
    training = Slices.open(folder, split="train")
    if not len(training):
        raise InputError(f'{folder}: no training slices; prepare data of the split "train"')
    return Data(training, Slices.open(folder, split="val"), sha256_of_file(folder / MANIFEST))


def check_same(stored: state.State, config: Config, base: Checkpoint, data: Data) -> None:
    """Raise UsageError unless a run can go on with these settings, weights and data."""
    before = updated(type(config)(), stored.config, state.FILE)
    changed = [name for name in differences(before, config) if name not in _MAY_CHANGE]
    if before.run.epochs != config.run.epochs and config.schedule.kind == COSINE:
        changed.append("run.epochs (over which the cosine falls)")
    if changed:
        raise UsageError(
            f"a resumed run keeps its settings, but {', '.join(changed)} differ: start a run of its own"
        )
    if stored.base != weights_digest(base.state):
        raise UsageError("these are not the weights that the run started from: name the same --base")
    if stored.data != data.digest:
        raise UsageError(
            "these are not the data that the run was started on: name the same DATA, or start over"
        )

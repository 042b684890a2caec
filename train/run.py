"""One training run from files to files: what `litemed-train` does, for scripts."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from litemed.models.checkpoint import Checkpoint, read_checkpoint
from litemed.models.lora_folding import LORALIB_ALPHA
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.files import FolderLock, make_folder, sha256_of_file
from litemed.train.config import Changes, Config, differences, updated
from litemed.train.dataset import Data
from litemed.train.loop import Session, Trainer
from litemed.train.network import check_base, choose_device
from litemed.train.prepare.store import MANIFEST, Slices, open_volumes
from litemed.train.run_files import STATE, Inputs, Reporter, clean, read_state

# A run that is resumed may differ in these: they say when and how well it is watched, not what is learnt.
_MAY_CHANGE = ("run.epochs", "validation.every_epochs", "validation.slices_per_modality")


@dataclass(frozen=True)
class Request:
    """What to train, from what, and where to.

    data: a folder that `litemed-prepare` made. folder: for everything that is written. base: the weights to
    start from. changes: settings that differ from the defaults (from those of the run, when resumed). resume:
    go on with the run in `folder`. overwrite: start over. stop_after_s: stop then, to be resumed. volumes: a
    folder of test cases that `litemed-prepare` made, whose `val` volumes are scored beside the slices.
    loralib_alpha: of LoRA in the paper's layout, as `litemed.models.checkpoint.read_checkpoint` takes it.
    """

    data: Path
    folder: Path
    base: Path
    changes: Sequence[Changes] = ()
    resume: bool = False
    overwrite: bool = False
    stop_after_s: float | None = None
    volumes: Path | None = None
    loralib_alpha: float = LORALIB_ALPHA


def train(request: Request, reporter: Reporter) -> bool:
    """Carry out a training run; returns whether it reached its end, otherwise it can be resumed.

    The first SIGINT or SIGTERM lets the run finish its step and write its state, then it raises
    KeyboardInterrupt; a second one interrupts at once. Raises LitemedError when it cannot start or go on.
    """
    check_request(request, request.folder / STATE)
    stored = read_state(request.folder) if request.resume else None
    before = updated(Config(), stored.config, str(request.folder / STATE)) if stored else Config()
    config = before
    for change in request.changes:
        config = updated(config, *change)
    base = read_checkpoint(request.base, loralib_alpha=request.loralib_alpha)
    for warning in base.warnings:
        reporter.line(f"warning: {warning}")
    check_base(base, config.run.tune)  # before the folder is made, or an earlier run in it gives way
    data, inputs = open_inputs(request, base)
    if stored is not None:
        check_settings(before, config)
        check_inputs(stored.inputs, inputs)

    def work(session: Session) -> bool:
        clean(request.folder, request.overwrite)
        trainer = Trainer(config, base, data, session)
        if stored is not None:
            trainer.resume(stored)
        return trainer.run()

    return carry_out(request, inputs, config, reporter, work)


def check_request(request: Request, *files: Path) -> None:
    """Raise UsageError for a request that contradicts itself, or for `files` of an earlier run in its way."""
    if request.resume and request.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite starts over: choose one")
    if request.overwrite and request.base.parent.resolve() == request.folder.resolve():
        raise UsageError(f"{request.base}: lies in the folder that --overwrite empties; choose another one")
    if not (request.resume or request.overwrite) and any(path.exists() for path in files):
        raise UsageError(
            f"{request.folder}: holds a run already; go on with --resume, or start over with --overwrite"
        )


def open_inputs(request: Request, base: Checkpoint) -> tuple[Data, Inputs]:
    """Return the prepared data, and what the records of a run say about them and the base.

    Raises InputError without training slices, or without volumes where they were asked for.
    """
    training = Slices.open(request.data, split="train")
    if not len(training):
        raise InputError(f'{request.data}: no training slices; prepare data of the split "train"')
    weights: dict[str, Any] = {
        "file": base.file,
        "sha256": base.sha256,
        "layout": base.layout,
        "encoder": base.encoder,
    }
    if base.lora is not None:
        weights["alpha"] = base.lora.alpha
    volumes = open_volumes(request.volumes, split="val") if request.volumes else []
    # The manifest has hashes of all slices.
    folders = {"data": request.data} | ({"volumes": request.volumes} if request.volumes else {})
    inputs = {
        name: {"folder": str(folder), "sha256": sha256_of_file(folder / MANIFEST)}
        for name, folder in folders.items()
    }
    return Data(training, Slices.open(request.data, split="val"), volumes), {"base": weights, **inputs}


def check_settings(before: Config, config: Config, where: str = "") -> None:
    """Raise UsageError unless a run that had the settings `before` can go on with `config`."""
    changed = [where + name for name in differences(before, config) if name not in _MAY_CHANGE]
    if before.run.epochs != config.run.epochs and config.schedule.kind == "cosine":
        changed.append(f"{where}run.epochs (over which the cosine falls)")
    if changed:
        raise UsageError(
            f"a resumed run keeps its settings, but {', '.join(changed)} differ: start a run of its own"
        )


def check_inputs(before: Inputs, inputs: Inputs) -> None:
    """Raise UsageError unless a run that had the inputs `before` goes on with the same ones."""
    for name in [*inputs, *before]:
        was, now = (some.get(name, {}) for some in (before, inputs))
        if any(was.get(key) != now.get(key) for key in ("sha256", "alpha")):
            other = "none" if not was else "one" if not now else "another one"
            raise UsageError(
                f"{name}: the run was started with {other}; give the same to resume it, or start a run anew"
            )


def carry_out(
    request: Request, inputs: Inputs, config: Config, reporter: Reporter, work: Callable[[Session], bool]
) -> bool:
    """Do the work of a run in its folder, which is made and locked; returns whether it reached its end."""
    device = choose_device(config.hardware.device)
    make_folder(request.folder)
    with FolderLock(request.folder), Stop(request.stop_after_s) as stop, _in_order(device):
        finished = work(Session(request.folder, inputs, device, reporter, stop.is_set))
    if stop.signalled and not finished:
        raise KeyboardInterrupt
    return finished


@contextlib.contextmanager
def _in_order(device: torch.device) -> Iterator[None]:
    """On CPUs have PyTorch add in one order; else its threads add as they come, and no two runs are equal."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debug: Any = torch.utils.deterministic
    filled = debug.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or device.type == "cpu", warn_only=before and warn_only)
    # Otherwise every new tensor is filled with NaN first, which finds bugs, at four fifths more time a step.
    debug.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        debug.fill_uninitialized_memory = filled


class Stop:
    """Whether a run was told to stop, by a signal or because its time is over.

    A context manager: the first SIGINT or SIGTERM within is a request to stop, the second interrupts.
    Outside the main thread signals are left alone.
    """

    def __init__(self, after_s: float | None) -> None:
        self.signalled = False
        self._end = math.inf if after_s is None else time.monotonic() + after_s
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        """Whether to stop."""
        return self.signalled or time.monotonic() >= self._end

    def _handle(self, *_: object) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True

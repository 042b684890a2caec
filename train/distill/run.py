"""One distillation from files to files: what `litemed-distill` does, for scripts.

RUN/settings.json        of both stages
RUN/stage1, RUN/stage2   what `litemed-train` leaves of a run: log, weights, state, report
RUN/light.safetensors    the student, once both stages are done
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from litemed.models.adapter import fold_adapter
from litemed.models.checkpoint import Checkpoint, read_checkpoint
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import UsageError
from litemed.runtime.files import (
    FolderLock,
    atomic_write,
    make_folder,
    refuse_odd_target,
    remove_leftovers,
)
from litemed.train import state
from litemed.train.dataset import Data
from litemed.train.distill.config import STAGES, DistillConfig, stage_configs
from litemed.train.distill.images import digest_of, list_images
from litemed.train.distill.networks import build_student, check_teacher, write_student
from litemed.train.distill.trainer import Distiller
from litemed.train.distributed import Processes, joined
from litemed.train.errors import TrainingError
from litemed.train.loop import LAST
from litemed.train.progress import Reporter
from litemed.train.run import (
    Request,
    Stop,
    check_request,
    check_same,
    clean,
    open_data,
    refuse_run,
    run_reported,
    stop_signal,
)
from litemed.train.tables import as_tables

WEIGHTS: Final = "light.safetensors"
SETTINGS: Final = "settings.json"


@dataclass(frozen=True)
class DistillRequest(Request):
    """What to distil, from what, and where to.

    base: the teacher. adapter: folded into it. unlabelled: a folder of images without labels. changes: what
    differs from the recipe; see `litemed.train.distill.config`. Others as in `Request`.
    """

    adapter: Path | None = None
    unlabelled: Path | None = None


def distill(request: DistillRequest, reporter: Reporter) -> bool:
    """Carry out both stages; returns whether they reached their end, otherwise they can be resumed.

    Signals are handled as in `litemed.train.run.train`.

    Raises:
        LitemedError: it cannot start, go on or write; the message says what to do.
        KeyboardInterrupt: after a signal.
    """
    check_request(request)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("litemed-distill is one process: start it without torchrun")
    configs = _configs(request)
    teacher = read_checkpoint(request.base)
    check_teacher(teacher)
    if request.adapter is not None:
        teacher = fold_adapter(teacher, request.adapter)
    images = [] if request.unlabelled is None else list_images(request.unlabelled)
    data = open_data(request.data)
    data = dataclasses.replace(data, digest=digest_of(data.digest, images))
    stored = {}
    for stage, config in configs.items():
        folder = request.folder / stage
        if request.resume and (folder / state.FILE).exists():
            stored[stage] = state.read_state(folder)
            check_same(stored[stage], config, teacher, data)
        elif not request.overwrite:
            refuse_run(folder)
    _refuse_foreign(request)
    with joined(configs[STAGES[0]].hardware.device) as processes, contextlib.ExitStack() as stack:
        make_folder(request.folder)
        stack.enter_context(FolderLock(request.folder))
        _clean(request)
        make_folder(request.folder / STAGES[0])  # by which the settings are known to be a run's
        _write_settings(request.folder, configs)
        stop = stack.enter_context(stop_signal(request.stop_after_s))
        run = _Distillation(request, teacher, data, images, processes, reporter, stop)
        finished = all(run.stage(name, config, stored.get(name)) for name, config in configs.items())
        if finished:
            student = read_checkpoint(request.folder / STAGES[-1] / LAST).model()
            write_student(request.folder / WEIGHTS, student, weights_digest(teacher.state))
    if stop.signalled and not finished:
        raise KeyboardInterrupt
    return finished


@dataclass(frozen=True)
class _Distillation:
    """What both stages share."""

    request: DistillRequest
    teacher: Checkpoint
    data: Data
    images: list[Path]
    processes: Processes
    reporter: Reporter
    stop: Stop

    def stage(self, name: str, config: DistillConfig, stored: state.State | None) -> bool:
        """Carry out what is left of a stage; returns whether it reached its end."""
        if stored is not None and stored.progress["epoch"] == config.run.epochs:
            return True
        folder = self.request.folder / name
        make_folder(folder)
        self.reporter.line(f"{name}: {config.run.epochs} epochs of {config.run.samples_per_epoch} views")
        trainer = Distiller(
            config,
            self.teacher,
            self._start(name, config),
            self.data,
            self.images,
            folder,
            self.processes,
            self.reporter,
            self.stop.is_set,
        )
        if stored is not None:
            trainer.resume(stored)
        return run_reported(trainer, folder, self.request.data, self.teacher, self.data, self.processes)

    def _start(self, name: str, config: DistillConfig) -> Checkpoint:
        """Return the student that a stage starts from."""
        if name == STAGES[0]:
            return build_student(self.teacher, config.run.seed)
        return read_checkpoint(self.request.folder / STAGES[0] / LAST)


def _refuse_foreign(request: DistillRequest) -> None:
    """Raise UsageError where a file that this would replace was written by no run, or is what it reads.

    A run is told by the folder of its first stage.
    """
    own = (request.folder / STAGES[0]).is_dir()
    read = {path.resolve() for path in (request.base, request.adapter) if path is not None}
    for path in (request.folder / WEIGHTS, request.folder / SETTINGS):
        if os.path.lexists(path) and (not own or path.resolve() in read):
            raise UsageError(f"{path}: exists, and no earlier run wrote it; choose another folder")


def _configs(request: DistillRequest) -> dict[str, DistillConfig]:
    """Return the settings of each stage; those of a resumed run are what it was started with."""
    path = request.folder / SETTINGS
    if not request.resume:
        return stage_configs(request.changes)
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, so that there is no run to resume; leave --resume out")
    try:
        stored = json.loads(path.read_bytes())
        if not isinstance(stored, dict):
            raise ValueError("no table")
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: damaged, start over with --overwrite ({error})") from error
    return stage_configs([(stored, str(path)), *request.changes])


def _write_settings(folder: Path, configs: dict[str, DistillConfig]) -> None:
    document = {stage: as_tables(config) for stage, config in configs.items()}
    with atomic_write(folder / SETTINGS) as stream:
        stream.write((json.dumps(document, indent=2) + "\n").encode())


def _clean(request: DistillRequest) -> None:
    """Remove what killed processes left; to start over also what the earlier run wrote."""
    for stage in STAGES:
        if (request.folder / stage).is_dir():
            clean(request.folder / stage, request.overwrite)
    for name in (SETTINGS, WEIGHTS):
        remove_leftovers(request.folder / name)
        if request.overwrite:
            refuse_odd_target(request.folder / name)
            (request.folder / name).unlink(missing_ok=True)

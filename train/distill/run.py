"""One distillation from files to files: what `litemed-distill` does, for scripts.

RUN/settings.json        settings of both stages, and what was read
RUN/stage1, RUN/stage2   what `litemed-train` leaves of a run: log, weights, state, report
RUN/light.safetensors    the student, once both stages are done
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from litemed.models.adapter import fold_adapter
from litemed.models.checkpoint import Checkpoint, read_checkpoint
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import UsageError
from litemed.runtime.files import FolderLock, make_folder, sha256_of_file
from litemed.train.distill.config import STAGES, DistillConfig, stage_configs
from litemed.train.distill.images import Unlabelled, find_images
from litemed.train.distill.networks import build_student, check_teacher, write_student
from litemed.train.distill.trainer import Distiller
from litemed.train.errors import TrainingError
from litemed.train.loop import Session
from litemed.train.network import choose_device
from litemed.train.progress import Reporter
from litemed.train.run import (
    Request,
    Stop,
    base_record,
    check_inputs,
    check_request,
    check_settings,
    data_record,
    open_data,
    refuse_run,
)
from litemed.train.run_files import LAST, STATE, Inputs, clean, read_state, write_json
from litemed.train.toml_settings import as_tables

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
    stored = _read_settings(request.folder) if request.resume else {}
    start = [(stored["stages"], str(request.folder / SETTINGS))] if stored else []
    configs = stage_configs([*start, *request.changes])
    teacher = read_checkpoint(request.base)
    check_teacher(teacher)
    data, images = open_data(request.data), Unlabelled()
    inputs: Inputs = {"base": base_record(teacher), "data": data_record(request.data)}
    if request.adapter is not None:
        teacher = fold_adapter(teacher, request.adapter)
        inputs["adapter"] = {"file": request.adapter.name, "sha256": sha256_of_file(request.adapter)}
    if request.unlabelled is not None:
        images = find_images(request.unlabelled)
        folder = str(request.unlabelled)
        inputs["unlabelled"] = {"folder": folder, "images": len(images.paths), "sha256": images.sha256}
    if stored:
        for stage, before in stage_configs(start).items():
            check_settings(before, configs[stage], f"{stage}.")
        names = {"base": "BASE", "data": "DATA", "adapter": "--adapter", "unlabelled": "--unlabelled"}
        check_inputs(stored["inputs"], inputs, names)
    elif not request.overwrite:
        for stage in STAGES:
            refuse_run(request.folder / stage)
    _refuse_foreign(request)
    for problem in images.unreadable:
        reporter.line(f"warning: left out {problem}")
    device = choose_device(configs[STAGES[0]].hardware.device)
    make_folder(request.folder)
    with FolderLock(request.folder), Stop(request.stop_after_s) as stop:
        clean(request.folder, request.overwrite, (SETTINGS, WEIGHTS))
        for stage in STAGES:  # the first is there from the beginning: by it the settings are known as a run's
            make_folder(request.folder / stage)
            clean(request.folder / stage, request.overwrite)
        tables = {stage: as_tables(config) for stage, config in configs.items()}
        write_json(request.folder / SETTINGS, {"inputs": inputs, "stages": tables})
        session = Session(request.folder, inputs, device, reporter, stop.is_set)

        def run_stage(stage: str, config: DistillConfig) -> bool:
            folder = request.folder / stage
            state = read_state(folder) if (folder / STATE).exists() else None
            if state is not None and state.progress["epoch"] == config.run.epochs:
                return True
            reporter.line(f"{stage}: {config.run.epochs} epochs of {config.run.samples_per_epoch} views")
            student = _student(request.folder, stage, teacher, config)
            here = dataclasses.replace(session, folder=folder)
            trainer = Distiller(config, teacher, student, data, images.paths, here)
            if state is not None:
                trainer.resume(state)
            return trainer.run()

        finished = all(run_stage(stage, config) for stage, config in configs.items())
        if finished:
            student = read_checkpoint(request.folder / STAGES[-1] / LAST).model()
            write_student(request.folder / WEIGHTS, student, weights_digest(teacher.state))
    if stop.signalled and not finished:
        raise KeyboardInterrupt
    return finished


def _student(folder: Path, stage: str, teacher: Checkpoint, config: DistillConfig) -> Checkpoint:
    """Return the student that a stage starts from."""
    if stage == STAGES[0]:
        return build_student(teacher, config.run.seed)
    return read_checkpoint(folder / STAGES[0] / LAST)


def _refuse_foreign(request: DistillRequest) -> None:
    """Raise UsageError where a file that this would replace was written by no run, or is what it reads.

    A run is told by the folder of its first stage.
    """
    own = (request.folder / STAGES[0]).is_dir()
    read = {path.resolve() for path in (request.base, request.adapter) if path is not None}
    for path in (request.folder / WEIGHTS, request.folder / SETTINGS):
        if os.path.lexists(path) and (not own or path.resolve() in read):
            raise UsageError(f"{path}: exists, and no earlier run wrote it; choose another folder")


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings and inputs of the run in a folder. Raises TrainingError when there are none."""
    path = folder / SETTINGS
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, so that there is no run to resume; leave --resume out")
    try:
        stored = json.loads(path.read_bytes())
        return {"inputs": dict(stored["inputs"]), "stages": dict(stored["stages"])}
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise TrainingError(f"{path}: damaged, start over with --overwrite ({error})") from error

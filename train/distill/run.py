"""One distillation from files to files: what `litemed-distill` does, for scripts.

RUN/settings.json        settings of both stages, and what was read
RUN/stage1, RUN/stage2   what `litemed-train` leaves of a run: log, weights, state, report
RUN/light.safetensors    the student, once both stages are done

The default settings are those of the recipe, `train/recipes/light.toml`. Its tables hold for both stages,
those whose names begin with `stage1` or `stage2` for one.
"""

import dataclasses
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from litemed.models.checkpoint import read_checkpoint
from litemed.models.encoders import TINY_VIT
from litemed.models.lora_folding import fold_adapter
from litemed.models.weight_files import weights_digest
from litemed.runtime.command import tell_unread
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.files import make_folder
from litemed.train.config import Changes, updated
from litemed.train.distill.trainer import DistillConfig, Distiller, build_student
from litemed.train.distill.views import find_images
from litemed.train.loop import Session
from litemed.train.run import Request, carry_out, check_inputs, check_request, check_settings, open_inputs
from litemed.train.run_files import (
    LAST,
    STATE,
    Reporter,
    TrainingError,
    checkpoint_bytes,
    clean,
    read_state,
    write_bytes,
    write_json,
)

WEIGHTS: Final = "light.safetensors"
SETTINGS: Final = "settings.json"
STAGES: Final = ("stage1", "stage2")
FORMAT: Final = "litemed-distilled-1"


@dataclass(frozen=True)
class DistillRequest(Request):
    """What to distil, from what, and where to.

    base: the teacher. adapter: folded into it. unlabelled: a folder of images without labels. strict: refuse
    one in which something else lies, or an image that cannot be read.
    """

    adapter: Path | None = None
    unlabelled: Path | None = None
    strict: bool = False


def stage_configs(changes: Sequence[Changes]) -> dict[str, DistillConfig]:
    """Return the settings of each stage, given what differs from the recipe. Raises UsageError."""
    recipe = importlib.resources.files("litemed.train").joinpath("recipes/light.toml").read_text("utf-8")
    configs = dict.fromkeys(STAGES, DistillConfig())
    for tables, source in [(tomllib.loads(recipe), "light.toml"), *changes]:
        for stage, config in configs.items():
            own = tables.get(stage, {})
            if not isinstance(own, Mapping):
                raise UsageError(f"{source}: {stage} is a table of tables: write [{stage}.run] and the like")
            both = {name: table for name, table in tables.items() if name not in STAGES}
            configs[stage] = updated(updated(config, both, source), own, f"{source}: {stage}")
    for stage, config in configs.items():
        config.check(stage)
    return configs


def distill(request: DistillRequest, reporter: Reporter) -> bool:
    """Carry out both stages; returns whether they reached their end, otherwise they can be resumed.

    Signals and errors are as in `litemed.train.run.train`.
    """
    folder = request.folder
    check_request(request, folder / SETTINGS, folder / WEIGHTS, *(folder / stage / STATE for stage in STAGES))
    stored = _read_settings(folder / SETTINGS) if request.resume else {}
    start = [(stored["stages"], str(folder / SETTINGS))] if stored else []
    configs = stage_configs([*start, *request.changes])
    teacher = read_checkpoint(request.base, loralib_alpha=request.loralib_alpha)
    if teacher.encoder != TINY_VIT:
        raise UsageError(f"{teacher.file}: has the {teacher.encoder} encoder itself; distil from TinyViT's")
    (data, inputs), images = open_inputs(request, teacher), list[Path]()
    if request.adapter is not None:
        teacher = fold_adapter(teacher, request.adapter, loralib_alpha=request.loralib_alpha)
        sha256, alpha = (teacher.lora.sha256, teacher.lora.alpha) if teacher.lora else (None, None)
        inputs["adapter"] = {"file": request.adapter.name, "sha256": sha256, "alpha": alpha}
    for warning in teacher.warnings:
        reporter.line(f"warning: {warning}")
    if request.unlabelled is not None:
        images, digest, unreadable, rest = find_images(request.unlabelled)
        tell_unread(request.unlabelled, rest, request.strict, "no images", reporter.line)
        if unreadable and request.strict:
            raise InputError(unreadable[0])
        inputs["unlabelled"] = {"folder": str(request.unlabelled), "images": len(images), "sha256": digest}
        for problem in unreadable:
            reporter.line(f"warning: left out {problem}")
    if stored:
        for stage, before in stage_configs(start).items():
            check_settings(before, configs[stage], f"{stage}.")
        check_inputs(stored["inputs"], inputs)

    def run_stage(stage: str, session: Session) -> bool:
        config, here = configs[stage], folder / stage
        state = read_state(here) if (here / STATE).exists() else None
        if state is not None and state.progress["epoch"] == config.run.epochs:
            return True
        reporter.line(f"{stage}: {config.run.epochs} epochs of {config.run.samples_per_epoch} views")
        if stage == STAGES[0]:
            student = build_student(teacher, config.run.seed)
        else:
            student = read_checkpoint(folder / STAGES[0] / LAST)
        session = dataclasses.replace(session, folder=here)
        trainer = Distiller(config, teacher, student, data, images, session)
        if state is not None:
            trainer.resume(state)
        return trainer.run()

    def work(session: Session) -> bool:
        clean(folder, request.overwrite, (SETTINGS, WEIGHTS))
        for stage in STAGES:
            make_folder(folder / stage)
            clean(folder / stage, request.overwrite)
        tables = {stage: dataclasses.asdict(config) for stage, config in configs.items()}
        write_json(folder / SETTINGS, {"inputs": inputs, "stages": tables})
        if not all(run_stage(stage, session) for stage in STAGES):
            return False
        student = read_checkpoint(folder / STAGES[-1] / LAST).model()
        about = json.dumps({"format": FORMAT, "teacher": weights_digest(teacher.state)}, sort_keys=True)
        write_bytes(folder / WEIGHTS, checkpoint_bytes(student, {"litemed": about}))
        return True

    return carry_out(request, inputs, configs[STAGES[0]], reporter, work)


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the settings and inputs of a run. Raises TrainingError when there are none."""
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, so that there is no run to resume; leave --resume out")
    try:
        stored = json.loads(path.read_bytes())
        return {"inputs": dict(stored["inputs"]), "stages": dict(stored["stages"])}
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise TrainingError(f"{path}: damaged, start over with --overwrite ({error})") from error

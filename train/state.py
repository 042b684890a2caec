"""The state of a run, from which it goes on as if it had never stopped.

A file of tensors and plain containers, written whole or not at all, read without unpickling anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from litemed.runtime.files import atomic_write
from litemed.train.errors import TrainingError

FORMAT: Final = "litemed-state-4"
FILE: Final = "state.pt"


@dataclass(frozen=True)
class State:
    """All that a run needs to go on.

    config: the settings as tables (`litemed.train.tables.as_tables`). base: digest of the weights it started
    from. data: digest of the training data. model, optimizer, schedule: their state dicts. average: that of
    the moving average of the weights, None without one. progress: see `litemed.train.progress.Progress`.

    No random numbers: what is drawn follows from the seed and the step (see `litemed.train.examples`).
    """

    config: dict[str, Any]
    base: str
    data: str
    model: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    progress: dict[str, Any]


def write_state(folder: Path, state: State) -> None:
    """Replace the state in a run's folder. Raises OutputError when it cannot be written."""
    with atomic_write(folder / FILE) as stream:
        torch.save({"format": FORMAT, **vars(state)}, stream)


def read_state(folder: Path) -> State:
    """Return the state in a run's folder, on the CPU. Raises TrainingError when there is none to use."""
    path = folder / FILE
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, so that there is no run to resume; leave --resume out")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the restricted unpickler raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise TrainingError(f"{path}: damaged, start over with --overwrite ({reason})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise TrainingError(f"{path}: not the state of a run of this version; start over with --overwrite")
    try:
        return State(**content)
    except TypeError as error:
        raise TrainingError(f"{path}: incomplete, start over with --overwrite ({error})") from error

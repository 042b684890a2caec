"""The state of a run, from which it goes on as if it had never stopped.

A file of tensors and plain containers, written whole or not at all, read without unpickling anything else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from litemed.runtime.files import atomic_write
from litemed.train.errors import TrainingError

FORMAT: Final = "litemed-state-3"
FILE: Final = "state.pt"


@dataclass(frozen=True)
class State:
    """All that a run needs to go on.

    config: the settings as tables (`litemed.train.config.as_tables`). base: digest of the weights it started
    from, None from scratch. data: digest of the training data. model, optimizer, schedule: their state dicts.
    average: that of the moving average of the weights, None without one. progress: see
    `litemed.train.progress.Progress`. random: see `random_state`.
    """

    config: dict[str, Any]
    base: str | None
    data: str
    model: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    progress: dict[str, Any]
    random: dict[str, Any]


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


def random_state() -> dict[str, Any]:
    """Return where the random numbers of Python, NumPy, PyTorch and the GPU are, in plain containers.

    Samples do not depend on them (see `litemed.train.dataset`); layers that draw, such as dropout, would.
    """
    version, numbers, gauss = random.getstate()
    others = np.random.get_state(legacy=False)  # noqa: NPY002 (what code beside ours may draw from)
    keys = torch.from_numpy(others["state"]["key"].astype(np.int64))  # PyTorch's files hold no NumPy arrays
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**others, "state": {**others["state"], "key": keys}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers of `random_state`; those of GPUs only if there are as many as then."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    others = state["numpy"]
    keys = others["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**others, "state": {**others["state"], "key": keys}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

"""What a run leaves in its folder, each file written whole or not at all, and what it says.

    log.csv                                              a row for each epoch, see `write_log`
    run.json                                             what it was told, what it ran on, how it ended
    state.pt                                             what it goes on from
    best.safetensors, last.safetensors                   adapters only (under 1 MB at rank 4), or all weights
    best.decoder.safetensors, last.decoder.safetensors   the mask decoder trained with the adapters

Adapters name the digest of their base and of their decoder; they go to `litemed-export BASE --adapter`. With
`--tune decoder` or `all` the files hold the whole network in the published layout instead.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import torch
from safetensors.torch import save
from tqdm import tqdm

from litemed.models.adapter import adapter_bytes, decoder_path, decoder_tensors
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import LitemedError
from litemed.runtime.files import atomic_write, refuse_odd_target, remove_leftovers
from litemed.train.config import Config
from litemed.train.network import WITH_LORA, TrainedNetwork

LOG, REPORT, STATE = "log.csv", "run.json", "state.pt"
BEST, LAST = "best.safetensors", "last.safetensors"
FORMAT: Final = "litemed-state-5"
Inputs = dict[str, dict[str, Any]]
"""What a run reads: base, data and the like, by name; each with its `sha256`."""

_RESULTS = (LOG, *(name for one in (BEST, LAST) for name in (one, decoder_path(Path(one)).name)))
_FIRST = ("epoch", "samples", "lr", "loss")
_REASONS_SHOWN = 20  # lines about slices that could not be used, in a run; beyond them they are only counted
_PACKAGES: Final = ("litemed", "numpy", "opencv-python-headless", "safetensors", "scipy", "torch")


class TrainingError(LitemedError):
    """A training run cannot start, go on or be resumed."""


@dataclass
class Progress:
    """Counters of a run; written to its state.

    epoch, step: what is done: whole epochs, and batches of the epoch under way. best: the highest score so
    far, in which epoch. totals: sums over this epoch's steps, see `litemed.train.loop.Trainer`; empty before
    the first step. history: one row for each epoch done, see `write_log`.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    totals: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """All that a run needs to go on; what is drawn at random follows from the seed and the step.

    config: the settings as tables. inputs: what it reads. model, optimizer, schedule: their state dicts.
    average: that of the moving average of the weights, None without one. progress: the fields of `Progress`.
    """

    config: dict[str, Any]
    inputs: Inputs
    model: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    progress: dict[str, Any]


def write_state(folder: Path, state: State) -> None:
    """Replace the state in a run's folder."""
    with atomic_write(folder / STATE) as stream:
        torch.save({"format": FORMAT, **vars(state)}, stream)


def read_state(folder: Path) -> State:
    """Return the state in a run's folder, on the CPU. Raises TrainingError when there is none to use.

    Nothing but tensors and plain containers is unpickled.
    """
    path = folder / STATE
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, so that there is no run to resume; leave --resume out")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format", None) != FORMAT:
            raise ValueError("not the state of a run of this version")
        return State(**content)
    except Exception as error:  # a damaged file can make the restricted unpickler raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise TrainingError(f"{path}: cannot be used, start over with --overwrite ({reason})") from error


def write_log(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the log: CSV with a column for every key of `rows`, empty where a row does not have it.

    A row is an epoch, 0 for the weights that the run starts from: `samples` (images that counted), `lr`, mean
    losses, `skipped` slices, `seconds`, `wait_share` (of them, for the loader), `dsc` and `dsc_MODALITY`, and
    of whole volumes `dsc_volumes` and `dsc_volumes_MODALITY`.
    """
    names = list(dict.fromkeys([*_FIRST, *(name for row in reversed(rows) for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_bytes(folder / LOG, text.getvalue().encode())


def write_report(
    folder: Path, status: str, config: Config, inputs: Inputs, device: torch.device, progress: Progress
) -> None:
    """Replace the report of a run. status: running, stopped (to be resumed), finished or failed."""
    place = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    document = {
        "status": status,
        "config": asdict(config),
        "inputs": inputs,
        "device": place,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "epochs_done": progress.epoch,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
    }
    write_json(folder / REPORT, document)


def write_weights(path: Path, network: TrainedNetwork, rank: int, base_digest: str) -> None:
    """Replace the weights at `path`, and the mask decoder beside it where it was tuned with adapters.

    rank: of the adapters. base_digest: `weights_digest` of the weights that they were trained on.
    """
    model = network.model
    if network.tune not in WITH_LORA:
        write_bytes(path, checkpoint_bytes(model))
        return
    digest = None
    if network.tune == "lora+decoder":
        decoder = decoder_tensors(model.state_dict())
        digest = weights_digest(decoder)
        # First: an adapter whose decoder is not there yet is refused, so a kill in between does no harm.
        write_bytes(decoder_path(path), save(decoder))
    write_bytes(path, adapter_bytes(model, rank, base_digest, digest))


def checkpoint_bytes(model: torch.nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """Return a whole network as a file of safetensors, as `litemed-export` and `litemed-train` read it."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return save(state, metadata)


def clean(folder: Path, overwrite: bool, names: Sequence[str] = (STATE, REPORT, *_RESULTS)) -> None:
    """Remove what killed processes left; to start over also what the earlier run wrote, its state first."""
    for name in names:
        remove_leftovers(folder / name)
        if overwrite:
            refuse_odd_target(folder / name)
            (folder / name).unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a JSON file."""
    write_bytes(path, (json.dumps(document, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file."""
    with atomic_write(path) as stream:
        stream.write(content)


class Reporter:
    """Prints what a run does: lines that stay, and bars on a terminal.

    stream: None prints nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._reasons_left = _REASONS_SHOWN

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self._stream is not None:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def skipped(self, reasons: Sequence[str]) -> None:
        """Warn of slices that could not be used, of the first of them in a run."""
        for reason in reasons[: self._reasons_left]:
            self.line(f"warning: skipped {reason}")
        self._reasons_left -= min(self._reasons_left, len(reasons))

    def bar(self, title: str, steps: int, done: int = 0) -> tqdm[Any]:
        """Return a bar of `steps`, of which some are done; it shows on a terminal only."""
        hidden = self._stream is None or not self._stream.isatty()
        return tqdm(desc=title, total=steps, initial=done, file=self._stream, disable=hidden, leave=False)

"""`run.json`: what a run was told, what it ran on, how it ended."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from litemed.models.checkpoint import Checkpoint
from litemed.runtime.files import atomic_write, sha256_of_file
from litemed.train.config import Config
from litemed.train.distributed import Processes
from litemed.train.progress import Progress
from litemed.train.tables import as_tables

FILE: Final = "run.json"
_PACKAGES: Final = ("litemed", "numpy", "opencv-python-headless", "safetensors", "scipy")


def write_report(
    folder: Path,
    status: str,
    config: Config,
    base: Checkpoint,
    data: Path,
    data_digest: str,
    processes: Processes,
    progress: Progress,
    files: Sequence[str],
) -> None:
    """Replace the report of a run.

    status: "running", "stopped" (to be resumed), "finished" or "failed". base: the weights it started from.
    data, data_digest: the prepared folder and the digest of its manifest. files: written so far, by name.

    Raises OutputError when it cannot be written.
    """
    document: dict[str, Any] = {
        "status": status,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": as_tables(config),
        "base": {"file": base.file, "sha256": base.sha256, "layout": base.layout, "encoder": base.encoder},
        "data": {"folder": str(data), "manifest_sha256": data_digest},
        "device": _device_name(processes),
        "processes": processes.world,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "epochs_done": progress.epoch,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "skipped_slices": sum(row["skipped"] for row in progress.history) + progress.skipped,
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for name in files
            if (path := folder / name).is_file()
        },
    }
    with atomic_write(folder / FILE) as stream:
        stream.write((json.dumps(document, indent=2) + "\n").encode())


def _device_name(processes: Processes) -> str:
    if processes.device.type == "cuda":
        return torch.cuda.get_device_name(processes.device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"

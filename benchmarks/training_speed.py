"""How many samples a second the loader makes, and how many a training step takes.

    python -m litemed.benchmarks.training_speed --data DATA -o results/training_speed

Three things are timed in turns, the same number of batches each: the loader alone, the step alone (on one
batch that stays on the device), and both together as in a run. Where they are run together as fast as the
step alone, loading keeps up; the share of time that the device waits is 1 - alone / together. Without --data
drawn images are prepared first. Weights are drawn at random: they do not change the time.

Writes OUT.json and OUT.txt and prints the latter.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch

from litemed.benchmarks.phantoms import draw_image
from litemed.export.checkpoint import untrained_checkpoint
from litemed.runtime.errors import LitemedError
from litemed.train.config import Config, updated
from litemed.train.dataset import Batch
from litemed.train.distributed import joined
from litemed.train.loop import Data, Trainer, uses_bfloat16
from litemed.train.prepare.pipeline import prepare_slices
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import Slices
from litemed.train.progress import Reporter

DRAWN_IMAGES = 64


@dataclass(frozen=True)
class Speeds:
    """Seconds a batch, one value for each turn, of each of the three things; see the module."""

    loader_s: list[float]
    step_s: list[float]
    together_s: list[float]

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the device waits for the loader, 0 to 1, by the medians."""
        return max(0.0, 1 - statistics.median(self.step_s) / statistics.median(self.together_s))


def measure(trainer: Trainer, device: torch.device, batches: int, turns: int) -> Speeds:
    """Time `batches` batches of each kind in each of `turns` turns, after one batch of each to warm up."""
    endless = _endless(trainer)
    resident = next(endless).to(device)
    speeds = Speeds([], [], [])

    def load() -> None:
        next(endless)

    def step() -> None:
        trainer.step(resident)

    def both() -> None:
        trainer.step(next(endless).to(device))

    for work in (step, both):
        _time(work, 1, device)
    for _ in range(turns):
        # What the workers made ahead while the others were timed would be counted as the loader's.
        for _ in range(_made_ahead(trainer)):
            load()
        speeds.loader_s.append(_time(load, batches, device))
        speeds.step_s.append(_time(step, batches, device))
        for _ in range(_made_ahead(trainer)):
            load()
        speeds.together_s.append(_time(both, batches, device))
    return speeds


def _endless(trainer: Trainer) -> Iterator[Batch]:
    for epoch in itertools.count():
        trainer.batches.start_at(epoch, 0)
        yield from trainer.loader


def _made_ahead(trainer: Trainer) -> int:
    loader = trainer.loader
    return loader.num_workers * (loader.prefetch_factor or 0)


def _time(work: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Return the mean seconds of one call, the device's queue emptied before and after."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw_data(folder: pathlib.Path) -> pathlib.Path:
    """Prepare drawn images, half CT and half US, below `folder`; returns the prepared folder."""
    pairs = []
    for number in range(DRAWN_IMAGES):
        phantom = draw_image(512, 512, 1 + number % 9, seed=number)
        image = phantom.image if number % 2 else np.ascontiguousarray(phantom.image[..., 0])
        path = folder / f"{number}.npz"
        np.savez(path, imgs=image, gts=phantom.labels)
        pairs.append(Pair(["CT", "US"][number % 2], "drawn", path.stem, "train", "instance", path, None))
    pairs.sort(key=lambda pair: pair.modality)
    prepare_slices(Found(tuple(pairs)), folder / "data", Settings())
    return folder / "data"


def report(config: Config, speeds: Speeds, device: torch.device, workers: int) -> dict[str, Any]:
    """Return everything measured, and on what, as plain values."""

    def rates(seconds: list[float]) -> dict[str, float]:
        each = sorted(config.run.batch_size / value for value in seconds)
        return {"median": statistics.median(each), "lowest": each[0], "highest": each[-1]}

    on_gpu = device.type == "cuda"
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "settings": {
            "batch_size": config.run.batch_size,
            "size": config.run.size,
            "boxes_per_image": config.prompts.per_image,
            "tune": config.run.tune,
            "precision": "bfloat16" if uses_bfloat16(config, device) else "float32",
            "workers": workers,
            "augmentation": dataclasses.asdict(config.augmentation),
        },
        "samples_per_second": {
            "loader alone": rates(speeds.loader_s),
            "step alone": rates(speeds.step_s),
            "together": rates(speeds.together_s),
        },
        "waiting_share": speeds.waiting_share,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }


def as_text(result: dict[str, Any]) -> str:
    """Return the report as a small table."""
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"PyTorch {result['versions']['torch']}",
        f"batch {settings['batch_size']} at {settings['size']} pixels, up to "
        f"{settings['boxes_per_image']} boxes an image, {settings['tune']}, {settings['precision']}, "
        f"{settings['workers']} loader processes",
        "",
        "| samples a second | median | lowest | highest |",
        "|---|---:|---:|---:|",
    ]
    for name, rate in result["samples_per_second"].items():
        lines.append(f"| {name} | {rate['median']:.1f} | {rate['lowest']:.1f} | {rate['highest']:.1f} |")
    lines += ["", f"the device waits for the loader {result['waiting_share']:.1%} of the time"]
    if result["gpu_peak_bytes"]:
        lines.append(f"peak GPU memory {result['gpu_peak_bytes'] / 2**30:.1f} GiB")
    return "\n".join(lines) + "\n"


@click.command()
@click.option(
    "--data", type=click.Path(path_type=pathlib.Path), help="Prepared slices; drawn ones by default."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=pathlib.Path), help="Write OUTPUT.json and OUTPUT.txt."
)
@click.option("--batches", default=10, show_default=True, help="Batches of each kind in a turn.")
@click.option("--turns", default=3, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="As of litemed-train.")
def main(
    data: pathlib.Path | None,
    output: pathlib.Path | None,
    batches: int,
    turns: int,
    settings: tuple[str, ...],
) -> None:
    """Measure the speed of loading and of training."""
    try:
        result = run(data, batches, turns, settings)
    except LitemedError as error:
        raise click.ClickException(str(error)) from error
    text = as_text(result)
    click.echo(text, nl=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        output.with_suffix(".txt").write_text(text)


def run(data: pathlib.Path | None, batches: int, turns: int, settings: tuple[str, ...]) -> dict[str, Any]:
    """Measure with the settings that differ from those of litemed-train.

    Raises LitemedError as litemed-train does.
    """
    from litemed.train.config import parse_setting

    config = Config()
    for text in settings:
        config = updated(config, parse_setting(text), f"--set {text}")
    with tempfile.TemporaryDirectory() as temporary, joined(config.hardware.device) as processes:
        folder = data or draw_data(pathlib.Path(temporary))
        slices = Slices.open(folder, split="train")
        base = None if config.run.tune == "all" else untrained_checkpoint()
        trainer = Trainer(
            config,
            base,
            Data(slices, slices, ""),
            pathlib.Path(temporary),
            processes,
            Reporter(None),
        )
        speeds = measure(trainer, processes.device, batches, turns)
        return report(config, speeds, processes.device, trainer.loader.num_workers)


if __name__ == "__main__":
    main()

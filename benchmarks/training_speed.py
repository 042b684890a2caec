"""How many samples a second the loader makes, and how many a training step takes.

    python -m litemed.benchmarks.training_speed --data DATA -o results/training_speed

Three things are timed in turns: the loader alone, the step alone (on batches that stay on the device), and
both together as in a run. Loading keeps up where both together are as fast as the step alone. Two shares say
by how much it does not:

- waited: of the time of both together, what the training process spends waiting for a batch. On a CPU this
  is when nothing is computed; that both together are slower than the step alone has another reason there, as
  the loader's processes take their time from the same cores.
- idle, on a GPU only: 1 - alone / together, since there the training process runs ahead of the GPU and may
  wait for a batch while the GPU is still busy.

Without --data drawn images are prepared first. Weights are drawn at random: they do not change the time.

Writes OUT.json and OUT.md and prints the latter.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
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
from litemed.benchmarks.table4.machine import Machine, load_average
from litemed.export.checkpoint import untrained_checkpoint
from litemed.runtime.command import run_command
from litemed.runtime.errors import InputError
from litemed.runtime.files import atomic_write, make_folder
from litemed.train.config import TUNE_ALL, Config
from litemed.train.dataset import Batch, Data
from litemed.train.distributed import joined
from litemed.train.loader import timed
from litemed.train.loop import Trainer
from litemed.train.network import uses_bfloat16
from litemed.train.prepare.pipeline import prepare_slices
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import Slices
from litemed.train.progress import Reporter
from litemed.train.tables import parse_setting, updated

DRAWN_IMAGES = 64

_ONE_EPOCH = 10**6
"""Samples of an epoch, so that none ends while something is timed: real epochs are long, too."""


@dataclass(frozen=True)
class Speeds:
    """Seconds a batch, one value for each turn: of the loader, of the step, and of both together.

    waited_s: how much of the last the training process waits for the batch.
    """

    loader_s: list[float]
    step_s: list[float]
    together_s: list[float]
    waited_s: list[float]

    @property
    def waited_share(self) -> float:
        """Share of the time of both together spent waiting for a batch, 0 to 1."""
        return sum(self.waited_s) / sum(self.together_s)

    @property
    def idle_share(self) -> float:
        """Share of the time of both together that the step alone would not take, 0 to 1, by the medians."""
        return max(0.0, 1 - statistics.median(self.step_s) / statistics.median(self.together_s))


def measure(trainer: Trainer, device: torch.device, batches: int, loads: int, turns: int) -> Speeds:
    """Time `loads` batches of the loader and `batches` of step and both, in each of `turns` turns.

    Before them one batch of each warms up.
    """
    waiting = timed(_endless(trainer))
    # As many as are timed together, lest a step on few boxes be compared with steps on many.
    resident = [next(waiting)[0].to(device) for _ in range(batches)]
    steps = itertools.cycle(resident)
    speeds = Speeds([], [], [], [])
    waits: list[float] = []

    def load() -> None:
        next(waiting)

    def step() -> None:
        trainer.step(next(steps))

    def both() -> None:
        batch, waited = next(waiting)
        waits.append(waited)
        trainer.step(batch.to(device))

    for work in (step, both):
        _time(work, 1, device)
    for _ in range(turns):
        # What the workers made ahead while the others were timed would be counted as the loader's.
        for _ in range(_made_ahead(trainer)):
            load()
        speeds.loader_s.append(_time(load, loads, device))
        speeds.step_s.append(_time(step, batches, device))
        for _ in range(_made_ahead(trainer)):
            load()
        waits.clear()
        speeds.together_s.append(_time(both, batches, device))
        speeds.waited_s.append(statistics.fmean(waits))
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


def report(config: Config, speeds: Speeds, device: torch.device, workers: int, load: float) -> dict[str, Any]:
    """Return everything measured, and on what, as plain values.

    workers: the loader's processes. load: average load of the machine before anything was timed.
    """

    def rates(seconds: list[float]) -> dict[str, float]:
        each = sorted(config.run.batch_size / value for value in seconds)
        return {"median": statistics.median(each), "lowest": each[0], "highest": each[-1]}

    on_gpu = device.type == "cuda"
    return {
        "machine": dataclasses.asdict(Machine.current())
        | {
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
            "load_average": load,
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
        "seconds_per_batch": dataclasses.asdict(speeds),
        "waited_share": speeds.waited_share,
        "idle_share": speeds.idle_share if on_gpu else None,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }


def as_markdown(result: dict[str, Any], notes: tuple[str, ...]) -> str:
    """Return the report as a page, with `notes`, a line each, on top."""
    machine, settings = result["machine"], result["settings"]
    processors = ", ".join(filter(None, (machine["gpu"], machine["cpu"])))
    lines = [
        "# Speed of loading and training",
        "",
        *(f"- {note}" for note in notes),
        f"- Machine: {processors}, "
        f"{machine['cores']} cores ({' '.join(machine['features'])}), "
        f"{machine['memory_gib']:g} GiB; Python {machine['python']}, PyTorch "
        f"{machine['versions']['torch']}, threads: {machine['threads']}.",
        f"- Load average before: {machine['load_average']:g} (an idle machine's is below 1).",
        f"- Batches of {settings['batch_size']} at {settings['size']} x {settings['size']}, up to "
        f"{settings['boxes_per_image']} boxes an image, tuning {settings['tune']} in "
        f"{settings['precision']}, {settings['workers']} loader processes.",
        "",
        "| Samples a second | Median | Lowest | Highest |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, rate in result["samples_per_second"].items():
        lines.append(
            f"| {name} | {_short(rate['median'])} | {_short(rate['lowest'])} | {_short(rate['highest'])} |"
        )
    lines += [
        "",
        f"Both together, the training process waits for a batch {result['waited_share']:.2%} of the time.",
    ]
    if result["idle_share"] is not None:
        lines += [
            f"The GPU idles {result['idle_share']:.1%} of it; its peak memory is "
            f"{result['gpu_peak_bytes'] / 2**30:.1f} GiB."
        ]
    return "\n".join(lines) + "\n"


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


@click.command()
@click.option(
    "--data", type=click.Path(path_type=pathlib.Path), help="Prepared slices; drawn ones by default."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=pathlib.Path), help="Write OUTPUT.json and OUTPUT.md."
)
@click.option(
    "--batches",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Batches of step and of both in a turn.",
)
@click.option(
    "--loads",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Batches of the loader alone in a turn.",
)
@click.option("--turns", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="As of litemed-train.")
@click.option("--note", "notes", multiple=True, help="A line to print above the table; may be repeated.")
def main(
    data: pathlib.Path | None,
    output: pathlib.Path | None,
    batches: int,
    loads: int,
    turns: int,
    settings: tuple[str, ...],
    notes: tuple[str, ...],
) -> None:
    """Measure the speed of loading and of training."""

    def work() -> None:
        result = run(data, batches, loads, turns, settings)
        text = as_markdown(result, notes)
        click.echo(text, nl=False)
        if output is not None:
            make_folder(output.parent)
            for suffix, content in ((".json", json.dumps(result, indent=2) + "\n"), (".md", text)):
                with atomic_write(output.with_name(output.name + suffix)) as stream:
                    stream.write(content.encode())

    run_command(work, debug=False, interrupted="nothing was written")


def run(
    data: pathlib.Path | None, batches: int, loads: int, turns: int, settings: tuple[str, ...]
) -> dict[str, Any]:
    """Measure with the settings that differ from those of litemed-train.

    Raises LitemedError as litemed-train does.
    """
    config = updated(Config(), {"run": {"samples_per_epoch": _ONE_EPOCH}}, "benchmark")
    for text in settings:
        config = updated(config, parse_setting(text), f"--set {text}")
    load = load_average()
    with tempfile.TemporaryDirectory() as temporary, joined(config.hardware.device) as processes:
        folder = data or draw_data(pathlib.Path(temporary))
        slices = Slices.open(folder, split="train")
        if not len(slices):
            raise InputError(f'{folder}: no training slices; prepare data of the split "train"')
        base = None if config.run.tune == TUNE_ALL else untrained_checkpoint()
        trainer = Trainer(
            config,
            base,
            Data(slices, slices, ""),
            pathlib.Path(temporary),
            processes,
            Reporter(None),
        )
        speeds = measure(trainer, processes.device, batches, loads, turns)
        return report(config, speeds, processes.device, trainer.loader.num_workers, load)


if __name__ == "__main__":
    main()

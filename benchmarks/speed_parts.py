"""Time the parts of one contender's work in this process, and print their seconds as a line of JSON.

    python -m litemed.benchmarks.speed_parts published CHECKPOINT
    python -m litemed.benchmarks.speed_parts bundle BUNDLE --engine openvino --precision float32

- encoder: one network input to its embedding;
- decoder: boxes on one embedding, seconds per box (published: one after the other);
- slice: a volume of one 512 x 512 slice to its label map (published: encoded anew for every box).

The first run of each is not counted; of several that are, the median is printed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

import litemed.runtime
from litemed.benchmarks.phantoms import draw_volume
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.command import run_command

BOXES = (1, 6)
_RUNS = 3


def time_parts(
    encode: Callable[[np.ndarray], object],
    decode: Callable[[np.ndarray], object],
    segment: Callable[[Case], object],
    size: int,
) -> dict[str, float]:
    """Return the seconds of each part, always of the same drawn inputs.

    `encode` takes a network input (1, 3, size, size) float32 in [0, 1], `decode` boxes (N, 4) float32, x0 y0
    x1 y1 in pixels of the network's input, `segment` a volume of one slice.
    """
    rng = np.random.default_rng(0)
    image = rng.random((1, 3, size, size), np.float32)
    corner = rng.integers(0, size // 2, (max(BOXES), 2))
    sides = rng.integers(8, size // 2, (max(BOXES), 2))
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    found = {"encoder": _seconds(encode, image, _RUNS)}
    for count in BOXES:
        found[_name("decoder", count)] = _seconds(decode, boxes[:count], _RUNS) / count
    for count in BOXES:
        phantom = draw_volume(1, 512, 512, count)
        case = Case("slice", phantom.image, Boxes.parse(phantom.boxes, phantom.image.shape))
        found[_name("slice", count)] = _seconds(segment, case, 1)
    return found


def time_published(checkpoint: Path, threads: int | None) -> dict[str, float]:
    """Time LiteMedSAM in eager PyTorch, float32; see `read_checkpoint` for the errors."""
    import torch

    from litemed.benchmarks.table4.baseline import Baseline
    from litemed.models.checkpoint import read_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    model = read_checkpoint(checkpoint).model()
    with torch.no_grad():
        embedding = model.encode(torch.zeros(1, 3, model.size, model.size))
        return time_parts(
            lambda image: model.encode(torch.from_numpy(image)),
            lambda boxes: [model.decode(embedding, one) for one in torch.from_numpy(boxes).split(1)],
            Baseline(model).segment,
            model.size,
        )


def time_bundle(folder: Path, engine: str, precision: str, threads: int | None) -> dict[str, float]:
    """Time a bundle; see `litemed.runtime.load` for the errors."""
    segmenter = litemed.runtime.load(folder, engine=engine, precision=precision, threads=threads)
    size, loaded = segmenter.bundle.manifest.input_size, segmenter.engine
    embedding = loaded.encode(np.zeros((1, 3, size, size), np.float32))
    return time_parts(loaded.encode, lambda boxes: loaded.decode(embedding, boxes), segmenter.run, size)


def _name(part: str, count: int) -> str:
    return f"{part}, {count} box" + ("es" if count > 1 else "")


def _seconds(work: Callable[[Any], object], argument: object, runs: int) -> float:
    work(argument)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work(argument)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@click.command()
@click.argument("kind", type=click.Choice(["published", "bundle"]))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--engine", default="auto")
@click.option("--precision", default="exact")
@click.option("--threads", type=click.IntRange(1))
def main(kind: str, model: Path, engine: str, precision: str, threads: int | None) -> None:
    """Load MODEL, time its parts and print them."""

    def work() -> None:
        if kind == "published":
            found = time_published(model, threads)
        else:
            found = time_bundle(model, engine, precision, threads)
        click.echo(json.dumps(found))

    run_command(work, debug=False, interrupted="nothing is kept")


if __name__ == "__main__":
    main()

"""A process that loads one contender and then times parts of its work when told to.

    python -m litemed.benchmarks.ratios.worker published CHECKPOINT
    python -m litemed.benchmarks.ratios.worker bundle BUNDLE --engine openvino --precision float32

After loading it prints {"ready": SECONDS}. For each line {"part": NAME, "boxes": N} on its standard input it
does that part once and prints {"seconds": ...}, or {"error": LINE}. Parts:

- encoder: one network input to its embedding;
- decoder: N boxes on one embedding (published: one after the other), seconds per box;
- slice: a volume of one 512 x 512 slice with N boxes to its label map (published: encoded anew per box).

Published is eager PyTorch in float32, one box at a time. The others run through litemed's own engines and
segmenter. Every contender has a process of its own, so that the threads of one never spin into the time of
another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from litemed.benchmarks.phantoms import draw_volume
from litemed.benchmarks.table4.serving import Handler, serve
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case

SLICE_SIDE = 512

Part = Callable[[int], float]


def sample_input(size: int) -> np.ndarray:
    """Return a network input (1, 3, size, size) float32 in [0, 1], always the same."""
    return np.random.default_rng(0).random((1, 3, size, size), np.float32)


def sample_boxes(count: int, size: int) -> np.ndarray:
    """Return boxes (count, 4) float32 within the network's input, always the same."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, size // 2, (count, 2))
    return np.concatenate([corner, corner + rng.integers(8, size // 2, (count, 2))], axis=1).astype(
        np.float32
    )


def sample_slice(count: int) -> Case:
    """Return a volume of one slice with `count` boxes, always the same."""
    phantom = draw_volume(1, SLICE_SIDE, SLICE_SIDE, count)
    return Case("slice", phantom.image, Boxes.parse(phantom.boxes, phantom.image.shape))


def load_published(checkpoint: Path, threads: int | None) -> dict[str, Part]:
    """Return the parts of the published procedure; see `read_checkpoint` for the errors."""
    import torch

    from litemed.benchmarks.table4.baseline import Baseline
    from litemed.benchmarks.table4.stages import StageClock
    from litemed.models.checkpoint import read_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    model = read_checkpoint(checkpoint).model()
    baseline = Baseline(model)
    image = torch.from_numpy(sample_input(model.size))
    with torch.no_grad():
        embedding = model.encode(image)

    def encode(_: int) -> float:
        with torch.no_grad():
            return _timed(lambda: model.encode(image))

    def decode(count: int) -> float:
        prompts = torch.from_numpy(sample_boxes(count, model.size)).split(1)
        with torch.no_grad():
            return _timed(lambda: [model.decode(embedding, one) for one in prompts]) / count

    def segment(count: int) -> float:
        case = sample_slice(count)
        return _timed(lambda: baseline.segment(case, StageClock()))

    return {"encoder": encode, "decoder": decode, "slice": segment}


def load_bundle(folder: Path, engine: str, precision: str, threads: int | None) -> dict[str, Part]:
    """Return the parts of a bundle; see `litemed.runtime.load` for the errors."""
    import litemed.runtime

    segmenter = litemed.runtime.load(folder, engine=engine, precision=precision, threads=threads)
    size, loaded = segmenter.bundle.manifest.input_size, segmenter.engine
    image = sample_input(size)
    embedding = loaded.encode(image)

    def decode(count: int) -> float:
        prompts = sample_boxes(count, size)
        return _timed(lambda: loaded.decode(embedding, prompts)) / count

    def segment(count: int) -> float:
        case = sample_slice(count)
        return _timed(lambda: segmenter.run(case))

    return {"encoder": lambda _: _timed(lambda: loaded.encode(image)), "decoder": decode, "slice": segment}


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.argument("kind", type=click.Choice(["published", "bundle"]))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--engine", default="auto", show_default=True)
@click.option("--precision", default="exact", show_default=True)
@click.option("--threads", type=click.IntRange(1))
def main(kind: str, model: Path, engine: str, precision: str, threads: int | None) -> None:
    """Load MODEL, then time the parts that are named on the standard input."""

    def handler() -> Handler:
        if kind == "published":
            parts = load_published(model, threads)
        else:
            parts = load_bundle(model, engine, precision, threads)
        return lambda request: {"seconds": parts[request["part"]](request["boxes"])}

    serve(handler)


if __name__ == "__main__":
    main()

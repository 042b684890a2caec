"""One contender's work, in this process: segment a case, or time the parts and print them as a line of JSON.

    python -m litemed.benchmarks.worker CASE -o OUT --checkpoint CHECKPOINT   # the published procedure
    python -m litemed.benchmarks.worker CASE -o OUT --model BUNDLE            # one box decoded at a time
    python -m litemed.benchmarks.worker --model BUNDLE --engine openvino      # the parts

But for one box at a time all is that of litemed-run by the paper's method: the same reading, merging and
writing. The parts are

- encoder: one network input to its embedding;
- decoder: boxes on one embedding, seconds per box (published: one after the other);
- slice: a volume of one 512 x 512 slice to its label map (published: encoded anew for every box).

The first run of each is not counted; of several that are, the median is printed.
"""

from __future__ import annotations

import json
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import litemed.runtime
from litemed.runtime.command import run_command
from litemed.runtime.errors import LitemedError

if TYPE_CHECKING:
    from litemed.runtime.case import Case
    from litemed.runtime.engines.protocol import Float
    from litemed.runtime.segmenter import Segmenter

BOXES = {1: "1 box", 6: "6 boxes"}
_RUNS = 3
_PATH = click.Path(path_type=Path)


def run_published(checkpoint: Path, threads: int | None, case: Path | None, output: Path | None) -> None:
    """Segment a case with the published procedure, or time it."""
    import torch

    from litemed.benchmarks.table4.baseline import Baseline
    from litemed.models.checkpoint import read_checkpoint
    from litemed.runtime.files import make_folder
    from litemed.runtime.inputs.cases import read_case

    if threads is not None:
        torch.set_num_threads(threads)
    model = read_checkpoint(checkpoint).model()
    baseline = Baseline(model)
    if case is not None and output is not None:
        make_folder(output)
        np.savez_compressed(output / f"{case.stem}.npz", segs=baseline.segment(read_case(case)))
        return
    with torch.no_grad():
        embedding = model.encode(torch.zeros(1, 3, model.size, model.size))
        time_parts(
            lambda image: model.encode(torch.from_numpy(image)),
            lambda boxes: [model.decode(embedding, one) for one in torch.from_numpy(boxes).split(1)],
            baseline.segment,
            model.size,
        )


def run_one_by_one(segmenter: Segmenter, case: Path, output: Path) -> None:
    """Segment a case by the paper's method with one box decoded at a time."""
    from litemed.runtime.folder import run_cases
    from litemed.runtime.method import Method

    together = segmenter.engine.decode

    def decode(embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        decoded = [together(embedding, boxes[[i]], decoder) for i in range(len(boxes))]
        return np.concatenate([logits for logits, _ in decoded]), np.concatenate([iou for _, iou in decoded])

    segmenter.engine.decode = decode  # type: ignore[method-assign]
    (report,) = run_cases([case], output, segmenter, method=Method.of_paper())
    if report.error:
        raise LitemedError(report.error)


def time_parts(
    encode: Callable[[Float], object],
    decode: Callable[[Float], object],
    segment: Callable[[Case], object],
    size: int,
) -> None:
    """Print the seconds of each part, always of the same drawn inputs.

    `encode` takes a network input, `decode` boxes (N, 4), `segment` a volume of one slice.
    """
    from litemed.benchmarks.phantoms import draw_volume
    from litemed.runtime.boxes import Boxes
    from litemed.runtime.case import Case

    rng = np.random.default_rng(0)
    image = rng.random((1, 3, size, size), np.float32)
    corner = rng.integers(0, size // 2, (max(BOXES), 2))
    sides = rng.integers(8, size // 2, (max(BOXES), 2))
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    found = {"encoder": _seconds(encode, image, _RUNS)}
    for count, title in BOXES.items():
        found[f"decoder, {title}"] = _seconds(decode, boxes[:count], _RUNS) / count
    for count, title in BOXES.items():
        phantom = draw_volume(1, 512, 512, count)
        case = Case("slice", phantom.image, Boxes.parse(phantom.boxes, phantom.image.shape))
        found[f"slice, {title}"] = _seconds(segment, case, 1)
    click.echo(json.dumps(found))


def _seconds(work: Callable[[Any], object], argument: object, runs: int) -> float:
    work(argument)
    return statistics.median(timeit.repeat(lambda: work(argument), number=1, repeat=runs))


@click.command()
@click.argument("case", type=_PATH, required=False)
@click.option("-o", "--output", type=_PATH)
@click.option("--checkpoint", type=_PATH)
@click.option("--model", "bundle_path", type=_PATH)
@click.option("--engine", default="auto")
@click.option("--precision", default="exact")
@click.option("--threads", type=click.IntRange(1))
def main(
    case: Path | None, output: Path | None, checkpoint: Path | None, threads: int | None, **options: Any
) -> None:
    """Segment CASE into OUTPUT, or time the parts."""

    def work() -> None:
        if checkpoint is not None:
            return run_published(checkpoint, threads, case, output)
        segmenter = litemed.runtime.load(threads=threads, **options)
        if case is not None and output is not None:
            run_one_by_one(segmenter, case, output)
        else:
            size, engine = segmenter.bundle.manifest.input_size, segmenter.engine
            embedding = engine.encode(np.zeros((1, 3, size, size), np.float32))
            time_parts(engine.encode, lambda boxes: engine.decode(embedding, boxes), segmenter.run, size)

    run_command(work, debug=False, interrupted="nothing is kept", extra="bench")


if __name__ == "__main__":
    main()

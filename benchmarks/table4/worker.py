"""A process that loads a model and then segments one case after the other: the warm clock of Table 4.

    python -m litemed.benchmarks.table4.worker bundle BUNDLE --engine openvino

After loading and one small case it prints {"ready": SECONDS}. For each line {"input": NPZ, "output": FOLDER}
on its standard input it prints {"seconds": ..., "timing": {...}}, or {"error": LINE}. The seconds go from the
file to the written label map.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from litemed.benchmarks.table4.serving import Handler, serve
from litemed.benchmarks.table4.stages import CaseTiming, StageClock
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.files import atomic_write
from litemed.runtime.npz import write_npz
from litemed.runtime.readers import read_case

Segment = Callable[[Path, Path], CaseTiming]


def load(kind: str, model: Path, engine: str, precision: str, threads: int | None) -> Segment:
    """Load a contender's model and run it once; return what segments a file into a folder."""
    blank = np.zeros((64, 64, 3), np.uint8)
    small = Case("warm-up", blank, Boxes.parse(np.array([[8, 8, 40, 40]]), blank.shape))
    if kind == "baseline":
        import torch

        from litemed.benchmarks.table4.baseline import Baseline, run_file
        from litemed.models.checkpoint import read_checkpoint

        if threads is not None:
            torch.set_num_threads(threads)
        baseline = Baseline(read_checkpoint(model).model())
        baseline.segment(small, StageClock())
        return lambda path, output: run_file(baseline, path, output)

    from litemed.benchmarks.table4.ablation import one_box_segmenter
    from litemed.runtime.segmenter import Segmenter

    if kind == "ablation":
        segmenter = one_box_segmenter(model, engine, precision, threads)
    else:
        segmenter = Segmenter.load(model, engine=engine, precision=precision, threads=threads)
    segmenter.run(small)

    def segment(path: Path, output: Path) -> CaseTiming:
        clock = StageClock()
        with clock.timing("read"):
            case = read_case(path)
        result = segmenter.run(case)
        with clock.timing("write"), atomic_write(output / f"{path.stem}.npz") as file:
            write_npz(file, {"segs": result.labels})
        stages = clock.seconds | dataclasses.asdict(result.timings)
        return CaseTiming(path.stem, stages, result.slices_encoded, result.boxes_decoded)

    return segment


@click.command()
@click.argument("kind", type=click.Choice(["baseline", "ablation", "bundle"]))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--engine", default="auto", show_default=True)
@click.option("--precision", default="exact", show_default=True)
@click.option("--threads", type=click.IntRange(1))
def main(kind: str, model: Path, engine: str, precision: str, threads: int | None) -> None:
    """Load MODEL, then segment the cases that are named on the standard input."""

    def handler() -> Handler:
        segment = load(kind, model, engine, precision, threads)

        def handle(request: dict[str, Any]) -> dict[str, Any]:
            start = time.perf_counter()
            timing = segment(Path(request["input"]), Path(request["output"]))
            return {"seconds": time.perf_counter() - start, "timing": dataclasses.asdict(timing)}

        return handle

    serve(handler)


if __name__ == "__main__":
    main()

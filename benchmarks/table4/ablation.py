"""The bundle with slices encoded once but one box decoded at a time: the Ablation of Table 4.

    python -m litemed.benchmarks.table4.ablation IN OUT --model BUNDLE

All else is litemed-run's: the same reading, merging and writing. So the difference from the column
Proposed is that of decoding several boxes together, and of nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click
import numpy as np

import litemed.runtime
from litemed.runtime.command import run_command
from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.folder import run_cases
from litemed.runtime.segmenter import Segmenter


class OneBoxEngine:
    """An engine whose decoder is given one box at a time; all else is the engine's own."""

    def __init__(self, engine: Engine) -> None:
        """Wrap a loaded engine."""
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has of this name."""
        return getattr(self._engine, name)

    def decode(self, embedding: Float, boxes: Float) -> tuple[Float, Float]:
        """Return logits (N, S, S) and IoU (N,) of boxes (N, 4), one call of the graph for each."""
        decoded = [self._engine.decode(embedding, boxes[[i]]) for i in range(len(boxes))]
        return np.concatenate([logits for logits, _ in decoded]), np.concatenate([iou for _, iou in decoded])


@click.command()
@click.argument("case", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(path_type=Path))
@click.option("--engine", default="auto")
@click.option("--precision", default="exact")
@click.option("--threads", type=click.IntRange(1))
def main(case: Path, output: Path, model: Path, engine: str, precision: str, threads: int | None) -> None:
    """Segment the cases in IN, one box at a time, into OUT."""

    def work() -> bool:
        segmenter = litemed.runtime.load(model, engine=engine, precision=precision, threads=threads)
        one_by_one = Segmenter(segmenter.bundle, cast(Engine, OneBoxEngine(segmenter.engine)))
        errors = [report.error for report in run_cases([case], output, one_by_one) if report.error]
        for error in errors:
            click.echo(f"error: {error}", err=True)
        return not errors

    run_command(work, debug=False, interrupted="nothing is kept")


if __name__ == "__main__":
    main()

"""The bundle with slices encoded once but one box decoded at a time: the Ablation of Table 4.

    python -m litemed.benchmarks.table4.ablation IN OUT --model BUNDLE

All else is litemed-run's: the same reading, merging and writing. So the difference from the column
Proposed is that of decoding several boxes together, and of nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

import litemed.runtime
from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.errors import LitemedError
from litemed.runtime.folder import run_cases
from litemed.runtime.segmenter import Segmenter


class OneBoxEngine:
    """An engine whose decoder is given one box at a time."""

    def __init__(self, engine: Engine) -> None:
        """Wrap a loaded engine."""
        self._engine = engine
        self.name, self.version, self.threads = engine.name, engine.version, engine.threads
        self.precision, self.choice = engine.precision, engine.choice

    def ready(self) -> None:
        """Return once the graphs are loaded; see `Engine.ready`."""
        self._engine.ready()

    def encode(self, image: Float) -> Float:
        """Return the embedding of a network input; see `Engine.encode`."""
        return self._engine.encode(image)

    def rest_encoder(self) -> None:
        """Give the encoder's working memory back; see `Engine.rest_encoder`."""
        self._engine.rest_encoder()

    def decode(self, embedding: Float, boxes: Float) -> tuple[Float, Float]:
        """Return logits (N, S, S) and IoU (N,) of boxes (N, 4), one call of the graph for each."""
        decoded = [self._engine.decode(embedding, boxes[[i]]) for i in range(len(boxes))]
        return np.concatenate([logits for logits, _ in decoded]), np.concatenate([iou for _, iou in decoded])


def one_box_segmenter(bundle: Path, engine: str, precision: str, threads: int | None) -> Segmenter:
    """Load a bundle so that it decodes one box at a time; see `litemed.runtime.load` for the errors."""
    segmenter = litemed.runtime.load(bundle, engine=engine, precision=precision, threads=threads)
    return Segmenter(segmenter.bundle, OneBoxEngine(segmenter.engine))


@click.command()
@click.argument("input_folder", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Bundle of litemed-export.")
@click.option("--engine", default="auto", show_default=True, help="onnxruntime, openvino or auto.")
@click.option(
    "--precision", default="exact", show_default=True, help="exact, fast, auto or a precision's name."
)
@click.option("--threads", type=click.IntRange(1), help="Threads to compute with; all by default.")
def main(
    input_folder: Path, output: Path, model: Path, engine: str, precision: str, threads: int | None
) -> None:
    """Segment the cases in IN, one box at a time, into OUT."""
    try:
        reports = run_cases([input_folder], output, one_box_segmenter(model, engine, precision, threads))
    except LitemedError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for report in reports:
        if report.error:
            click.echo(f"error: {report.error}", err=True)
    sys.exit(1 if any(report.error for report in reports) else 0)


if __name__ == "__main__":
    main()

"""The command `litemed-bench`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from litemed.runtime.bundle import Bundle
from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError

SHIPPED = "shipped"

EPILOG = """\b
Examples:
  litemed-bench speed --checkpoint lite_medsam.pth
  litemed-bench speed --model light=shipped --model lora=bundle --checkpoint lite_medsam.pth -o speed
  litemed-bench table4 --checkpoint lite_medsam.pth -o table4 --rows 2DBox_US_0525
  litemed-bench table4 --model bundle --checkpoint lite_medsam.pth -o table4 --cases challenge

\b
Exit codes: 0 all measured, 1 some failed, 2 wrong use, 130 interrupted.
"""

_CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights for the published procedure; left out without.",
)
_THREADS = click.option("--threads", type=click.IntRange(1), help="To compute with; all by default.")
_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")


@click.group(epilog=EPILOG)
@click.version_option(package_name="litemed")
def main() -> None:
    """Time LiteMedSAM's published procedure and litemed against each other."""


@main.command(epilog=EPILOG)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]BUNDLE",
    default=(SHIPPED,),
    show_default=True,
    help=f"Of litemed-export, or {SHIPPED!r}; may be repeated.",
)
@_CHECKPOINT
@_THREADS
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="For speed.md and speed.json."
)
@_DEBUG
def speed(
    models: tuple[str, ...],
    checkpoint: Path | None,
    threads: int | None,
    repeats: int,
    output: Path | None,
    debug: bool,
) -> None:
    """Time encoder, decoder, slices and a whole process of bundles, and their ratios to the published one.

    Every engine that is installed and every precision of each bundle takes turns with eager PyTorch, each in
    a process of its own.
    """

    def work() -> bool:
        _need_torch(checkpoint)
        from litemed.benchmarks.speed import run_speed

        named: dict[str, Bundle] = {}
        for text in models:
            name, _, place = text.rpartition("=")
            bundle = _open(place)
            if (name or bundle.name) in named:
                raise UsageError(f"{name or bundle.name}: two models of this name; give NAME=BUNDLE")
            named[name or bundle.name] = bundle
        text, complete = run_speed(named, checkpoint, repeats=repeats, threads=threads, output=output)
        click.echo(text, nl=False)
        return complete

    run_command(work, debug=debug, interrupted="nothing is kept", extra="bench")


@main.command(epilog=EPILOG)
@click.option("--model", default=SHIPPED, show_default=True, metavar="BUNDLE", help="Of litemed-export.")
@_CHECKPOINT
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--cases",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the challenge's NAME.npz; stand-ins are drawn for those it lacks.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=0.3,
    show_default=True,
    help="Share of a stand-in volume's slices that each object spans.",
)
@click.option("--rows", multiple=True, metavar="NAME", help="Only this row; may be repeated.")
@click.option("--engine", default="auto", show_default=True, help="onnxruntime, openvino or auto.")
@_THREADS
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@_DEBUG
def table4(
    model: str,
    checkpoint: Path | None,
    output: Path,
    cases: Path | None,
    coverage: float,
    rows: tuple[str, ...],
    engine: str,
    threads: int | None,
    repeats: int,
    debug: bool,
) -> None:
    """Time the paper's 14 cases, each in a process of its own, and write the table and a chart to OUTPUT.

    Baseline is the published procedure in PyTorch, Ablation the bundle with one box decoded at a time,
    Proposed litemed-run in float32, and in the fastest precision that the bundle has.

    Measurements are kept in OUTPUT/table4.json; the same command goes on where it was interrupted. Besides it
    writes table4.md, table4.csv and seconds.svg.
    """

    def work() -> bool:
        _need_torch(checkpoint)
        from litemed.benchmarks.table4.contenders import columns
        from litemed.benchmarks.table4.rows import find_rows
        from litemed.benchmarks.table4.table4 import run_table4

        text, complete = run_table4(
            find_rows(rows),
            columns(_open(model), checkpoint, engine, threads),
            output,
            repeats=repeats,
            coverage=coverage,
            cases=cases,
        )
        click.echo(text, nl=False)
        return complete

    kept = "what was measured is kept; the same command goes on from there"
    run_command(work, debug=debug, interrupted=kept, extra="bench")


def _open(place: str) -> Bundle:
    """Return the bundle in a folder, or the one that ships."""
    return Bundle.default() if place == SHIPPED else Bundle.open(place)


def _need_torch(checkpoint: Path | None) -> None:
    """Refuse to begin a table with the published procedure without torch: now, not after hours of work."""
    if checkpoint and importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(name="torch")


if __name__ == "__main__":
    main()

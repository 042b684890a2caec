"""The command `litemed-bench`."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError

if TYPE_CHECKING:
    from litemed.benchmarks.table4.store import Clock

DEFAULT_REPEATS = 3
QUICK_REPEATS = 2

EPILOG = """\b
Examples:
  litemed-bench table4 --model bundle --checkpoint lite_medsam.pth -o table4 --quick
  litemed-bench table4 --model bundle --checkpoint lite_medsam.pth -o table4 --cases challenge
  litemed-bench table4 --model bundle -o table4 --rows 2DBox_US_0525 \\
      --columns 'ONNX Runtime=bundle@onnxruntime' \\
      --columns 'Theirs=docker run --rm -v {input}:/in -v {output}:/out theirs'
  litemed-bench ratios --model bundle --checkpoint lite_medsam.pth

\b
Exit codes: 0 all measured, 1 some failed, 2 wrong use, 130 interrupted.
"""

_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")


@click.group(epilog=EPILOG)
@click.version_option(package_name="litemed")
def main() -> None:
    """Time LiteMedSAM's published procedure and litemed against each other."""


@main.command(epilog=EPILOG)
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Bundle of litemed-export.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="The weights the bundle was exported from, for the column Baseline; left out without.",
)
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
@click.option(
    "--columns",
    multiple=True,
    metavar="TITLE=WHAT",
    help="Another column: BUNDLE, BUNDLE@ENGINE, BUNDLE@ENGINE:PRECISION or a shell command with {input} "
    "and {output}; repeatable.",
)
@click.option("--clock", type=click.Choice(["process", "warm", "both"]), default="both", show_default=True)
@click.option(
    "--engine", default="auto", show_default=True, help="Of the bundle: onnxruntime, openvino, auto."
)
@click.option(
    "--precision",
    default="exact",
    show_default=True,
    help="Of the bundle: exact, fast, auto or the name of one that it lists.",
)
@click.option("--threads", type=click.IntRange(1), help="Of all columns but shell commands; all by default.")
@click.option("--repeats", type=click.IntRange(1), help=f"{DEFAULT_REPEATS}, with --quick {QUICK_REPEATS}.")
@click.option("--quick", is_flag=True, help="Some small rows only.")
@click.option(
    "--published",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with the columns case,seconds: a paper's own figures, shown for reference.",
)
@click.option("--note", "notes", multiple=True, help="A line to print above the tables; may be repeated.")
@_DEBUG
def table4(debug: bool, **options: Any) -> None:
    """Time the paper's 14 cases and write the table and chart to OUTPUT.

    Baseline is the published procedure in PyTorch, Ablation the bundle with
    one box decoded at a time, Proposed litemed-run. Each is timed by two
    clocks: whole processes, and with the model loaded.

    Measurements are kept in OUTPUT/table4.json one by one; the same command
    goes on where it was interrupted. Besides it writes table4.md, table4.csv
    and a chart for each clock as PNG and SVG.
    """
    _guard(debug, lambda: _table4(**options))


@main.command(epilog=EPILOG)
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Bundle of litemed-export.")
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="The weights it was exported from."
)
@click.option("--threads", type=click.IntRange(1), help="All by default.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["encoder", "decoder", "slice", "process"]),
    help="Only this; may be repeated.",
)
@_DEBUG
def ratios(debug: bool, **options: Any) -> None:
    """Time encoder, decoder, slices and a whole process against the published procedure.

    Every engine that is installed and every precision of the bundle takes
    turns with eager PyTorch; prints medians, their spread and ratios.
    """

    def work() -> bool:
        if importlib.util.find_spec("torch") is None:
            raise UsageError("ratios needs torch: pip install 'litemed[bench]'")
        from litemed.benchmarks.ratios.ratios import report

        text, complete = report(**options, tell=lambda line: click.echo(line, err=True))
        click.echo(text, nl=False)
        return complete

    _guard(debug, work)


def _guard(debug: bool, work: Callable[[], bool]) -> None:
    """Run a command."""
    kept = "what was measured is kept; the same command goes on from there"
    run_command(work, debug=debug, interrupted=kept)


def _table4(
    model: Path,
    checkpoint: Path | None,
    output: Path,
    cases: Path | None,
    coverage: float,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    clock: str,
    engine: str,
    precision: str,
    threads: int | None,
    repeats: int | None,
    quick: bool,
    published: Path | None,
    notes: tuple[str, ...],
) -> bool:
    """Carry the command out; return whether everything was measured."""
    for package in ("matplotlib", *(["torch"] if checkpoint else [])):
        if importlib.util.find_spec(package) is None:  # now, not after hours of work
            raise UsageError(f"table4 needs {package}: pip install 'litemed[bench]'")
    from litemed.benchmarks.table4.contenders import parse_column, standard_contenders
    from litemed.benchmarks.table4.rows import QUICK, find_rows
    from litemed.benchmarks.table4.table4 import Settings, run_table4

    added = [parse_column(column, threads) for column in columns]
    contenders = (*standard_contenders(checkpoint, model, engine, threads, precision), *added)
    titles = [contender.title for contender in contenders]
    for title in titles:
        if titles.count(title) > 1:
            raise UsageError(f"{title}: two columns of this title; give each its own")
    settings = Settings(
        rows=find_rows(rows or (QUICK if quick else ())),
        contenders=contenders,
        clocks=("process", "warm") if clock == "both" else (cast("Clock", clock),),
        repeats=repeats or (QUICK_REPEATS if quick else DEFAULT_REPEATS),
        coverage=coverage,
        cases=cases,
        published=read_published(published) if published else {},
        notes=notes,
    )
    text, complete = run_table4(settings, output)
    click.echo(text, nl=False)
    return complete


def read_published(path: Path) -> dict[str, float]:
    """Read a CSV with the columns case and seconds.

    Raises:
        UsageError: it is none, or a number of seconds is not positive.
    """
    try:
        with path.open(newline="") as file:
            seconds = {line["case"]: float(line["seconds"]) for line in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV with the columns case,seconds") from error
    for case, value in seconds.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{path}: {value} seconds for {case}; give a positive number")
    return seconds


if __name__ == "__main__":
    main()

"""The command `litemed-bench`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from litemed.runtime.bundle import Bundle
from litemed.runtime.command import Group, run_command
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

_FOLDER = click.Path(file_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that both have."""
    weights = click.Path(exists=True, dir_okay=False, path_type=Path)
    about = "Weights for the published procedure; left out without."
    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.option("--repeats", type=click.IntRange(1), default=3, show_default=True),
        click.option("--threads", type=click.IntRange(1), help="To compute with; all by default."),
        click.option("--checkpoint", type=weights, help=about),
    ):
        command = option(command)
    return command


@click.group(cls=Group, epilog=EPILOG)
@click.version_option(package_name="litemed")
def main() -> None:
    """Time LiteMedSAM's published procedure and litemed against each other."""


@main.command(epilog=EPILOG)
@click.option(
    *("--model", "models"),
    multiple=True,
    default=(SHIPPED,),
    metavar="[NAME=]BUNDLE",
    help=f"Of litemed-export, or {SHIPPED!r}, the default; may be repeated.",
)
@click.option("-o", "--output", type=_FOLDER, help="For speed.md and speed.json.")
@_shared
def speed(models: tuple[str, ...], checkpoint: Path | None, debug: bool, **options: Any) -> None:
    """Time encoder, decoder, slices and a whole process of bundles, and their ratios to the published one.

    Every engine that is installed and every precision of each bundle takes turns with eager PyTorch, each in
    a process of its own.
    """

    def work() -> bool:
        from litemed.benchmarks.measure import run_speed

        named: dict[str, Bundle] = {}
        for text in models:
            name, _, place = text.rpartition("=")
            bundle = _open(place)
            if (name or bundle.name) in named:
                raise UsageError(f"{name or bundle.name}: two models of this name; give NAME=BUNDLE")
            named[name or bundle.name] = bundle
        text, complete = run_speed(named, checkpoint, **options)
        click.echo(text, nl=False)
        return complete

    run_command(work, debug=debug, interrupted="nothing is kept", extra="bench")


@main.command(epilog=EPILOG)
@click.option("--model", default=SHIPPED, show_default=True, metavar="BUNDLE", help="Of litemed-export.")
@click.option("-o", "--output", required=True, type=_FOLDER)
@click.option(
    "--cases", type=_EXISTING, help="The challenge's NAME.npz; for those it lacks stand-ins are drawn."
)
@click.option("--rows", multiple=True, metavar="NAME", help="Only this row; may be repeated.")
@_shared
def table4(
    model: str, rows: tuple[str, ...], checkpoint: Path | None, threads: int | None, debug: bool, **more: Any
) -> None:
    """Time the paper's 14 cases, each in a process of its own, and write the table and a chart to OUTPUT.

    Baseline is the published procedure in PyTorch, Ablation the bundle with one box decoded at a time,
    Proposed litemed-run by the paper's method in float32, and in the fastest precision that the bundle has,
    litemed-run what it does by default.

    Measurements are kept in OUTPUT/table4.json; the same command goes on where it was interrupted. Besides it
    writes table4.md and seconds.svg.
    """

    def work() -> bool:
        from litemed.benchmarks.table4.table4 import columns, find_rows, run_table4

        contenders = columns(_open(model), checkpoint, threads)
        text, complete = run_table4(find_rows(rows), contenders, **more)
        click.echo(text, nl=False)
        return complete

    kept = "what was measured is kept; the same command goes on from there"
    run_command(work, debug=debug, interrupted=kept, extra="bench")


def _open(place: str) -> Bundle:
    """Return the bundle in a folder, or the one that ships."""
    if place != SHIPPED and not Path(place).exists():
        raise UsageError(f"{place}: no such folder; give a bundle of litemed-export, or {SHIPPED!r}")
    return Bundle.default() if place == SHIPPED else Bundle.open(place)


if __name__ == "__main__":
    main()

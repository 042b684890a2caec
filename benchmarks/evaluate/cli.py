"""The command `litemed-eval`."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError

if TYPE_CHECKING:
    from litemed.benchmarks.evaluate.cases import Run
    from litemed.benchmarks.evaluate.scores import CaseResult

EPILOG = """\b
Examples:
  litemed-eval out/segs data/gts -o scores
  litemed-eval tuned=out/tuned data/gts -o scores --run base=out/base
  litemed-eval out/segs data/gts -o scores --cases data/cases --trivial

\b
Exit codes: 0 all cases scored, 1 some could not be, 2 wrong use, 130 interrupted.
"""

_FOLDER = click.Path(exists=True, file_okay=False, path_type=pathlib.Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_OUTPUT = click.Path(file_okay=False, path_type=pathlib.Path)


@click.command(epilog=EPILOG)
@click.argument("segs")
@click.argument("gts", type=_FOLDER)
@click.option("-o", "--output", required=True, type=_OUTPUT, help="Folder for the tables.")
@click.option(
    "--run",
    "more",
    multiple=True,
    metavar="NAME=SEGS",
    help="Another run to set beside the first; may be repeated.",
)
@click.option("--cases", type=_FOLDER, help="Folder of the cases (imgs, boxes), for --trivial.")
@click.option(
    "--trivial", is_flag=True, help="Also score filled box, ellipse, Otsu threshold and GrabCut from the box."
)
@click.option(
    "--modalities",
    type=_FILE,
    help="CSV with the columns case,modality, for files whose names do not begin with one.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Of NSD: mm in 3D, pixels in 2D.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes; as many as there are cores by default."
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(debug: bool, **options: Any) -> None:
    """Score the segmentations in SEGS against the ground truth in GTS: DSC and NSD.

    SEGS is a folder of NAME.npz with `segs`, as litemed-run writes it, or
    NAME=FOLDER to choose the column's title. GTS is a folder of NAME.npz with
    `gts` and, for volumes, `spacing`: mm along the axes of gts, in their order.
    Files are matched by name.

    A modality is taken from the name (2DBox_US_0525, 3DBox_CT_0566, CT_Abd_01)
    or from --modalities. A case's score is the mean over the labels of its
    ground truth, a modality's the mean over its cases, the average the mean
    over modalities.

    A prediction that is missing or cannot be read counts as 0 and is named; a
    ground truth that cannot be used leaves its case out for all runs.

    Writes table.md, table.csv, cases.csv, classes.csv and report.json.
    """
    run_command(lambda: _run(**options), debug=debug, interrupted="nothing was written", extra="eval")


def _run(
    segs: str,
    gts: pathlib.Path,
    output: pathlib.Path,
    more: tuple[str, ...],
    cases: pathlib.Path | None,
    trivial: bool,
    modalities: pathlib.Path | None,
    tolerance: float,
    workers: int | None,
) -> bool:
    """Carry the command out; return whether every prediction of every case was scored."""
    if trivial != (cases is not None):
        raise UsageError("--trivial needs the images and boxes of --cases, and --cases serves nothing else")
    from litemed.benchmarks.evaluate import tables
    from litemed.benchmarks.evaluate.cases import find_cases, read_modalities
    from litemed.benchmarks.evaluate.predictors import Trivial
    from litemed.benchmarks.evaluate.scores import evaluate
    from litemed.benchmarks.evaluate.summary import summarise
    from litemed.runtime.engines.cpu import available_threads
    from litemed.runtime.files import atomic_write, make_folder

    runs = _parse_runs((segs, *more), set(Trivial))
    table = read_modalities(modalities) if modalities is not None else None
    found = find_cases(gts, runs, sources=cases, modalities=table)
    # Before the long work, not after it.
    make_folder(output)
    results = []
    predictors = tuple(Trivial) if trivial else ()
    for result in evaluate(
        found, runs, predictors, tolerance=tolerance, workers=workers or available_threads()
    ):
        results.append(result)
        _show(len(results), len(found), result)
    results.sort(key=lambda result: result.case)
    summary = summarise(results)
    text = tables.markdown(summary, results, tolerance)
    folders = {"gts": str(gts), "runs": {run.name: str(run.folder) for run in runs}}
    for name, content in {
        "table.md": text,
        "table.csv": tables.table_csv(summary),
        "cases.csv": tables.cases_csv(results),
        "classes.csv": tables.classes_csv(results),
        "report.json": tables.report_json(summary, results, tolerance, versions=_versions(), folders=folders),
    }.items():
        with atomic_write(output / name) as stream:
            stream.write(content.encode())
    click.echo(text, nl=False)
    return not any(result.problems for result in results)


def _parse_runs(given: tuple[str, ...], taken: set[str]) -> list[Run]:
    """Return the runs that NAME=FOLDER or FOLDER arguments give; a run without a name takes its folder's."""
    from litemed.benchmarks.evaluate.cases import Run

    runs: list[Run] = []
    for argument in given:
        name, _, folder = argument.rpartition("=")
        # A folder whose own name has an equals sign in it is meant as it stands.
        if pathlib.Path(argument).is_dir():
            name, folder = "", argument
        if not pathlib.Path(folder).is_dir():
            raise UsageError(f"{folder}: no such folder; give a folder of predictions, or NAME=FOLDER")
        runs.append(Run(name or pathlib.Path(folder).resolve().name, pathlib.Path(folder)))
        if runs[-1].name in taken | {run.name for run in runs[:-1]}:
            raise UsageError(
                f"{runs[-1].name}: two columns of this name; give each run its own as NAME=FOLDER"
            )
    return runs


def _show(done: int, total: int, result: CaseResult) -> None:
    """Print the problems of a case and how far the work has come: in place on a terminal, else ten times."""
    terminal = sys.stderr.isatty()
    for _, line in result.problems:
        click.echo(("\r\x1b[K" if terminal else "") + f"error: {line}", err=True)
    if terminal:
        click.echo(f"\r{done}/{total} cases", err=True, nl=done == total)
    elif done * 10 // total > (done - 1) * 10 // total:
        click.echo(f"{done}/{total} cases", err=True)


def _versions() -> dict[str, str]:
    import importlib.metadata
    import platform

    packages = ("litemed", "numpy", "scipy", "opencv-python-headless")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()

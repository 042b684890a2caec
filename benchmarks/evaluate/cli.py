"""The command `litemed-eval`."""

import pathlib
from typing import Any

import click

from litemed.runtime.command import WORKERS, Command, run_command, tell_unread
from litemed.runtime.errors import UsageError

EPILOG = """\b
Examples:
  litemed-eval out/segs data/gts -o scores
  litemed-eval out/nifti data/labels -o scores        # NAME.nii.gz in both
  litemed-eval tuned=out/tuned data/gts -o scores --run base=out/base
  litemed-eval out/segs data/gts -o scores --cases data/cases --trivial

\b
Exit codes: 0 all cases scored, 1 some could not be, 2 wrong use, 130 interrupted.
"""

_FOLDER = click.Path(exists=True, file_okay=False, path_type=pathlib.Path)
_OUTPUT = click.Path(file_okay=False, path_type=pathlib.Path)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("segs")
@click.argument("gts", type=_FOLDER)
@click.option("-o", "--output", required=True, type=_OUTPUT, help="Folder for the tables.")
@click.option("--run", "more", multiple=True, metavar="NAME=SEGS", help="Another run; may be repeated.")
@click.option("--cases", type=_FOLDER, help="Folder of the cases (imgs, boxes), for --trivial.")
@click.option(
    "--trivial",
    is_flag=True,
    help="Also score filled box, ellipse or ellipsoid in it, Otsu threshold and GrabCut.",
)
@click.option("--strict", is_flag=True, help="Refuse folders in which something else than the cases lies.")
@click.option("--workers", type=click.IntRange(min=1), help=WORKERS)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(debug: bool, **options: Any) -> None:
    """Score the segmentations in SEGS against the ground truth in GTS: DSC and NSD.

    SEGS is a folder of label maps as litemed-run writes them, or NAME=FOLDER to
    choose the column's title: NAME.npz with `segs`, NIfTI, NRRD, MetaImage,
    DICOM SEG or PNG. GTS is a folder of NAME.npz with `gts` and, for volumes,
    `spacing`: mm along the axes of gts, in their order; or of the other kinds of
    files. Files are matched by name; their voxels must lie at the same places.

    A modality is taken from the name (2DBox_US_0525, 3DBox_CT_0566, CT_Abd_01).
    A case's score is the mean over the labels of its ground truth, a modality's
    the mean over its cases, the average the mean over modalities.

    Volumes are scored in 3D, over all their slices, and averaged apart from
    slices and images where there are both. A table by size has the mean over
    objects (labels of the ground truth) with a longest side of under 8, 8 to 16,
    16 to 32, 32 to 64, and 64 and more pixels, as the network sees them: with
    the longest side of the image, or of the volume's slice, reduced to 256.

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
    strict: bool,
    workers: int | None,
) -> bool:
    """Carry the command out; return whether every prediction of every case was scored."""
    if trivial != (cases is not None):
        raise UsageError("--trivial needs the images and boxes of --cases, and --cases serves nothing else")
    import functools
    import importlib.metadata

    from litemed.benchmarks.evaluate import tables
    from litemed.benchmarks.evaluate.scores import find_cases, find_predictions, score_case
    from litemed.benchmarks.evaluate.summary import summarise
    from litemed.runtime.engines.cpu import available_threads
    from litemed.runtime.files import atomic_write, make_folder
    from litemed.runtime.inputs.files import case_name
    from litemed.runtime.report_files import TABLES
    from litemed.train.prepare.pool import map_in_order

    runs = _parse_runs((segs, *more))
    found = find_cases(gts, runs, cases)
    known = {"report.json", "report.jsonl", "report.html", *TABLES}
    names = [case_name(path) for path, _ in found]
    for folder in (gts, *runs.values()):
        known.update(path.name for name in names for path in find_predictions(folder, name))
        rest = (path for path in folder.glob("[!.]*") if path.name not in known)
        tell_unread(folder, rest, strict, "of no case")
    # Before the long work, not after it.
    make_folder(output)
    results = []
    score = functools.partial(score_case, runs=runs, sources=cases)
    for done, result in enumerate(map_in_order(score, found, workers or available_threads()), start=1):
        results.append(result)
        for line in result.problems:
            click.echo(f"error: {line}", err=True)
        if done * 10 // len(found) > (done - 1) * 10 // len(found):
            click.echo(f"{done}/{len(found)} cases", err=True)
    packages = ("litemed", "numpy", "scipy", "opencv-python-headless")
    about = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "folders": {"gts": str(gts), "runs": {name: str(folder) for name, folder in runs.items()}},
    }
    files = tables.files(summarise(results), results, about)
    for name, content in files.items():
        with atomic_write(output / name) as stream:
            stream.write(content.encode())
    click.echo(files["table.md"], nl=False)
    return not any(result.problems for result in results)


def _parse_runs(given: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Return the folders that NAME=FOLDER or FOLDER arguments give; one without a name is called as it is."""
    from litemed.benchmarks.evaluate.predictors import Trivial

    runs: dict[str, pathlib.Path] = {}
    for argument in given:
        name, _, text = argument.rpartition("=")
        folder = pathlib.Path(text)
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; give a folder of predictions, or NAME=FOLDER")
        name = name or folder.resolve().name
        if name in {*runs, *Trivial}:
            raise UsageError(f"{name}: two columns of this name; give each run its own as NAME=FOLDER")
        runs[name] = folder
    return runs


if __name__ == "__main__":
    main()

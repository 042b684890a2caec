"""The command `litemed-prepare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError
from litemed.train.prepare.intensity import WINDOWS
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import LABEL_KINDS

EPILOG = """\b
Examples:
  litemed-prepare scans -o data
  litemed-prepare scans/index.csv -o data --licence-status stated,known
  litemed-prepare lung_ct -o data --modality CT --window lung --workers 8
  litemed-prepare scans -o test --cases --split val --limit 20 --jitter 0.05

\b
A SOURCE is one of
  an index CSV, or a folder with an index.csv, of the columns modality, image,
    label and, where known, source, case, split, labels, licence, attribution,
    licence_status;
  a folder of images/ and labels/ with files of the same name, directly or
    below folders that name modality, data set and split:
    CT/images, MR/my_data/images, val/US/images;
  challenge training npz (imgs, gts), in a folder or one by one.

\b
Exit codes: 0 all done, 1 some pairs could not be used, 2 wrong use, 130 interrupted.
"""

_PATH = click.Path(path_type=Path)


@click.command(epilog=EPILOG)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="Folder for slices, or for cases.")
@click.option("--cases", is_flag=True, help="Write test cases with boxes and ground truth, not slices.")
@click.option("--index", type=_PATH, help="Index CSV that lies elsewhere; its paths start from SOURCE.")
@click.option("--modality", help="Of files whose folder and name do not say theirs.")
@click.option(
    "--labels",
    "kind",
    type=click.Choice(LABEL_KINDS),
    default="class",
    show_default=True,
    help="What the values of labels are that no index describes.",
)
@click.option(
    "--licence-status",
    metavar="A,B",
    help="Take only rows of the index with one of these, such as stated,known.",
)
@click.option("--split", "splits", multiple=True, help="Only pairs of train, val or test; may be repeated.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Leave a source out; may be repeated.")
@click.option("--limit", type=int, help="At most so many pairs of each modality.")
@click.option(
    "--val-fraction",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of val among cases without a split, drawn by their names.",
)
@click.option(
    "--window",
    default="abdomen",
    show_default=True,
    help=f"For CT: {', '.join(WINDOWS)}, or LEVEL,WIDTH in HU.",
)
@click.option("--components", is_flag=True, help="Make each connected component of a label an object.")
@click.option(
    "--min-volume",
    type=int,
    default=Settings.min_volume_voxels,
    show_default=True,
    help="Voxels of the smallest object of a volume.",
)
@click.option(
    "--min-area",
    type=int,
    default=Settings.min_area_pixels,
    show_default=True,
    help="Pixels of the smallest object of a slice, counted at longest side 256.",
)
@click.option("--max-slices", type=int, help="With --cases: crop volumes to the slices that show most.")
@click.option("--max-boxes", type=int, help="With --cases: keep only the largest objects.")
@click.option(
    "--jitter", type=float, help="With --cases: move box edges at random by up to this share of their side."
)
@click.option("--seed", type=int, help="With --cases: seed of --jitter.  [default: 0]")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one for each core]")
@click.option("--overwrite", is_flag=True, help="Change a folder that was prepared in another way.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(**options: Any) -> None:
    """Turn pairs of images and labels in SOURCE into training slices.

    Slices are stored at longest side 256 in 8 bits, with those objects that are
    large enough; manifest.json tells what there is and what was left out. CT is
    cut to a window, other images beyond 8 bits to the 0.5 and 99.5 percentiles
    of their non-zero values. A run that was interrupted goes on when the
    command is given again.
    """
    kept = "give the same command again to go on"
    run_command(lambda: _run(**options), debug=options["debug"], interrupted=kept, extra="train")


def _run(
    sources: tuple[Path, ...],
    output: Path,
    cases: bool,
    index: Path | None,
    modality: str | None,
    kind: str,
    licence_status: str | None,
    splits: tuple[str, ...],
    exclude: tuple[str, ...],
    limit: int | None,
    val_fraction: float,
    window: str,
    components: bool,
    min_volume: int,
    min_area: int,
    max_slices: int | None,
    max_boxes: int | None,
    jitter: float | None,
    seed: int | None,
    workers: int | None,
    overwrite: bool,
    debug: bool,
) -> bool:
    from tqdm import tqdm

    from litemed.runtime.engines.cpu import available_threads
    from litemed.runtime.modalities import MODALITIES, find_modality
    from litemed.train.prepare.intensity import parse_window
    from litemed.train.prepare.pipeline import Summary, prepare_cases, prepare_slices
    from litemed.train.prepare.selection import select
    from litemed.train.prepare.settings import CaseSettings
    from litemed.train.prepare.sources import SourceOptions, find_pairs

    if modality is not None and find_modality(modality) is None:
        raise UsageError(f"--modality {modality}: unknown; use one of {', '.join(MODALITIES)}")
    case_only = {"max_slices": max_slices, "max_boxes": max_boxes, "jitter": jitter, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in case_only.items() if value is not None}
    if given and not cases:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} needs --cases")
    common: dict[str, Any] = {
        "window": parse_window(window),
        "components": components,
        "min_volume_voxels": min_volume,
        "min_area_pixels": min_area,
    }
    settings = CaseSettings(**common, **given) if cases else Settings(**common)
    found = find_pairs(
        sources,
        SourceOptions(
            modality=None if modality is None else find_modality(modality),
            kind=kind,
            val_fraction=val_fraction,
            licence_status=None if licence_status is None else tuple(licence_status.split(",")),
        ),
        index,
    )
    found = select(found, splits, limit, exclude)
    for problem in found.problems:
        click.echo(f"error: {problem}", err=True)
    common_run: dict[str, Any] = {
        "workers": workers or available_threads(),
        "overwrite": overwrite,
        "on_failure": lambda failure: tqdm.write(f"error: {failure.error}", file=sys.stderr),
    }
    with tqdm(total=len(found.pairs), unit="pair", disable=None) as bar:  # on a terminal only
        common_run["on_progress"] = bar.update
        if isinstance(settings, CaseSettings):
            summary: Summary = prepare_cases(found, output, settings, **common_run)
            what = f"{summary.made} test cases with {summary.objects} boxes"
        else:
            summary = prepare_slices(found, output, settings, **common_run)
            what = f"{summary.made} slices with {summary.objects} objects"
    left_out = f"; {len(summary.failed)} pairs could not be used" if summary.failed else ""
    click.echo(f"{output}: {what} from {len(found.pairs)} pairs{left_out}; see {summary.manifest.name}")
    return not summary.failed and not found.problems


if __name__ == "__main__":
    main()

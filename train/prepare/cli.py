"""The command `litemed-prepare`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from litemed.runtime.command import WORKERS, Command, run_command, tell_unread
from litemed.runtime.errors import UsageError
from litemed.runtime.inputs.scaling import WINDOWS, parse_window
from litemed.runtime.modalities import MODALITIES
from litemed.train.prepare.sources import SPLITS, SourceOptions, find_pairs, select

EPILOG = """\b
Examples:
  litemed-prepare scans -o data
  litemed-prepare scans/index.csv -o data --licence-status stated,known
  litemed-prepare lung_ct -o data --modality CT --window lung --workers 8
  litemed-prepare scans -o test --cases --split val --limit 20 --loose 0.4

\b
A SOURCE is an index CSV or a folder with an index.csv (columns modality, image,
label; source, case, split, licence, attribution, licence_status), a
folder of images/ and labels/, also below folders that name modality, data set
and split (val/MR/my_data/images), or challenge training npz (imgs, gts).

\b
Exit codes: 0 all done, 1 some pairs could not be used, 2 wrong use, 130 interrupted.
"""

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_SHARE = click.FloatRange(0, 1)
_WINDOW = f"For CT: {', '.join(WINDOWS)}, or LEVEL,WIDTH in HU."
_ONLY_CASES = ("max_slices", "max_boxes", "jitter", "loose")


@click.command(cls=Command, epilog=EPILOG, context_settings={"show_default": True})
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="Folder for slices, or for cases.")
@click.option("--cases", is_flag=True, help="Write test cases with boxes and ground truth, not slices.")
@click.option("--modality", type=click.Choice(MODALITIES, False), help="Of files that do not say theirs.")
@click.option("--licence-status", metavar="A,B", help="Only rows of an index with one of these.")
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="Only these pairs.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Leave a source out.")
@click.option("--limit", type=_COUNT, help="At most so many pairs of each modality.")
@click.option("--val-fraction", type=_SHARE, default=0.1, help="Share of val among pairs without a split.")
@click.option("--window", default="abdomen", help=_WINDOW)
@click.option(
    "--min-volume", "min_volume_voxels", type=_COUNT, default=50, help="Smallest object, in voxels."
)
@click.option("--min-area", "min_area_pixels", type=_COUNT, default=10, help="The same in pixels at 256.")
@click.option("--max-slices", type=_COUNT, help="With --cases: crop volumes to the slices that show most.")
@click.option("--max-boxes", type=_COUNT, help="With --cases: keep only the largest objects.")
@click.option("--jitter", type=_SHARE, help="With --cases: move box edges by up to this share of their side.")
@click.option("--loose", type=_SHARE, help="With --cases: move them outwards only, as people draw boxes.")
@click.option("--strict", is_flag=True, help="Refuse folders in which something else lies.")
@click.option("--workers", type=_COUNT, help=WORKERS)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(**options: Any) -> None:
    """Turn pairs of images and labels in SOURCE into training slices.

    Slices have a longest side of 256 in 8 bits: CT is cut to a window, other images
    to the 0.5 and 99.5 percentiles of their non-zero values. manifest.json tells
    what was left out. The same command goes on where it was interrupted.

    In a label file 0 is background and each other value an object of its own: 128
    and 255 are two. Soft edges, which would make many, are refused.
    """
    kept = "give the same command again to go on"
    run_command(lambda: _run(options), debug=options["debug"], interrupted=kept, extra="train")


def _run(options: dict[str, Any]) -> bool:
    from tqdm import tqdm

    from litemed.runtime.engines.cpu import available_threads
    from litemed.train.prepare.pipeline import prepare
    from litemed.train.prepare.slices import Settings

    given = {name: value for name, value in options.items() if value is not None}
    given["window"] = parse_window(given["window"])
    if "licence_status" in given:
        given["licence_status"] = given["licence_status"].split(",")
    if not given["cases"] and any(name in given for name in _ONLY_CASES):
        raise UsageError("--max-slices, --max-boxes, --jitter and --loose need --cases")
    if "jitter" in given and "loose" in given:
        raise UsageError("--jitter moves box edges either way, --loose outwards only: choose one")
    # The options are called as the fields that they set.
    settings, source_options = (
        {name: given[name] for name in given.keys() & kind.__dataclass_fields__}
        for kind in (Settings, SourceOptions)
    )
    found = find_pairs(given["sources"], SourceOptions(**source_options))
    found = select(found, given["splits"], given.get("limit"), given["exclude"])
    for folder, unread in found.unread.items():
        tell_unread(folder, unread, given["strict"], "of no kind that is read there")
    for problem in found.problems:
        click.echo(f"error: {problem}", err=True)
    with tqdm(total=len(found.pairs), unit="pair", disable=None) as bar:  # on a terminal only

        def on_done(done: int, failed: Sequence[str], doubts: Sequence[str]) -> None:
            bar.update(done)
            for line in doubts:
                tqdm.write(f"warning: {line}", file=sys.stderr)
            for line in failed:
                tqdm.write(f"error: {line}", file=sys.stderr)

        workers = given.get("workers") or available_threads()
        made = prepare(found, given["output"], Settings(**settings), workers=workers, on_done=on_done)
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in made.total.items() if count)
    click.echo(f"{given['output']}: {counts or 'nothing'}; see manifest.json")
    return not made.failed and not found.problems


if __name__ == "__main__":
    main()

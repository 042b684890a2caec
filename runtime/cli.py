"""The command `litemed-run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from litemed.runtime.command import EXISTING, Command, run_command
from litemed.runtime.errors import UsageError
from litemed.runtime.inputs.scaling import Scaling, parse_window
from litemed.runtime.method import BOX_FITS, MERGES, VOLUMES, ZOOMS, Method
from litemed.runtime.options import EPILOG, input_options

if TYPE_CHECKING:
    from typing import TextIO

    from litemed.runtime.json_log import JsonLines

_PATH = click.Path(path_type=Path)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("cases", nargs=-1, required=True, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the results.", metavar="OUT")
@click.option(
    "--model",
    type=EXISTING,
    help="Bundle that litemed-export wrote; by default the light model that ships with litemed.",
    metavar="BUNDLE",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "onnxruntime", "openvino"]),
    default="auto",
    show_default=True,
    help="Inference engine; auto takes the faster one that is installed.",
)
@click.option(
    "--precision",
    metavar="exact|fast|auto|NAME",
    default="auto",
    show_default=True,
    help="exact: float32. auto: the fastest in the bundle whose masks were measured to agree with float32's. "
    "fast: the fastest in the bundle, whatever was measured. NAME: that one of the bundle.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to compute with; by default one for each core that the process may use, cut to its "
    "container's CPU quota.",
)
@click.option(
    "--cache",
    type=_PATH,
    metavar="DIR",
    envvar="LITEMED_CACHE",
    show_envvar=True,
    help="Folder of your own that keeps what OpenVINO compiled, for a quicker start. What it holds is "
    "trusted, so nobody else may be able to write into it. Without it nothing is kept.",
)
@click.option(
    "--merge",
    type=click.Choice(MERGES),
    help="Who gets a pixel that several boxes claim. argmax: the highest logit, as in the paper. nested, the "
    "default: the same, but a box that lies within a larger one takes from it what its own logits say, so "
    "that a cup is not lost in its disc. Where no box lies within another they are the same.",
)
@click.option(
    "--volume",
    type=click.Choice(VOLUMES),
    help="How a 3D box prompts its slices. box: as it is, as in the paper. ellipsoid: shrunk like the "
    "cross-section of an ellipsoid. planes, the default: the same, and where the box has 16 slices or more a "
    "few planes of the two other directions correct them, in at most twice the time.",
)
@click.option(
    "--zoom",
    type=click.Choice(ZOOMS),
    help="auto, the default: boxes below 16 pixels at the network's scale, of which an image has more, "
    "are segmented on tiles of it. off: on the whole image, as in the paper.",
)
@click.option(
    "--boxes",
    "box_fit",
    type=click.Choice(BOX_FITS),
    help="drawn, the default: boxes may be looser than their objects; a first mask, of the bundle's decoder "
    "for loose boxes if it has one, says where to look again. tight: as they are, as in the paper.",
)
@click.option(
    "--max-zoom-tiles",
    type=click.IntRange(min=0),
    default=Method.max_zoom_tiles,
    show_default=True,
    metavar="N",
    help="Tiles that a case may have; each is encoded, in volumes once for each slice of its boxes.",
)
@click.option(
    "--propagate",
    is_flag=True,
    help="In volumes go from each box's middle slice outwards, as the baseline does; a later box overwrites "
    "an earlier one. A box on one slice (--prompts) is followed as far as its object goes. --merge, "
    "--volume, --zoom and --boxes do not go with it.",
)
@click.option(
    "--crop-masks",
    is_flag=True,
    help="End each box's mask at the box, which must have been drawn round the object.",
)
@input_options
@click.option("--png", is_flag=True, help="Write label maps of images as NAME.png with a palette, not npz.")
@click.option("--overlay", type=_PATH, metavar="DIR", help="Folder for a picture NAME.png of each result.")
@click.option("--html", is_flag=True, help="Write report.html: all cases, with the pictures of --overlay.")
@click.option("--dry-run", is_flag=True, help="Read the cases and say what each would take; write nothing.")
@click.option("--strict", is_flag=True, help="Refuse folders in which something else than cases lies.")
@click.option("--overwrite", is_flag=True, help="Run every case again, and replace files of other origin.")
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
@click.option("--verbose", is_flag=True, help="Say which engine and precision run, and why.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: each event is one object a line on stderr, and nothing is printed on stdout.",
)
@click.option("--quiet", is_flag=True, help="Print errors and warnings only.")
@click.version_option(package_name="litemed")
def main(**options: Any) -> None:
    """Segment CASES, files or folders of them, with the model that ships or a bundle of your own.

    One case that fails does not stop the others.
    """
    json_lines = None
    if options.pop("log_format") == "json":
        from litemed.runtime.json_log import JsonLines

        json_lines = JsonLines(sys.stderr)
        sys.stderr = cast("TextIO", json_lines)  # until the command ends, see `Command`
    run_command(
        lambda: _run(json_lines=json_lines, **options),
        debug=options["debug"],
        interrupted="what was finished is in the report; the same command goes on from there",
    )


def _run(
    json_lines: JsonLines | None,
    cases: tuple[Path, ...],
    model: Path | None,
    engine: str,
    precision: str,
    threads: int | None,
    cache: Path | None,
    debug: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool,
    strict: bool,
    recursive: bool,
    max_memory: str | None,
    modality: str | None,
    window: str,
    prompts: Path | None,
    margin: str | None,
    components: bool,
    volume_index: int | None,
    output: Path,
    overlay: Path | None,
    png: bool,
    html: bool,
    overwrite: bool,
    **method: Any,
) -> bool:
    """Run the cases and return whether none failed."""
    from litemed.runtime.before import open_prompts, tell_costs, tell_what_is_no_case
    from litemed.runtime.bundle import Bundle
    from litemed.runtime.engines import Cache, open_engine
    from litemed.runtime.inputs.memory import parse_size
    from litemed.runtime.inputs.subfolders import find_below
    from litemed.runtime.precision import REFERENCE

    how = Method(**method)
    allowed = None if max_memory is None else parse_size(max_memory)
    scaling = Scaling(modality, parse_window(window), volume_index)
    # Importing, hashing and compiling take about as long as one small case. Of what can be done at once, the
    # engine comes first: while it compiles, the rest is imported and the first case read.
    kept = None if cache is None else Cache(cache)
    bundle = Bundle.default() if model is None else Bundle.open(model)
    if model is None and not quiet:
        _note(f"model {bundle.name}, which ships with litemed")
    decoders = bundle.manifest.precisions[REFERENCE].decoders
    if method["box_fit"] == "drawn" and "loose_decoder" not in decoders:
        raise UsageError(f"--boxes drawn: {bundle.name} has no decoder for loose boxes")
    how = how.with_decoders(decoders)
    results, ways = [path for path in (output, overlay) if path is not None], dict[Path, Path]()
    if recursive:
        below, ways = find_below(cases, results)
        cases = tuple(below)
    tell_what_is_no_case(cases, [*results, *ways], strict)
    source = open_prompts(prompts, margin, components, cases, recursive)
    if dry_run:
        return tell_costs(cases, how, scaling, bundle.manifest.input_size, source)
    again = output.is_dir() and not overwrite  # then all may be up to date
    loading = open_engine(
        *(engine, bundle, threads),
        precision=precision,
        cache=kept,
        wait=False,
        later=again,
        tell=_ignore if quiet else _note,
    )
    if how.box_fit == "drawn" and not again:
        loading.load_decoder("loose_decoder")
    if verbose:
        chosen = f"{loading.name} {loading.version}, {loading.precision}, {loading.threads} threads"
        _note(f"{chosen}: {loading.choice or 'as asked'}")

    import cv2

    from litemed.runtime.console import Console
    from litemed.runtime.folder import run_cases
    from litemed.runtime.json_log import JsonLog
    from litemed.runtime.report import REPORT
    from litemed.runtime.segmenter import Segmenter

    cv2.setNumThreads(loading.threads)  # by itself it takes all CPUs
    segmenter = Segmenter(bundle, loading)
    del bundle  # with the graphs' bytes
    if not segmenter.bundle.manifest.weights.trained:
        click.echo(f"warning: {model} holds untrained weights; the masks mean nothing", err=True)
    with Console(debug=debug, quiet=quiet) as console:
        observer = console if json_lines is None else JsonLog(json_lines)
        reports = run_cases(
            *(cases, output, segmenter),
            method=how,
            scaling=scaling,
            prompts=source,
            overlay=overlay,
            png=png,
            html=html,
            ways=ways,
            max_memory=allowed,
            overwrite=overwrite,
            observer=observer,
        )
    statuses = [one.status for one in reports]
    counts = {status: statuses.count(status) for status in ("done", "skipped", "failed")}
    if json_lines is not None:
        json_lines.event("run_finished", {**counts, "report": str(output / REPORT)})
    elif not quiet:
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        click.echo(f"{told}; see {output / REPORT}")
    return all(report.status != "failed" for report in reports)


def _note(line: str) -> None:
    click.echo(f"note: {line}", err=True)


def _ignore(line: str) -> None:
    """Print nothing."""


if __name__ == "__main__":
    main()

"""The command `litemed-distill`."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError
from litemed.train.options import EXIT_CODES, INTERRUPTED, PATH, given_changes, run_options

EPILOG = """\b
Examples:
  litemed-distill lite_medsam.pth data --adapter adapter.safetensors -o run
      both stages, as in the recipe
  litemed-distill lite_medsam.pth data --unlabelled images -o run --set distillation.views=8000
      with images without labels, and less memory
  litemed-distill lite_medsam.pth data -o run --set stage1.run.epochs=30 --set stage2.optimizer.lr=4e-4
      a setting of one stage; without stage1 or stage2 it is one of both
"""


@click.command(epilog=EPILOG + EXIT_CODES)
@click.argument("base", required=False, type=PATH)
@click.argument("data", required=False, type=PATH)
@click.option("--adapter", type=PATH, help="LoRA adapter to fold into BASE first.")
@click.option(
    "--unlabelled", type=PATH, help="Folder of PNG, JPEG and TIFF images; also those below it are read."
)
@run_options
def main(**options: Any) -> None:
    """Train a light image encoder to imitate that of BASE, on the slices that litemed-prepare wrote to DATA.

    The result, OUTPUT/light.safetensors, is a whole checkpoint for litemed-export and litemed-train.
    """
    debug = options.pop("debug")
    run_command(lambda: _run(**options), debug=debug, interrupted=INTERRUPTED, extra="train")


def _run(
    base: pathlib.Path | None,
    data: pathlib.Path | None,
    folder: pathlib.Path | None,
    adapter: pathlib.Path | None,
    unlabelled: pathlib.Path | None,
    device: str | None,
    config: pathlib.Path | None,
    settings: tuple[str, ...],
    stop_after: float | None,
    print_config: bool,
    **how: bool,
) -> None:
    from litemed.train.distill.config import recipe_text

    if print_config:
        click.echo(recipe_text(), nl=False)
        return
    if base is None or data is None or folder is None:
        raise UsageError("name the teacher BASE, the prepared DATA, and the folder of the run with -o")
    changes = given_changes(config, settings, {"hardware": {"device": device}})

    from litemed.train.distill.run import WEIGHTS, DistillRequest, distill
    from litemed.train.progress import Reporter

    stop_after_s = None if stop_after is None else 60 * stop_after
    request = DistillRequest(
        data, folder, base, changes, stop_after_s=stop_after_s, adapter=adapter, unlabelled=unlabelled, **how
    )
    if distill(request, Reporter(sys.stderr)):
        click.echo(f"{folder}: done; the light model is {folder / WEIGHTS}")
    else:
        click.echo(f"{folder}: stopped; go on with --resume")


if __name__ == "__main__":
    main()

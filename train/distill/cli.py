"""The command `litemed-distill`."""

import pathlib
import sys
from typing import Any

import click

from litemed.runtime.command import EXISTING, Command
from litemed.train.cli import EXIT_CODES, run_options, run_training

EPILOG = """\b
Examples:
  litemed-distill lite_medsam.pth data --adapter adapter.safetensors -o run
      both stages, as in the recipe
  litemed-distill lite_medsam.pth data --unlabelled images -o run --set distillation.views=8000
      with images without labels, and less memory
  litemed-distill lite_medsam.pth data -o run --set stage1.run.epochs=30 --set stage2.optimizer.lr=4e-4
      a setting of one stage; without stage1 or stage2 it is one of both
"""


@click.command(cls=Command, epilog=EPILOG + EXIT_CODES)
@click.argument("base", required=False, type=EXISTING)
@click.argument("data", required=False, type=EXISTING)
@click.option("--adapter", type=EXISTING, help="LoRA adapter to fold into BASE first.")
@click.option(
    "--unlabelled", type=EXISTING, help="Folder of PNG, JPEG and TIFF images; also those below it are read."
)
@click.option("--strict", is_flag=True, help="Refuse such a folder if something else lies in it.")
@run_options
def main(**options: Any) -> None:
    """Train a light image encoder to imitate that of BASE, on the slices that litemed-prepare wrote to DATA.

    The result, OUTPUT/light.safetensors, is a whole checkpoint for litemed-export and litemed-train.
    """
    run_training(_distill, "recipes/light.toml", **options)


def _distill(folder: pathlib.Path, **request: Any) -> str | None:
    from litemed.train.distill.run import WEIGHTS, DistillRequest, distill
    from litemed.train.run_files import Reporter

    finished = distill(DistillRequest(folder=folder, **request), Reporter(sys.stderr))
    return f"done; the light model is {folder / WEIGHTS}" if finished else None


if __name__ == "__main__":
    main()

"""The command `litemed-distill`."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError

EPILOG = """\b
Examples:
  litemed-distill lite_medsam.pth data --adapter adapter.safetensors -o run
      both stages, as in the recipe
  litemed-distill lite_medsam.pth data --unlabelled images -o run --set distillation.views=8000
      with images without labels, and less memory
  litemed-distill lite_medsam.pth data -o run --set stage1.run.epochs=30 --set stage2.optimizer.lr=4e-4
  litemed-distill lite_medsam.pth data -o run --resume
      go on with a run that was stopped
  litemed-export run/light.safetensors -o bundle
      what to do with the result

\b
Exit codes: 0 done (or stopped as asked by --stop-after), 1 the data or the run failed, 2 wrong use,
130 interrupted, to be resumed.
"""

_PATH = click.Path(path_type=pathlib.Path)


@click.command(epilog=EPILOG)
@click.argument("base", required=False, type=_PATH)
@click.argument("data", required=False, type=_PATH)
@click.option("-o", "--output", type=_PATH, help="Folder of the run: the light model, logs, states.")
@click.option("--adapter", type=_PATH, help="LoRA adapter to fold into BASE first.")
@click.option(
    "--unlabelled", type=_PATH, help="Folder of PNG, JPEG and TIFF images; also those below it are read."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute; auto by default."
)
@click.option("--config", type=_PATH, help="TOML file of settings that differ from the recipe's.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[STAGE.]TABLE.KEY=VALUE",
    help="One setting, of both stages or of stage1 or stage2; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder, exactly.")
@click.option("--overwrite", is_flag=True, help="Start over though the output folder holds a run.")
@click.option(
    "--stop-after", type=click.FloatRange(min=0), metavar="MINUTES", help="Stop then, to be resumed."
)
@click.option("--print-config", is_flag=True, help="Print the recipe, which has the defaults.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(**options: Any) -> None:
    """Train a light image encoder to imitate that of BASE, on the slices that litemed-prepare wrote to DATA.

    The result, OUTPUT/light.safetensors, is a whole checkpoint for litemed-export and litemed-train.
    """
    kept = "go on from the last state with --resume"
    run_command(lambda: _run(**options), debug=options["debug"], interrupted=kept, extra="train")


def _run(
    base: pathlib.Path | None,
    data: pathlib.Path | None,
    output: pathlib.Path | None,
    adapter: pathlib.Path | None,
    unlabelled: pathlib.Path | None,
    device: str | None,
    config: pathlib.Path | None,
    settings: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    stop_after: float | None,
    print_config: bool,
    debug: bool,
) -> None:
    from litemed.train.distill.config import recipe_text

    if print_config:
        click.echo(recipe_text(), nl=False)
        return
    if base is None or data is None or output is None:
        raise UsageError("name the teacher BASE, the prepared DATA, and the folder of the run with -o")

    from litemed.train.distill.run import WEIGHTS, DistillRequest, distill
    from litemed.train.progress import Reporter
    from litemed.train.tables import parse_setting, read_toml

    changes: list[tuple[dict[str, Any], str]] = [(read_toml(config), str(config))] if config else []
    changes += [(parse_setting(text), f"--set {text}") for text in settings]
    changes += [({"hardware": {"device": device}}, "--device")] if device else []
    request = DistillRequest(
        data=data,
        folder=output,
        base=base,
        changes=changes,
        resume=resume,
        overwrite=overwrite,
        stop_after_s=None if stop_after is None else 60 * stop_after,
        adapter=adapter,
        unlabelled=unlabelled,
    )
    if distill(request, Reporter(sys.stderr)):
        click.echo(f"{output}: done; the light model is {output / WEIGHTS}")
    else:
        click.echo(f"{output}: stopped; go on with --resume")


if __name__ == "__main__":
    main()

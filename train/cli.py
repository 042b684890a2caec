"""The command `litemed-train`."""

from __future__ import annotations

import importlib.resources
import pathlib
import sys
from typing import Any

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError
from litemed.train.options import EXIT_CODES, INTERRUPTED, PATH, given_changes, run_options

EPILOG = """\b
Examples:
  litemed-train data --base lite_medsam.pth -o run
      adapters and mask decoder, the paper's settings
  litemed-train data --base lite_medsam.pth -o run --set optimizer.lr=1e-4 --set run.batch_size=8
  litemed-train data --base light.safetensors --tune all -o run
      all weights, such as those of the light model, which has no layers for LoRA
"""


@click.command(epilog=EPILOG + EXIT_CODES)
@click.argument("data", required=False, type=PATH)
@click.option("--base", type=PATH, help="Weights to start from, as litemed-export reads them.")
@click.option(
    "--tune",
    type=click.Choice(["lora+decoder", "lora", "decoder", "all"]),
    help="Which weights to train; lora+decoder by default.",
)
@run_options
def main(**options: Any) -> None:
    """Fine-tune LiteMedSAM on the slices that litemed-prepare wrote to DATA.

    By default LoRA adapters in the encoder and the mask decoder are trained; the result goes to
    litemed-export together with the base.
    """
    debug = options.pop("debug")
    run_command(lambda: _run(**options), debug=debug, interrupted=INTERRUPTED, extra="train")


def _run(
    data: pathlib.Path | None,
    base: pathlib.Path | None,
    folder: pathlib.Path | None,
    tune: str | None,
    device: str | None,
    config: pathlib.Path | None,
    settings: tuple[str, ...],
    stop_after: float | None,
    print_config: bool,
    **how: bool,
) -> None:
    if print_config:
        text = importlib.resources.files("litemed.train").joinpath("default.toml").read_text("utf-8")
        click.echo(text, nl=False)
        return
    if data is None or folder is None:
        raise UsageError("name the prepared DATA, and the folder of the run with -o")
    if base is None:
        raise UsageError("name the weights to start from with --base (the same ones to --resume)")
    changes = given_changes(config, settings, {"run": {"tune": tune}, "hardware": {"device": device}})

    from litemed.train.progress import Reporter
    from litemed.train.run import Request, train

    stop_after_s = None if stop_after is None else 60 * stop_after
    request = Request(data, folder, base, changes, stop_after_s=stop_after_s, **how)
    if train(request, Reporter(sys.stderr)):
        click.echo(f"{folder}: done; the best weights are {folder / 'best.safetensors'}")
    else:
        click.echo(f"{folder}: stopped; go on with --resume")


if __name__ == "__main__":
    main()

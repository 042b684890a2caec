"""The command `litemed-train`."""

from __future__ import annotations

import importlib.resources
import pathlib
import sys
from typing import Any

import click

from litemed.runtime.command import run_command
from litemed.runtime.errors import UsageError

EPILOG = """\b
Examples:
  litemed-train data --base lite_medsam.pth -o run
      adapters and mask decoder, the paper's settings
  litemed-train data --base lite_medsam.pth -o run --resume
      go on with a run that was stopped
  litemed-train data --base lite_medsam.pth -o run --set optimizer.lr=1e-4 --set run.batch_size=8
  litemed-train data --base light.safetensors --tune all -o run
      all weights, such as those of the light model, which has no layers for LoRA
  torchrun --nproc-per-node 4 -m litemed.train.cli data --base lite_medsam.pth -o run
      four GPUs
  litemed-export lite_medsam.pth --adapter run/best.safetensors -o bundle
      what to do with the result

\b
Exit codes: 0 done (or stopped as asked by --stop-after), 1 the data or the run failed, 2 wrong use,
130 interrupted, to be resumed.
"""

_PATH = click.Path(path_type=pathlib.Path)


@click.command(epilog=EPILOG)
@click.argument("data", required=False, type=_PATH)
@click.option("-o", "--output", type=_PATH, help="Folder of the run: weights, log, state.")
@click.option(
    "--base", "--init", "base", type=_PATH, help="Weights to start from, as litemed-export reads them."
)
@click.option(
    "--tune",
    type=click.Choice(["lora+decoder", "lora", "decoder", "all"]),
    help="Which weights to train; lora+decoder by default.",
)
@click.option("--size", type=int, help="Side of the network's input, a multiple of 64; 256 by default.")
@click.option("--epochs", type=int, help="How many epochs; 20 by default.")
@click.option("--seed", type=int, help="Of everything random; 0 by default.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute; auto by default."
)
@click.option("--config", type=_PATH, help="TOML file of settings (see --print-config).")
@click.option(
    "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="One setting; may be repeated."
)
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder, exactly.")
@click.option("--overwrite", is_flag=True, help="Start over though the output folder holds a run.")
@click.option(
    "--stop-after", type=click.FloatRange(min=0), metavar="MINUTES", help="Stop then, to be resumed."
)
@click.option("--print-config", is_flag=True, help="Print every setting, its default and its meaning.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(**options: Any) -> None:
    """Fine-tune LiteMedSAM on the slices that litemed-prepare wrote to DATA.

    By default LoRA adapters in the encoder and the mask decoder are trained; the result goes to
    litemed-export together with the base.
    """
    kept = "go on from the last state with --resume"
    run_command(lambda: _run(**options), debug=options["debug"], interrupted=kept, extra="train")


def _run(
    data: pathlib.Path | None,
    output: pathlib.Path | None,
    base: pathlib.Path | None,
    tune: str | None,
    size: int | None,
    epochs: int | None,
    seed: int | None,
    device: str | None,
    config: pathlib.Path | None,
    settings: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    stop_after: float | None,
    print_config: bool,
    debug: bool,
) -> None:
    if print_config:
        click.echo(
            importlib.resources.files("litemed.train").joinpath("default.toml").read_text("utf-8"), nl=False
        )
        return
    if data is None or output is None:
        raise UsageError("name the prepared DATA, and the folder of the run with -o")
    if base is None:
        raise UsageError("name the weights to start from with --base (the same ones to --resume)")

    from litemed.train.tables import parse_setting, read_toml

    run = {"tune": tune, "size": size, "epochs": epochs, "seed": seed}
    given = {"run": {key: value for key, value in run.items() if value is not None}}
    hardware = {"hardware": {"device": device}} if device else {}
    changes: list[tuple[dict[str, Any], str]] = [(read_toml(config), str(config))] if config else []
    changes += [(parse_setting(text), f"--set {text}") for text in settings]
    changes += [({**given, **hardware}, "options")]

    from litemed.train.progress import Reporter
    from litemed.train.run import Request, train

    request = Request(
        data=data,
        folder=output,
        base=base,
        changes=changes,
        resume=resume,
        overwrite=overwrite,
        stop_after_s=None if stop_after is None else 60 * stop_after,
    )
    finished = train(request, Reporter(sys.stderr))
    if finished:
        click.echo(f"{output}: done; the best weights are {output / 'best.safetensors'}")
    else:
        click.echo(f"{output}: stopped; go on with --resume")


if __name__ == "__main__":
    main()

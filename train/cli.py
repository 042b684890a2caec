"""The command `litemed-train`, and what it has in common with `litemed-distill`."""

import importlib.resources
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from litemed.runtime.command import EXISTING, Command, run_command
from litemed.runtime.errors import UsageError
from litemed.train.config import TUNES, parse_setting, read_toml

EXIT_CODES = """
\b
Exit codes: 0 done (or stopped as asked by --stop-after), 1 the data or the run failed, 2 wrong use,
130 interrupted, to be resumed.
"""
EPILOG = """\b
Examples:
  litemed-train data --base lite_medsam.pth -o run
      adapters and mask decoder, the paper's settings
  litemed-train data --base lite_medsam.pth -o run --set optimizer.lr=1e-4 --set run.batch_size=8
  litemed-train data --base light.safetensors --tune all -o run
      all weights, such as those of the light model, which has no layers for LoRA
  litemed-train data --base lite_medsam.pth -o run --volumes cases --set validation.volume_share=0.5
      the best weights are those that are best on slices and whole volumes, half and half
"""
_OPTIONS = (
    click.option(
        "-o",
        "--output",
        "folder",
        type=click.Path(path_type=pathlib.Path),
        help="Folder of the run: weights, log, state.",
    ),
    click.option(
        "--volumes",
        type=EXISTING,
        help="Folder of litemed-prepare --cases, whose val volumes are scored, too.",
    ),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute; auto by default."
    ),
    click.option("--config", type=EXISTING, help="TOML file of settings (see --print-config)."),
    click.option(
        "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="One setting; may be repeated."
    ),
    click.option(
        "--loralib-alpha",
        default=1.0,
        help="As of litemed-export: 0 for weights in the paper's layout saved in evaluation mode.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in the output folder."),
    click.option("--overwrite", is_flag=True, help="Start over though the output folder holds a run."),
    click.option(
        "--stop-after", type=click.FloatRange(min=0), metavar="MINUTES", help="Stop then, to be resumed."
    ),
    click.option("--print-config", is_flag=True, help="Print every setting, its default and its meaning."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
    click.version_option(package_name="litemed"),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a run to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def run_training(
    start: Callable[..., str | None],
    recipe: str,
    *,
    debug: bool,
    print_config: bool,
    device: str | None,
    config: pathlib.Path | None,
    settings: tuple[str, ...],
    stop_after: float | None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    **request: Any,
) -> None:
    """Carry out a command of `run_options` and exit.

    start: takes the fields of a request; returns what to say at its end, None if it is to be resumed.
    recipe: the file of `litemed.train` that --print-config prints. tables: settings that have an option.
    """

    def work() -> None:
        if print_config:
            click.echo(
                importlib.resources.files("litemed.train").joinpath(recipe).read_text("utf-8"), nl=False
            )
            return
        if None in (request["data"], request["base"], request["folder"]):
            raise UsageError("name the prepared DATA, the weights to start from, and the folder with -o")

        options = {"hardware": {"device": device} if device else {}, **(tables or {})}
        changes = [(read_toml(config), str(config))] if config else []
        changes += [(parse_setting(text), f"--set {text}") for text in settings]
        stop_after_s = None if stop_after is None else 60 * stop_after
        said = start(**request, changes=[*changes, (options, "options")], stop_after_s=stop_after_s)
        click.echo(f"{request['folder']}: {said or 'stopped; go on with --resume'}")

    run_command(work, debug=debug, interrupted="go on from the last state with --resume", extra="train")


@click.command(cls=Command, epilog=EPILOG + EXIT_CODES)
@click.argument("data", required=False, type=EXISTING)
@click.option("--base", type=EXISTING, help="Weights to start from, as litemed-export reads them.")
@click.option("--tune", type=click.Choice(TUNES), help="Which weights to train; lora+decoder by default.")
@run_options
def main(tune: str | None, **options: Any) -> None:
    """Fine-tune LiteMedSAM on the slices that litemed-prepare wrote to DATA.

    By default LoRA adapters in the encoder and the mask decoder are trained; the result goes to
    litemed-export together with the base.
    """
    run_training(_train, "default.toml", tables={"run": {"tune": tune}} if tune else None, **options)


def _train(**request: Any) -> str | None:
    from litemed.train.run import Request, train
    from litemed.train.run_files import Reporter

    finished = train(Request(**request), Reporter(sys.stderr))
    return f"done; the best weights are {request['folder'] / 'best.safetensors'}" if finished else None


if __name__ == "__main__":
    main()

"""What the commands `litemed-train` and `litemed-distill` have in common."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from litemed.train.toml_settings import Changes, parse_setting, read_toml

PATH = click.Path(path_type=pathlib.Path)
EXIT_CODES = """
\b
Exit codes: 0 done (or stopped as asked by --stop-after), 1 the data or the run failed, 2 wrong use,
130 interrupted, to be resumed.
"""
INTERRUPTED = "go on from the last state with --resume"

_OPTIONS = (
    click.option("-o", "--output", "folder", type=PATH, help="Folder of the run: weights, log, state."),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute; auto by default."
    ),
    click.option("--config", type=PATH, help="TOML file of settings (see --print-config)."),
    click.option(
        "--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="One setting; may be repeated."
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in the output folder, exactly."),
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


def given_changes(
    config: pathlib.Path | None, settings: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> list[Changes]:
    """Return what differs from the defaults, in the order in which it applies.

    options: tables of settings that have options of their own; None where one was not given.
    """
    changes: list[Changes] = [(read_toml(config), str(config))] if config else []
    changes += [(parse_setting(text), f"--set {text}") for text in settings]
    given = {table: {k: v for k, v in keys.items() if v is not None} for table, keys in options.items()}
    return [*changes, ({table: keys for table, keys in given.items() if keys}, "options")]

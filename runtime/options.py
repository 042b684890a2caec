"""Options of `litemed-run` for its input: which cases there are, how they are read, where boxes are."""

from collections.abc import Callable
from typing import Any

import click

from litemed.runtime.command import EXISTING
from litemed.runtime.inputs.scaling import WINDOWS

_OPTIONS = (
    click.option(
        "--recursive",
        is_flag=True,
        help="Take the cases of all folders below, too; results are put into folders of the same names.",
    ),
    click.option(
        "--modality",
        metavar="MODALITY",
        help="Of NIfTI, NRRD and MetaImage files whose name does not begin with theirs (CT_..., MR_...): by "
        "it their values become grey. CT is cut to a window, all others to percentiles of their own.",
    ),
    click.option(
        "--window",
        default="abdomen",
        show_default=True,
        metavar="NAME|LEVEL,WIDTH",
        help=f"Of CT in Hounsfield units: {', '.join(WINDOWS)}, or level and width such as 40,400.",
    ),
    click.option(
        "--volume-index",
        type=click.IntRange(min=0),
        metavar="N",
        help="Which volume of a NIfTI that holds several, from 0. Without it such files are refused.",
    ),
    click.option(
        "--prompts",
        type=EXISTING,
        metavar="FILE|DIR",
        help="Where the boxes are, if not with the cases: CSV, JSON lines, COCO, labelme, Slicer ROI or a "
        "label mask, or a folder with such a file NAME.* for each case.",
    ),
    click.option("--margin", metavar="N|Nmm", help="Pixels or mm by which these boxes are made larger."),
    click.option("--components", is_flag=True, help="A box for each connected part of a label in a mask."),
)


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options, in their order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command

"""Options of `litemed-run` for its input: which cases there are, how they are read; and its help."""

from collections.abc import Callable
from typing import Any

import click

from litemed.runtime.command import EXISTING
from litemed.runtime.inputs.scaling import WINDOWS

EPILOG = """\b
Examples:
  litemed-run cases -o segs
  litemed-run scan.npz photo.png -o segs --overlay pictures
  litemed-run photos -o segs --png --html --overlay pictures
  litemed-run cases -o segs --model bundle --threads 4 --engine onnxruntime
  litemed-run scan.npz -o segs --cache ~/.cache/litemed
  litemed-run cases -o segs --model bundle --merge argmax
  litemed-run study -o segs --recursive --log-format json 2> log.jsonl
  litemed-run liver.nii.gz -o segs --modality CT --window 60,160
  litemed-run cases -o segs --prompts boxes.csv

\b
Cases:
  NAME.npz           imgs, uint8: (height, width), (height, width, 3) or
                     a volume (depth, height, width) or (depth, height, width, 3);
                     boxes: (N, 4) as x0 y0 x1 y1, in a volume (N, 6) as
                     x0 y0 z0 x1 y1 z1, z1 included
  NAME.png|jpg|tif   with NAME.json: {"boxes": [[x0, y0, x1, y1], ...]}
  NAME.nii.gz|nii    with NAME.json: {"boxes": [[x0, y0, z0, x1, y1, z1], ...]};
                     its values become grey by --window or percentiles
  NAME.nrrd|nhdr, NAME.mha|mhd
                     the same, as Slicer and ITK keep volumes
  NAME.dcm, NAME/    with NAME.json: DICOM, one image or slices of one series
Boxes count pixels of the image as it is stored, in a volume along its axes.

\b
Results in OUT:
  NAME.npz           segs: label i is box i, 0 is background
  NAME.png           with --png: pixel i is box i, in the colours of --overlay
  NAME.nii.gz        the same for a NIfTI, with its affine, codes and units
  NAME.nrrd, .mha    the same for NRRD and MetaImage, with its geometry
  NAME.dcm           the same for DICOM, as SEG: segment "box i" is box i
  report.json        status, error, hashes and seconds of every case
  objects.csv        of each object: volume, extent, mean, predicted IoU
  efficiency.csv     case, seconds
  report.html        with --html: all that as a page that opens offline
A case is skipped if its result is there and input, model and settings are
unchanged.

\b
Exit codes: 0 all done, 1 some cases failed, 2 wrong use, 130 interrupted.
"""

_OPTIONS = (
    click.option(
        "--recursive",
        is_flag=True,
        help="Take the cases of all folders below, too; results are put into folders of the same names.",
    ),
    click.option(
        "--max-memory",
        metavar="SIZE",
        help="Such as 2GB: cases that may need more, by what their headers say, fail before they are read.",
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

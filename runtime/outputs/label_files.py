"""Write a label map as the kind of file that its name ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.inputs.dicom import Dicom
from litemed.runtime.inputs.npz import write_npz
from litemed.runtime.outputs.overlay import colours

if TYPE_CHECKING:
    from litemed.runtime.inputs.nifti import Nifti
    from litemed.runtime.inputs.raster import Raster

PNG_SUFFIX = ".png"


def write_labels(
    file: BinaryIO,
    suffix: str,
    labels: NDArray[np.unsignedinteger],
    objects: int,
    origin: Nifti | Raster | Dicom | None,
) -> None:
    """Write a label map of the objects 1, 2, ...

    Args:
        file: to write to.
        suffix: the last one of its name; .npz and .png need no origin.
        labels: (H, W) or (D, H, W), as they are seen.
        objects: how many there are; some may have no pixel.
        origin: in whose geometry they are written.
    """
    if suffix == PNG_SUFFIX:
        write_png(file, labels)
    elif origin is None or suffix == ".npz":
        write_npz(file, {"segs": labels})
    elif isinstance(origin, Dicom):
        origin.write_labels(labels, file, objects)
    else:
        origin.write_labels(labels, file)


def write_png(file: BinaryIO, labels: NDArray[np.unsignedinteger]) -> None:
    """Write labels (H, W) as a PNG whose values are the labels.

    uint8 with a palette, of the colours of pictures of results (`overlay.colours`); uint16 in grey, for a
    palette has 256 colours.
    """
    from PIL import Image

    image = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        image.putpalette(colours(255).tobytes())
    image.save(file, "PNG")

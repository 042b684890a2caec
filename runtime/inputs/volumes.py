"""The formats of volumes that scanners' software keeps, by the suffixes of their files."""

from pathlib import Path
from typing import Final

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.metaimage import METAIMAGE_SUFFIXES, MetaImage
from litemed.runtime.inputs.nifti import NIFTI_SUFFIXES, Nifti
from litemed.runtime.inputs.nrrd import NRRD_SUFFIXES, Nrrd
from litemed.runtime.inputs.raster import Raster

VOLUMES: Final[dict[str, type[Nifti] | type[Raster]]] = {
    **dict.fromkeys(NIFTI_SUFFIXES, Nifti),
    **dict.fromkeys(NRRD_SUFFIXES, Nrrd),
    **dict.fromkeys(METAIMAGE_SUFFIXES, MetaImage),
}
_HEADERS: Final = (".nhdr", ".mhd")


def volume_suffix(path: Path) -> str:
    """Return which of `VOLUMES` a file is by its name, empty if none."""
    return next((suffix for suffix in VOLUMES if path.name.lower().endswith(suffix)), "")


def label_suffix(path: Path) -> str:
    """Return the suffix of the label map of a volume, in one file; of what is none ".npz"."""
    kinds = (NIFTI_SUFFIXES, NRRD_SUFFIXES, METAIMAGE_SUFFIXES)
    return next((kind[0] for kind in kinds if volume_suffix(path) in kind), ".npz")


def open_volume(path: Path, index: int | None = None) -> Nifti | Raster:
    """Read the header of a volume, of several that of an `index`; raises what `Nifti.open` does."""
    return VOLUMES[volume_suffix(path)].open(path, index)


def voxels_beside(path: Path) -> tuple[Path, ...]:
    """Return the file of voxels beside a header, if `path` is one that names such a file."""
    if volume_suffix(path) not in _HEADERS:
        return ()
    try:
        stored = open_volume(path)
    except (InputError, ModuleNotFoundError):
        return ()  # reading it will say why
    return (stored.data[0],) if isinstance(stored, Raster) and stored.data[0] != path else ()

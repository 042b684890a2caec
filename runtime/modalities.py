"""The eleven modalities of the challenge, and the spellings under which data sets know them."""

import re
from typing import Final

from litemed.runtime.errors import InputError

MODALITIES: Final[tuple[str, ...]] = (
    "CT",
    "MR",
    "PET",
    "US",
    "XRay",
    "Dermoscopy",
    "Endoscopy",
    "Fundus",
    "Mammography",
    "Microscopy",
    "OCT",
)

_ALIASES: Final[dict[str, str]] = {
    **{name.lower(): name for name in MODALITIES},
    "mri": "MR",
    "ultrasound": "US",
    "dermatoscopy": "Dermoscopy",
    "endoscope": "Endoscopy",
    "mammo": "Mammography",
    "microscope": "Microscopy",
}
_SEPARATORS: Final = re.compile(r"[\s_\-]+")


def find_modality(text: str) -> str | None:
    """Return the modality that `text` spells, or None.

    Case, blanks, hyphens and underscores do not count: "X-Ray", "x_ray" and "XRay" are one.
    The challenge's other spellings ("Microscope", "X-Ray") and common ones ("MRI") are known.
    """
    return _ALIASES.get(_SEPARATORS.sub("", text).lower())


def parse_modality(text: str, source: str = "modality") -> str:
    """Return the modality that `text` spells; `source` is what the error names.

    Raises InputError when it is none of the eleven.
    """
    modality = find_modality(text)
    if modality is None:
        raise InputError(f"{source}: unknown modality {text!r}; use one of {', '.join(MODALITIES)}")
    return modality


def modality_of_name(name: str) -> str | None:
    """Return the modality that a challenge file name starts with, or None.

    "CT_Abd_0001", "2DBox_X-Ray_0053" and "3DBox_MR_0121" give CT, XRay and MR.
    """
    parts = name.split("_")
    if parts[0] in ("2DBox", "3DBox"):
        parts = parts[1:]
    if len(parts) < 2:
        return None
    # "X_Ray_0001" spells its modality in two parts.
    return find_modality(parts[0]) or find_modality("".join(parts[:2]))

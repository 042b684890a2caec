"""By which rule values of a scanner become grey levels: what a user chooses of it."""

import math
from dataclasses import dataclass
from typing import Final

from litemed.runtime.errors import UsageError
from litemed.runtime.modalities import MODALITIES, find_modality


@dataclass(frozen=True)
class Window:
    """A CT window: `level` is its centre, `width` its whole extent, both in Hounsfield units."""

    level: float
    width: float


# "soft-tissue" is the published choice for MedSAM; the others are the usual reading windows.
WINDOWS: Final[dict[str, Window]] = {
    "abdomen": Window(50, 400),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "soft-tissue": Window(40, 400),
}


def parse_window(text: str) -> Window:
    """Return the window that `text` names, or gives as LEVEL,WIDTH in Hounsfield units ("40,400").

    Raises UsageError for anything else.
    """
    if (name := text.lower().replace(" ", "-")) in WINDOWS:
        return WINDOWS[name]
    try:
        level, width = (float(part) for part in text.split(","))
    except ValueError:
        level = width = math.nan
    if not (math.isfinite(level) and math.isfinite(width) and width > 0):
        known = ", ".join(WINDOWS)
        raise UsageError(f"window {text!r}: use one of {known}, or LEVEL,WIDTH such as 40,400")
    return Window(level, width)


@dataclass(frozen=True)
class Scaling:
    """What is taken of a scanner's file, and how values that are not 8 bits yet become grey levels.

    Attributes:
        modality: of cases that do not say theirs, see `litemed.runtime.modalities`; None: they are refused.
        window: for CT.
        volume_index: which volume of a NIfTI of several, from 0; None: such files are refused.

    Raises:
        UsageError: the modality is none of the eleven.
    """

    modality: str | None = None
    window: Window = WINDOWS["abdomen"]
    volume_index: int | None = None

    def __post_init__(self) -> None:
        """Take the modality by its usual name."""
        if self.modality is not None:
            found = find_modality(self.modality)
            if found is None:
                raise UsageError(f"modality {self.modality!r}: use one of {', '.join(MODALITIES)}")
            object.__setattr__(self, "modality", found)


DEFAULT_SCALING: Final = Scaling()

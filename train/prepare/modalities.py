"""The modalities, which are the runtime's own; see `litemed.runtime.modalities`."""

from litemed.runtime.modalities import MODALITIES, find_modality, modality_of_name, parse_modality

__all__ = ["MODALITIES", "find_modality", "modality_of_name", "parse_modality"]

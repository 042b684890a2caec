"""Errors of reading weights."""

from litemed.runtime.errors import LitemedError


class CheckpointError(LitemedError):
    """A checkpoint or adapter cannot be used as it is."""

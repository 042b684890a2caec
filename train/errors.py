"""Errors of training."""

from litemed.runtime.errors import LitemedError


class TrainingError(LitemedError):
    """A training run cannot start, go on or be resumed."""

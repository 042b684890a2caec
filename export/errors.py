"""Errors of reading checkpoints and of exporting them."""

from litemed.runtime.errors import LitemedError


class CheckpointError(LitemedError):
    """A checkpoint or adapter cannot be used as it is."""


class ExportError(LitemedError):
    """The network could not be written as ONNX graphs."""


class VerificationError(ExportError):
    """An exported graph does not reproduce the PyTorch model."""

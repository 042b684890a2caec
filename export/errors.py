"""Errors of exporting a model."""

from litemed.runtime.errors import LitemedError


class ExportError(LitemedError):
    """The network could not be written as ONNX graphs."""


class VerificationError(ExportError):
    """An exported graph does not reproduce the PyTorch model."""

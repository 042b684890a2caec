"""Files of weights: read without unpickling, sizes checked first; their digests; checks of their entries."""

import hashlib
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from litemed.runtime.errors import LitemedError

MAX_BYTES = 4 << 30  # a training checkpoint with its optimizer state is under 200 MB


class CheckpointError(LitemedError):
    """A checkpoint or adapter cannot be used as it is."""


def read_file(path: pathlib.Path) -> Any:
    """Load what a checkpoint file holds: tensors in plain containers, on the CPU.

    Raises:
        CheckpointError: missing, too large, damaged, or holding anything but that.
    """
    try:
        size = path.stat().st_size
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        if size > MAX_BYTES:
            raise ValueError(f"it declares {size} bytes, more than a checkpoint can have, {MAX_BYTES}")
        return torch.load(path, map_location="cpu", weights_only=True) if is_zip else load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a hostile stream can make the restricted unpickler raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{path}: not a whole file of tensors only (safetensors, or torch.save since 1.6), "
            f"refused without running it: {reason}"
        ) from error


def check_entries(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict whose names, shapes, kinds of number or values are not as expected.

    Raises:
        CheckpointError: every missing, unexpected and wrong entry is listed in one message.
    """
    pairs = [(k, state[k], v) for k, v in expected.items() if k in state]
    findings = {
        "missing": [k for k in expected if k not in state],
        "unexpected": [k for k in state if k not in expected],
        "wrongly shaped": [
            f"{k} {tuple(found.shape)} instead of {tuple(wanted.shape)}"
            for k, found, wanted in pairs
            if found.shape != wanted.shape
        ],
        "of another kind of number": [
            f"{k} {found.dtype}".replace("torch.", "")
            for k, found, wanted in pairs
            if found.is_floating_point() != wanted.is_floating_point()
            or found.is_complex()
            or found.is_sparse
        ],
    }
    if not any(findings.values()):  # only now is it sure that the values are of a bounded size
        findings["not finite"] = [k for k, found, _ in pairs if not bool(torch.isfinite(found).all())]
    faults = [f"{len(names)} {what}: {', '.join(names)}" for what, names in findings.items() if names]
    if faults:
        raise CheckpointError(f"{source}: " + "; ".join(faults))


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the weights themselves, whatever file or precision they were stored in.

    Names, shapes and float32 values in the order of the names; counters of batch norm are left out, since
    they do not change the network.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if value.is_floating_point():
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Files of weights: read without unpickling, sizes checked first; their digests; checks of their entries."""

from __future__ import annotations

import hashlib
import pathlib
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from litemed.models.errors import CheckpointError

MAX_BYTES = 4 << 30  # a training checkpoint with its optimizer state is under 200 MB


def read_file(path: pathlib.Path) -> Any:
    """Load what a checkpoint file holds: tensors in plain containers, on the CPU.

    Raises:
        CheckpointError: missing, too large, damaged, or holding anything but that.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes are more than a checkpoint can have ({MAX_BYTES})")
    if zipfile.is_zipfile(path):
        return _read_torch_zip(path)
    if len(magic) == 9 and magic[8:] == b"{" and struct.unpack("<Q", magic[:8])[0] < size:
        try:
            return load_file(path)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: damaged safetensors file: {_first_line(error)}") from error
    raise CheckpointError(
        f"{path}: neither a safetensors file nor torch's zip format "
        "(re-save a file older than torch 1.6 with torch.save)"
    )


def _read_torch_zip(path: pathlib.Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > MAX_BYTES:
            raise CheckpointError(f"{path}: entries declare {declared} bytes, more than {MAX_BYTES}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile stream can make the restricted unpickler raise anything
        raise CheckpointError(
            f"{path}: not a file of tensors only, refused without running it ({_first_line(error)})"
        ) from error


def check_entries(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict whose names, shapes, kinds of number or values are not as expected.

    Raises:
        CheckpointError: every missing, unexpected and wrong entry is listed in one message.
    """
    findings = []
    if missing := [k for k in expected if k not in state]:
        findings.append(f"{len(missing)} missing: {listing(missing)}")
    if unexpected := [k for k in state if k not in expected]:
        findings.append(f"{len(unexpected)} unexpected: {listing(unexpected)}")
    common = [k for k in expected if k in state]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in common
        if state[k].shape != expected[k].shape
    ]
    if shapes:
        findings.append(f"{len(shapes)} wrongly shaped: {listing(shapes)}")
    kinds = [
        f"{k} {state[k].dtype}".replace("torch.", "")
        for k in common
        if state[k].is_floating_point() != expected[k].is_floating_point()
        or state[k].is_complex()
        or state[k].is_sparse
    ]
    if kinds:
        findings.append(f"{len(kinds)} of another kind of number: {listing(kinds)}")
    if not findings:  # only now is it sure that the values are of a bounded size
        values = [k for k in common if not bool(torch.isfinite(state[k]).all())]
        if values:
            findings.append(f"{len(values)} not finite: {listing(values)}")
    if findings:
        raise CheckpointError(f"{source}: " + "; ".join(findings))


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the weights themselves, whatever file or precision they were stored in.

    Names, shapes and float32 values in the order of the names; counters of
    batch norm are left out, since they do not change the network.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if value.is_floating_point():
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(names: Sequence[str]) -> str:
    """Return names as a message lists them."""
    return ", ".join(names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

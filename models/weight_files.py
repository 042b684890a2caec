"""Files of weights: read without unpickling, sizes checked first; their digests; checks of their entries."""

import contextlib
import hashlib
import pathlib
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from litemed.runtime.errors import LitemedError, one_line
from litemed.runtime.strict_json import shown

MAX_BYTES = 4 << 30  # a training checkpoint with its optimizer state is under 200 MB
CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "net")
WRAPPERS = ("module", "_orig_mod", "model", "net")
"""Parts that DDP, torch.compile and Lightning put into names; no network here has a part so named."""
SAVE_AGAIN = "where it was made, save the tensors alone: torch.save(model.state_dict(), FILE)"
_BEGINNINGS = {
    b"PK\3\4": "is cut short: its end is missing; copy or download it again",
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch them: git lfs pull",
    b"<": "is a web page, not the weights; download the file itself",
    bytes.fromhex("80028a0a6cfc9c46f9206aa85019"): f"is in torch's format before 1.6; {SAVE_AGAIN}",
}


class CheckpointError(LitemedError):
    """A checkpoint or adapter cannot be used as it is."""


class _Unread:
    """Takes the place of a numpy scalar and its dtype: whatever they are made of is dropped."""

    def __init__(self, *parts: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# LiteMedSAM's trainer puts the mean loss into its checkpoints. Nothing of numpy is called to read it.
_NUMPY_SCALARS: list[Any] = [
    type(name, (_Unread,), {"__module__": module})
    for module, name in (
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "scalar"),  # numpy 1
    )
]


def file_in(path: pathlib.Path, *names: str) -> pathlib.Path:
    """Return a file itself, or of a folder the first file so named. Raises CheckpointError if it has none."""
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: is a folder without {' or '.join(names)}")


def is_zip(path: pathlib.Path) -> bool:
    """Tell whether a file is a zip file, whole or damaged at its end."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def read_file(path: pathlib.Path) -> Any:
    """Load what a checkpoint file holds: tensors in plain containers, on the CPU.

    Raises:
        CheckpointError: missing, too large, damaged, or holding anything but that; it says what the file is.
    """
    try:
        size = path.stat().st_size
        if is_zip(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        if size > MAX_BYTES:
            raise ValueError(f"it declares {size} bytes, more than a checkpoint can have, {MAX_BYTES}")
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_NUMPY_SCALARS):
            return (
                torch.load(path, map_location="cpu", weights_only=True) if is_zip(path) else load_file(path)
            )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a hostile stream can make the restricted unpickler raise anything
        raise CheckpointError(f"{path}: {_what_it_is(path, one_line(error))}") from error


def _what_it_is(path: pathlib.Path, reason: str) -> str:
    """Say what a file is that was refused for this reason, and what to do; what torch advises is left out."""
    if is_zip(path):
        if "TorchScript" in reason:
            return f"is a TorchScript program; {SAVE_AGAIN}"
        if found := re.search(r"GLOBAL (\S+)", reason):
            return f"is a pickle that asks for {found[1][:100]}, refused without running it; {SAVE_AGAIN}"
        if reason.startswith("it declares"):
            return reason
        return f"is a zip file that is damaged, or holds more than tensors; copy it anew, or {SAVE_AGAIN}"
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty"
    if start[5:9] == b"\0\0\0{":
        return (
            f"is a safetensors file that is cut short or damaged ({reason[:300]}); copy or download it again"
        )
    for beginning, what in _BEGINNINGS.items():
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            return what
    if start[:1] == b"\x80" and start[1:2] <= b"\5":
        return f"is a pickle that asks for {_first_global(path)}, refused without running it; {SAVE_AGAIN}"
    return f"is neither safetensors nor what torch.save writes; it begins with {shown(start[:24])}"


def _first_global(path: pathlib.Path) -> str:
    """Return the first name that a pickle asks for; its code is looked through, not run."""
    words: list[str] = []
    with path.open("rb") as file, contextlib.suppress(ValueError):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                return ".".join(words if argument is None else argument.split(" "))[:100]
            if isinstance(argument, str):
                words = [*words[-1:], argument]
    return "nothing in particular"


def unwrapped(name: str) -> str:
    """Return a name without its parts that are `WRAPPERS`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _has_values(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_meta or value.is_nested or value.is_quantized)


def tensors_of(path: pathlib.Path, loaded: Any) -> tuple[dict[str, Tensor], bool]:
    """Find the state dict in what a file held.

    Returns it by names without `WRAPPERS`, and whether it lay in a container or its names had such parts.

    Raises:
        CheckpointError: there is none, or two names differ in such parts only.
    """
    state, inside = loaded, False
    for key in 2 * CONTAINERS:  # one in another; a hostile one may hold itself
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state, inside = state[key], True
    others = [k for k, v in state.items() if not _has_values(v)] if isinstance(state, Mapping) else [state]
    if others or not state:
        raise CheckpointError(
            f"{path}: holds no state dict of tensors, at the top level or under {', '.join(CONTAINERS)}; "
            f"what lies there is {', '.join(map(shown, others))[:200] or 'empty'}"
        )
    entries = {unwrapped(str(name)): value.detach() for name, value in state.items()}
    if len(entries) < len(state):
        raise CheckpointError(
            f"{path}: holds weights twice, under names that differ in {', '.join(WRAPPERS)} only"
        )
    return entries, inside or list(entries) != list(map(str, state))


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

"""Read a LiteMedSAM checkpoint of any known layout into one complete float32 state dict.

Layouts:
    plain      a bare state dict with the 435 published names (.pth or .safetensors)
    training   {"model": state dict, ...} or {"state_dict": ...}, names possibly
               prefixed with "module." by data-parallel training
    loralib    either of these in which some linear layers carry `lora_A` and
               `lora_B` next to their frozen weight, as the paper's training code
               saves it; it is folded on reading

Nothing is unpickled beyond tensors and plain containers, and sizes are checked
from the file's own table before anything is read.
"""

from __future__ import annotations

import hashlib
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from litemed.export.errors import CheckpointError
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import LoRALinear, LowRankUpdate, folded_state_dict, named_updates

MAX_BYTES = 4 << 30  # a training checkpoint with its optimizer state is under 200 MB
CONTAINER_KEYS = ("model", "state_dict")
LORALIB_ALPHA = 1.0  # the default of the loralib package, which the paper's code leaves as it is


@dataclass(frozen=True)
class FoldedLoRA:
    """What was folded into the weights: for the manifest.

    Attributes:
        rank: inner width of the updates.
        alpha: the updates were scaled by alpha / rank.
        targets: the layers of each block that carried one, such as "attn.qkv".
        sha256: of the adapter's file; None when it came inside the checkpoint.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A complete set of weights.

    Attributes:
        state: the 435 entries by their published names, float32 (counters int64), on the CPU.
        layout: "plain", "training", "loralib" or "training, loralib".
        file: name of the file it came from.
        sha256: of that file.
        lora: what was folded, or None.
        crop_masks: whether it was trained for masks that end at their boxes.
    """

    state: dict[str, Tensor]
    layout: str
    file: str
    sha256: str
    lora: FoldedLoRA | None = None
    crop_masks: bool = False

    def model(self, size: int = 256) -> LiteMedSAM:
        """Build the network with these weights, in evaluation mode.

        Args:
            size: side of its input in pixels, a multiple of 64.
        """
        model = LiteMedSAM(size)
        model.load_state_dict(self.state)
        return model.eval()


def read_checkpoint(path: str | pathlib.Path, *, loralib_alpha: float = LORALIB_ALPHA) -> Checkpoint:
    """Read a checkpoint of any known layout; LoRA inside it is folded.

    Args:
        path: a .pth / .pt file in torch's zip format, or a .safetensors file.
        loralib_alpha: alpha of the loralib layout, which does not record it.

    Raises:
        CheckpointError: unreadable, not tensors, missing, unexpected or wrongly
            shaped entries (all listed), values that are not finite.
    """
    path = pathlib.Path(path)
    state, training = _state_dict(path, read_file(path))
    has_lora = any(name.endswith((".lora_A", ".lora_B")) for name in state)
    layout = ", ".join(["training"] * training + ["loralib"] * has_lora) or "plain"
    plain = {k: v for k, v in state.items() if not k.endswith((".lora_A", ".lora_B"))}
    if not any(name.startswith("image_encoder.") for name in plain):  # hundreds of names would say less
        raise CheckpointError(
            f"{path}: holds no image encoder, so it is no whole checkpoint; name the base instead (an "
            "adapter and its mask decoder go with it: litemed-export BASE --adapter FILE)"
        )
    check_entries(plain, expected_entries(), str(path))
    plain = {k: v.float() if v.is_floating_point() else v for k, v in plain.items()}
    lora = None
    if has_lora:
        model = wrap_loralib(
            plain, {k: v for k, v in state.items() if k not in plain}, loralib_alpha, str(path)
        )
        plain, lora = fold(model, str(path)), _loralib_summary(model, loralib_alpha)
    return Checkpoint(plain, layout, path.name, file_sha256(path), lora, _says_crop(path))


def untrained_checkpoint(seed: int = 0) -> Checkpoint:
    """Return weights drawn at random: for trying the tools out; their masks mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = LiteMedSAM().state_dict()
    return Checkpoint(dict(state), "untrained", f"random, seed {seed}", "")


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


def weights_metadata(crop_masks: bool) -> dict[str, str]:
    """Return what a safetensors file of whole weights says of itself."""
    return {"format": "pt", **({"crop_masks": "true"} if crop_masks else {})}


def _says_crop(path: pathlib.Path) -> bool:
    """Whether a file that was read as a checkpoint is a safetensors file with cropped masks."""
    if zipfile.is_zipfile(path):
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("crop_masks") == "true"


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


def _state_dict(path: pathlib.Path, loaded: Any) -> tuple[dict[str, Tensor], bool]:
    """Find the state dict in what a file held; second, whether it was inside a training checkpoint."""
    training = False
    if isinstance(loaded, Mapping):
        for key in CONTAINER_KEYS:
            if isinstance(loaded.get(key), Mapping):
                loaded, training = loaded[key], True
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(
            f"{path}: holds no state dict (looked at the top level and under {CONTAINER_KEYS})"
        )
    wrong = [str(k) for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong:
        raise CheckpointError(f"{path}: entries that are not tensors: {_listing(wrong)}")
    if all(name.startswith("module.") for name in loaded):
        return {name.removeprefix("module."): v for name, v in loaded.items()}, True
    return dict(loaded), training


def expected_entries() -> dict[str, Tensor]:
    """Return the published entries as tensors without storage (shape and dtype only)."""
    with torch.device("meta"):
        return dict(LiteMedSAM().state_dict())


def check_entries(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict whose names, shapes, kinds of number or values are not as expected.

    Raises:
        CheckpointError: every missing, unexpected and wrong entry is listed in one message.
    """
    findings = []
    if missing := [k for k in expected if k not in state]:
        findings.append(f"{len(missing)} missing: {_listing(missing)}")
    if unexpected := [k for k in state if k not in expected]:
        findings.append(f"{len(unexpected)} unexpected: {_listing(unexpected)}")
    common = [k for k in expected if k in state]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in common
        if state[k].shape != expected[k].shape
    ]
    if shapes:
        findings.append(f"{len(shapes)} wrongly shaped: {_listing(shapes)}")
    kinds = [
        f"{k} {state[k].dtype}".replace("torch.", "")
        for k in common
        if state[k].is_floating_point() != expected[k].is_floating_point()
        or state[k].is_complex()
        or state[k].is_sparse
    ]
    if kinds:
        findings.append(f"{len(kinds)} of another kind of number: {_listing(kinds)}")
    if not findings:  # only now is it sure that the values are of a bounded size
        values = [k for k in common if not bool(torch.isfinite(state[k]).all())]
        if values:
            findings.append(f"{len(values)} not finite: {_listing(values)}")
    if findings:
        raise CheckpointError(f"{source}: " + "; ".join(findings))


def wrap_loralib(
    plain: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float, source: str
) -> LiteMedSAM:
    """Build the network with the paper's adapters beside its weights, not folded.

    loralib adapts a plain linear layer by lora_B @ lora_A. Its merged qkv layer
    stacks one pair per enabled third of the output rows: lora_A (groups * rank,
    in), lora_B (groups * out / 3, rank). The paper's code enables the first and
    the last third, rows that in TinyViT are not q and v (they are interleaved
    per head); a checkpoint trained so is folded so.

    Raises:
        CheckpointError: an adapter without its layer or partner, or of a wrong shape; all are listed.
    """
    model = LiteMedSAM()
    model.load_state_dict(plain)
    layers = {k: m for k, m in model.named_modules() if isinstance(m, nn.Linear)}
    findings = []
    for name in sorted({k.rpartition(".")[0] for k in lora}):
        a, b = lora.get(f"{name}.lora_A"), lora.get(f"{name}.lora_B")
        layer = layers.get(name)
        if a is None or b is None or layer is None:
            findings.append(f"{name} lacks {'its linear layer' if layer is None else 'lora_A or lora_B'}")
            continue
        rows = _loralib_rows(layer, a, b)
        if rows is None:
            findings.append(
                f"{name} lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)} "
                f"on a layer of {tuple(layer.weight.shape)}"
            )
            continue
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            findings.append(f"{name} holds values that are not finite")
            continue
        rank = b.shape[1]
        updates = {}
        for i, part in enumerate(rows):
            update = LowRankUpdate(layer.in_features, part, rank, alpha / rank)
            update.lora_A.data = a[i * rank : (i + 1) * rank].float()
            update.lora_B.data = b[i * len(part) : (i + 1) * len(part)].float()
            updates[f"group{i}"] = update
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoRALinear(layer, updates))
    if findings:
        raise CheckpointError(f"{source}: {len(findings)} unusable LoRA layers: {_listing(findings)}")
    return model.eval()


def _loralib_rows(layer: nn.Linear, a: Tensor, b: Tensor) -> list[Tensor] | None:
    """The output rows of each group of a loralib pair, or None if the shapes fit no known arrangement."""
    if a.ndim != 2 or b.ndim != 2 or not b.shape[1] or a.shape[1] != layer.in_features:
        return None
    groups, rest = divmod(a.shape[0], b.shape[1])
    everything = torch.arange(layer.out_features)
    thirds = everything.chunk(3)
    if rest:
        return None
    if groups == 1 and b.shape[0] == layer.out_features:
        return [everything]
    if groups == 2 and 3 * b.shape[0] == 2 * layer.out_features:
        return [thirds[0], thirds[2]]
    if groups == 3 and b.shape[0] == layer.out_features and layer.out_features % 3 == 0:
        return list(thirds)
    return None


def fold(model: nn.Module, source: str) -> dict[str, Tensor]:
    """Fold every update of a model into a copy of its weights.

    Raises:
        CheckpointError: a folded weight is not finite.
    """
    try:
        return folded_state_dict(model)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _loralib_summary(model: nn.Module, alpha: float) -> FoldedLoRA:
    updates = named_updates(model)
    ranks = {len(u.lora_A) for u in updates.values()}
    targets = sorted({".".join(name.split(".")[-3:-1]) for name in updates})
    return FoldedLoRA(max(ranks), alpha, tuple(targets))


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


def _listing(names: list[str]) -> str:
    return ", ".join(names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""Reading checkpoints: every layout, and refusal of what is not one."""

import argparse
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import nn

from litemed.models.adapter import decoder_tensors
from litemed.models.checkpoint import add_decoder, read_checkpoint, untrained_checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.weight_files import CheckpointError, read_file, weights_digest


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return LiteMedSAM().state_dict()


def write(path, content):
    torch.save(content, path)
    return path


def renamed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("layout", "wrap"),
    [
        ("plain", lambda s: s),
        ("training", lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}}),
        ("training", lambda s: {f"module.{k}": v for k, v in s.items()}),
        ("training", lambda s: {"model": "tiny", "state_dict": {f"module.{k}": v for k, v in s.items()}}),
        ("plain", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
        ("training", lambda s: {"model": renamed(s, "module."), "epoch": 3, "loss": np.float64(0.1)}),
        ("training", lambda s: {"model": s, "losses": [np.float32(2), np.int64(3), np.bool_(True)]}),
        ("training", lambda s: {"state_dict": renamed(s, "model."), "pytorch-lightning_version": "2.5.0"}),
        ("training", lambda s: {"state_dict": {"model": s}}),
        ("training", lambda s: {"model_state_dict": renamed(s, "net._orig_mod.")}),
        ("training", lambda s: renamed(s, "_orig_mod.module.")),
        ("plain", lambda s: {k: nn.Parameter(v, v.is_floating_point()) for k, v in s.items()}),
        ("training", lambda s: renamed(s, "module._orig_mod.")),
        (
            "training",
            lambda s: {k.replace("image_encoder.", "image_encoder._orig_mod."): v for k, v in s.items()},
        ),
    ],
)
def test_layouts(tmp_path, state, layout, wrap):
    checkpoint = read_checkpoint(write(tmp_path / "c.pth", wrap(state)))
    assert checkpoint.layout == layout
    assert checkpoint.lora is None
    assert list(checkpoint.state) == list(state)
    assert all(v.dtype in (torch.float32, torch.int64) for v in checkpoint.state.values())
    assert not any(v.requires_grad for v in checkpoint.state.values())
    assert all(torch.allclose(v, state[k], atol=1e-2) for k, v in checkpoint.state.items())


def test_a_scalar_that_numpy_1_pickled_is_read(tmp_path, state):
    """It named the module differently."""
    path, old = write(tmp_path / "new.pth", {"model": state, "loss": np.float64(1)}), tmp_path / "old.pth"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(old, "w") as other:
        for entry in archive.infolist():
            other.writestr(entry, archive.read(entry).replace(b"cnumpy._core", b"cnumpy.core"))
    assert read_checkpoint(old).layout == "training"


def test_the_same_weights_under_two_names_are_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"c\.pth: holds weights twice"):
        read_checkpoint(write(tmp_path / "c.pth", state | renamed(state, "module.")))


def test_a_folder_stands_for_the_weights_in_it(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"is a folder without model\.safetensors"):
        read_checkpoint(tmp_path)
    write(tmp_path / "pytorch_model.bin", state)
    assert read_checkpoint(tmp_path).file == "pytorch_model.bin"
    save_file(renamed(state, "model."), tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_checkpoint(tmp_path)
    assert (found.file, found.layout) == ("model.safetensors", "training")
    assert all(torch.equal(v, state[k]) for k, v in found.state.items())


@pytest.mark.slow
def test_loralib_is_found_described_and_folded(golden_checkpoint):
    plain = read_checkpoint(golden_checkpoint("plain"))
    lora = read_checkpoint(golden_checkpoint("loralib"))
    assert lora.layout == "training, loralib"
    assert lora.lora is not None
    assert (lora.lora.rank, lora.lora.alpha) == (4, 1.0)
    assert lora.lora.targets == ("attn.qkv", "mlp.fc1", "mlp.fc2")
    qkv = "image_encoder.layers.2.blocks.0.attn.qkv.weight"
    change = lora.state[qkv] - plain.state[qkv]
    assert (change[160:320] == 0).all()
    raw = read_file(golden_checkpoint("loralib"))["model"]
    a, b = (raw[qkv.replace("weight", leaf)] for leaf in ("lora_A", "lora_B"))
    for rows, group in ((slice(160), 0), (slice(320, None), 1)):
        wanted = b.chunk(2)[group] @ a.chunk(2)[group] / 4
        assert wanted.abs().max() > 1e-3
        assert torch.allclose(change[rows], wanted, atol=1e-6)
    unscaled = read_checkpoint(golden_checkpoint("loralib"), loralib_alpha=0.0)
    assert torch.equal(unscaled.state[qkv], plain.state[qkv])


def test_every_fault_is_listed_at_once(tmp_path, state):
    broken = dict(state)
    broken["mask_decoder.iou_token.weight"] = broken["mask_decoder.iou_token.weight"].clone()
    for value in (float("nan"), float("inf")):
        broken["mask_decoder.iou_token.weight"][0, 5] = value
        with pytest.raises(CheckpointError, match=r"1 not finite: mask_decoder\.iou_token\.weight"):
            read_checkpoint(write(tmp_path / "c.pth", broken))
    del broken["mask_decoder.iou_token.weight"], broken["image_encoder.neck.0.weight"]
    broken["extra.weight"] = torch.zeros(3)
    broken["mask_decoder.mask_tokens.weight"] = torch.zeros(3, 256)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(write(tmp_path / "c.pth", broken))
    for part in (
        "c.pth: 2 missing: image_encoder.neck.0.weight, mask_decoder.iou_token.weight",
        "1 unexpected: extra.weight",
        "mask_decoder.mask_tokens.weight (3, 256) instead of (4, 256)",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loralib_layer_of_a_wrong_shape_is_refused(tmp_path, golden_checkpoint):
    content = read_file(golden_checkpoint("loralib"))
    name = "image_encoder.layers.1.blocks.0.attn.qkv.lora_B"
    content["model"][name] = content["model"][name][:100]
    del content["model"]["image_encoder.layers.1.blocks.0.mlp.fc1.lora_A"]
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(write(tmp_path / "c.pth", content))
    block = "image_encoder.layers.1.blocks.0."
    assert str(error.value).endswith(f"there for {block}attn.qkv, {block}mlp.fc1")


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"model": Payload(trap)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c\.pth: .*without running it"):
        read_checkpoint(tmp_path / "c.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(trap)))
    with pytest.raises(CheckpointError, match=r"bare\.pth"):
        read_checkpoint(tmp_path / "bare.pth")
    assert not trap.exists()


def saved(content, **how):
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


TENSORS = {"a": torch.arange(1000.0)}
EMPTY = {"image_encoder.patch_embed.lora_A": torch.zeros(9, 9, device="meta")}  # has a shape only
SAFE = safetensors.torch.save(TENSORS)
ZIP = saved(TENSORS)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"not found", "is neither safetensors nor what torch.save writes; it begins with b'not found'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (b"\r\n<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        (ZIP[: len(ZIP) // 2], "is cut short"),
        (ZIP.replace(b"data.pkl", b"data.old"), "is a zip file that is damaged"),
        (ZIP.replace(b"PK\6\7\0\0\0\0", b"PK\6\7\1\0\0\0"), "is a zip file that is damaged"),
        (SAFE[:-10], "is a safetensors file that is cut short or damaged"),
        (SAFE[:30], "is a safetensors file that is cut short or damaged"),
        ((1 << 60).to_bytes(8, "little") + b"{" + SAFE, "it begins with"),
        (saved(TENSORS, _use_new_zipfile_serialization=False), "is in torch's format before 1.6"),
        (saved({"model": TENSORS, "args": argparse.Namespace(lr=1)}), "asks for argparse.Namespace,"),
        (saved(nn.Linear(2, 2)), "asks for torch.nn.modules.linear.Linear,"),
        (saved({"loss": np.zeros(3)}), "asks for numpy._core.multiarray._reconstruct,"),
        (pickle.dumps(argparse.Namespace(lr=1)), "asks for argparse.Namespace,"),
        (pickle.dumps(argparse.Namespace(lr=1), protocol=2), "asks for argparse.Namespace,"),
        (saved(TENSORS), "has another network's weights, 1 entries such as a,"),
        (saved({"a\x1b[1m\n": torch.zeros(1)}), r"such as a\x1b[1m\n,"),
        (saved({"epoch": 3}), "what lies there is 'epoch'"),
        (saved({"model": TENSORS | {"step": np.int64(3)}}), "what lies there is 'step'"),
    ],
)
def test_what_is_no_checkpoint_is_named_for_what_it_is(tmp_path, content, fault):
    """In one line that names the file, and never says how to switch safety off."""
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert fault in said
    assert said.isprintable()
    assert "weights_only" not in said
    assert "trust" not in said
    assert len(said) < 500 + len(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth: cannot be read: No such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_a_declared_size_beyond_reason_is_refused_before_reading(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x")
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[central + 24 : central + 28] = (0xFFFFFFF0).to_bytes(4, "little")  # uncompressed size
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="declare"):
        read_checkpoint(path)


def test_what_is_not_a_state_dict_is_refused(tmp_path):
    holds_itself = {}
    holds_itself["model"] = holds_itself
    for content in ({}, [1, 2], {"epoch": 3}, {"model": {}}, {1: torch.zeros(1)}, holds_itself, EMPTY):
        with pytest.raises(CheckpointError, match=r"c\.pth"):
            read_checkpoint(write(tmp_path / "c.pth", content))


def test_the_digest_is_of_the_weights_not_of_the_file(tmp_path, state):
    first = read_checkpoint(write(tmp_path / "a.pth", state))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "b.safetensors")
    second = read_checkpoint(tmp_path / "b.safetensors")
    assert first.sha256 != second.sha256
    assert second.layout == "plain"
    assert weights_digest(first.state) == weights_digest(second.state)
    changed = dict(first.state)
    changed["mask_decoder.iou_token.weight"] = changed["mask_decoder.iou_token.weight"] + 1e-3
    assert weights_digest(changed) != weights_digest(first.state)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "1 missing: mask_decoder.iou_token.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda s: s.update({"mask_decoder.iou_token.weight": torch.zeros(2, 256)}),
            "(2, 256) instead of (1, 256)",
        ),
        (None, "is no safetensors file"),
    ],
)
def test_a_further_decoder_is_a_mask_decoder_in_safetensors(state, change, fault, tmp_path):
    base = untrained_checkpoint(1)
    assert list(base.models()) == ["decoder"]
    entries = {k: v.half() for k, v in decoder_tensors(state).items()}
    save_file(entries, tmp_path / "loose.safetensors")
    models = add_decoder(base, "tile_decoder", tmp_path / "loose.safetensors").models()
    assert all(torch.equal(v, base.state[k]) for k, v in models["decoder"].state_dict().items())
    for name, value in models["tile_decoder"].state_dict().items():
        assert torch.equal(value, entries[name].float() if name in entries else base.state[name])
    if change is None:
        torch.save(entries, tmp_path / "loose.safetensors")
    else:
        change(entries)
        save_file(entries, tmp_path / "loose.safetensors")
    with pytest.raises(CheckpointError) as error:
        add_decoder(base, "tile_decoder", tmp_path / "loose.safetensors")
    assert fault in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "loose.safetensors"))
    assert "\n" not in str(error.value)

"""Reading checkpoints: every layout, and refusal of what is not one."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from litemed.models.adapter import decoder_tensors
from litemed.models.checkpoint import add_loose_decoder, read_checkpoint, untrained_checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.weight_files import CheckpointError, read_file, weights_digest


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return LiteMedSAM().state_dict()


def write(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("layout", "wrap"),
    [
        ("plain", lambda s: s),
        ("training", lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}}),
        ("training", lambda s: {f"module.{k}": v for k, v in s.items()}),
        ("training", lambda s: {"model": "tiny", "state_dict": {f"module.{k}": v for k, v in s.items()}}),
        ("plain", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
    ],
)
def test_layouts(tmp_path, state, layout, wrap):
    checkpoint = read_checkpoint(write(tmp_path / "c.pth", wrap(state)))
    assert checkpoint.layout == layout
    assert checkpoint.lora is None
    assert list(checkpoint.state) == list(state)
    assert all(v.dtype in (torch.float32, torch.int64) for v in checkpoint.state.values())
    assert all(torch.allclose(v, state[k], atol=1e-2) for k, v in checkpoint.state.items())


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


def test_damaged_files_are_refused(tmp_path, state):
    whole = write(tmp_path / "whole.pth", state).read_bytes()
    save_file({"a": torch.zeros(100)}, tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in {
        "empty.pth": b"",
        "text.pth": b"hello",
        "cut.pth": whole[: len(whole) // 2],
        "cut.safetensors": tensors[:-10],
        "header.safetensors": (1 << 60).to_bytes(8, "little") + b"{" + tensors,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"absent\.pth: cannot be read"):
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
    for content in ({}, [1, 2], {"epoch": 3}, {"model": {}}, {1: torch.zeros(1)}):
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
def test_a_decoder_for_loose_boxes_is_a_mask_decoder_in_safetensors(state, change, fault, tmp_path):
    base = untrained_checkpoint(1)
    assert base.loose_model() is None
    entries = {k: v.half() for k, v in decoder_tensors(state).items()}
    save_file(entries, tmp_path / "loose.safetensors")
    both = add_loose_decoder(base, tmp_path / "loose.safetensors")
    assert all(torch.equal(v, base.state[k]) for k, v in both.model().state_dict().items())
    for name, value in both.loose_model().state_dict().items():
        assert torch.equal(value, entries[name].float() if name in entries else base.state[name])
    if change is None:
        torch.save(entries, tmp_path / "loose.safetensors")
    else:
        change(entries)
        save_file(entries, tmp_path / "loose.safetensors")
    with pytest.raises(CheckpointError) as error:
        add_loose_decoder(base, tmp_path / "loose.safetensors")
    assert fault in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "loose.safetensors"))
    assert "\n" not in str(error.value)

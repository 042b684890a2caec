"""Adapter files: round trip, folding, and refusal of what does not fit."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from litemed.models.adapter import Adapter, adapter_bytes, attach, decoder_path, decoder_tensors, fold_adapter
from litemed.models.checkpoint import Checkpoint, read_checkpoint, untrained_checkpoint
from litemed.models.errors import CheckpointError
from litemed.models.lora import LoRAConfig, add_lora, named_updates
from litemed.models.weight_files import weights_digest


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return untrained_checkpoint()


def train_a_little(base: Checkpoint, path: pathlib.Path, config: LoRAConfig, decoder: bool = False) -> None:
    """Write an adapter file as training does, with random updates."""
    model = base.model()
    torch.manual_seed(3)
    add_lora(model.image_encoder, config)
    for update in named_updates(model).values():
        update.lora_B.data.normal_(std=0.1)
    digest = None
    if decoder:
        tensors = {k: v + 0.01 for k, v in decoder_tensors(model.state_dict()).items()}
        save_file(tensors, decoder_path(path))
        digest = weights_digest(tensors)
    path.write_bytes(adapter_bytes(model, Adapter(config, weights_digest(base.state), digest)))


@pytest.fixture
def trained(base, tmp_path):
    """An adapter file with its decoder beside it."""
    path = tmp_path / "a.safetensors"
    train_a_little(base, path, LoRAConfig(), decoder=True)
    return path


@pytest.mark.parametrize("config", [LoRAConfig(), LoRAConfig(rank=2, alpha=6, targets=("attn.q", "mlp.fc1"))])
@torch.inference_mode()
def test_folded_equals_attached_and_differs_from_the_base(tmp_path, base, config):
    path = tmp_path / "a.safetensors"
    train_a_little(base, path, config)
    image = torch.rand(1, 3, 64, 64)
    plain, attached = base.model(64), attach(base, path)
    folded = fold_adapter(base, path)
    assert (plain.encode(image) - attached.encode(image)).abs().max() > 1e-2
    assert torch.allclose(folded.model(64).encode(image), attached.encode(image), atol=1e-4)
    assert folded.lora is not None
    assert (folded.lora.rank, folded.lora.targets) == (config.rank, config.targets)
    assert folded.lora.alpha == (config.rank if config.alpha is None else config.alpha)


def test_the_file_is_small_and_its_bytes_follow_from_its_content(tmp_path, base, trained):
    train_a_little(base, tmp_path / "b", LoRAConfig(), decoder=True)
    assert (tmp_path / "b").read_bytes() == trained.read_bytes()
    assert trained.stat().st_size < 1_000_000


def test_a_decoder_trained_with_it_is_taken_along(base, trained):
    before = weights_digest(base.state)
    folded = fold_adapter(base, trained)
    name = "mask_decoder.iou_token.weight"
    assert torch.allclose(folded.state[name], base.state[name] + 0.01)
    assert weights_digest(base.state) == before


def test_a_missing_or_other_decoder_is_refused(base, trained):
    beside = decoder_path(trained)
    tensors = load_file(beside)
    beside.unlink()
    with pytest.raises(CheckpointError, match=r"a\.decoder\.safetensors"):
        fold_adapter(base, trained)
    save_file({k: v + 1 for k, v in tensors.items()}, beside)
    with pytest.raises(CheckpointError, match="not the mask decoder"):
        fold_adapter(base, trained)


def test_files_given_in_the_place_of_others_are_named(base, trained):
    for part in (trained, decoder_path(trained)):
        with pytest.raises(CheckpointError, match="name the base instead") as error:
            read_checkpoint(part)
        assert str(part) in str(error.value)
        assert len(str(error.value)) < 300 + len(str(part))
    with pytest.raises(CheckpointError, match=r"a\.decoder\.safetensors: holds a mask decoder .* a\.safeten"):
        fold_adapter(base, decoder_path(trained))


def test_another_base_is_refused(base, trained):
    with pytest.raises(CheckpointError, match="another base"):
        fold_adapter(untrained_checkpoint(seed=1), trained)


def test_a_double_fold_is_refused(tmp_path, base, trained):
    folded = fold_adapter(base, trained)
    with pytest.raises(CheckpointError, match="already holds a LoRA"):
        fold_adapter(folded, trained)
    torch.save(folded.state, tmp_path / "folded.pth")
    with pytest.raises(CheckpointError, match="another base"):
        fold_adapter(read_checkpoint(tmp_path / "folded.pth"), trained)


def rewrite(path, tensors, **about):
    """Write an adapter file's tensors and what it says about itself anew."""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["litemed"])
    save_file(tensors, path, metadata={"litemed": json.dumps(said | about)})


def test_entries_that_do_not_fit_are_all_listed(base, trained):
    tensors = load_file(trained)
    tensors["stranger"] = torch.zeros(2)
    name = "image_encoder.layers.1.blocks.0.attn.qkv.all.lora_A"
    tensors[name] = tensors[name][:, :5].contiguous()
    del tensors["image_encoder.layers.1.blocks.1.mlp.fc1.all.lora_B"]
    rewrite(trained, tensors)
    with pytest.raises(CheckpointError) as error:
        fold_adapter(base, trained)
    for part in ("1 missing", "1 unexpected: stranger", "(4, 5) instead of (4, 128)"):
        assert part in str(error.value)


def test_a_rank_that_the_tensors_do_not_have_is_refused_before_anything_is_made_of_it(base, trained):
    """Of rank 10**9 two matrices would take terabytes."""
    for tensors in (load_file(trained), {}):
        rewrite(trained, tensors, rank=10**9)
        with pytest.raises(CheckpointError, match="says rank 1000000000"):
            fold_adapter(base, trained)


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"litemed": "no json"}, {"litemed": "[]"}, {"litemed": '{"format": "litemed-adapter-9"}'}],
)
def test_files_that_are_no_adapters_are_refused(tmp_path, base, metadata):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: (is not an adapter; give|adapter format)"):
        fold_adapter(base, path)


def test_updates_that_are_not_finite_are_refused(base, trained):
    tensors = load_file(trained)
    tensors[next(name for name in tensors if name.endswith("lora_B"))][:] = float("nan")
    rewrite(trained, tensors)
    with pytest.raises(CheckpointError, match="not finite"):
        fold_adapter(base, trained)

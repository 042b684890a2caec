"""LoRA and adapter files: what is trained beside the weights is folded into them, and nothing else."""

import json
import pathlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from litemed.models.adapter import adapter_bytes, decoder_path, decoder_tensors
from litemed.models.checkpoint import Checkpoint, read_checkpoint, untrained_checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import add_lora, lora_tensors
from litemed.models.lora_folding import fold_adapter
from litemed.models.weight_files import CheckpointError, weights_digest

QKV = "image_encoder.layers.2.blocks.0.attn.qkv"
HEADS, HEAD_DIM = 5, 32  # of that layer


@pytest.fixture(scope="module")
def base():
    return untrained_checkpoint()


def write_adapter(base: Checkpoint, path: pathlib.Path, rank: int = 4, decoder: bool = False) -> LiteMedSAM:
    """Write an adapter file as training does, with random updates; return the model that they are beside."""
    model = base.model(64)
    torch.manual_seed(3)
    add_lora(model.image_encoder, rank)
    for name, update in lora_tensors(model).items():
        if name.endswith("lora_B"):
            update.normal_(std=0.1)
    digest = None
    if decoder:
        tensors = {k: v + 0.01 for k, v in decoder_tensors(model.state_dict()).items()}
        save_file(tensors, decoder_path(path))
        digest = weights_digest(tensors)
    path.write_bytes(adapter_bytes(model, rank, weights_digest(base.state), digest))
    return model.eval()


@pytest.fixture
def trained(base, tmp_path):
    """An adapter file with its decoder beside it."""
    path = tmp_path / "a.safetensors"
    write_adapter(base, path, decoder=True)
    return path


def rewrite(path, tensors, **about):
    """Write an adapter file's tensors and what it says about itself anew."""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["litemed"])
    save_file(tensors, path, metadata={"litemed": json.dumps(said | about)})


def test_an_adapter_changes_nothing_at_first_and_alone_requires_gradients(base):
    model, image = base.model(64), torch.rand(1, 3, 64, 64)
    before = model.encode(image)
    add_lora(model.image_encoder, 4)
    assert torch.equal(model.encode(image), before)
    encoder = model.image_encoder
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 4 * 10
    assert {n.rpartition(".")[2] for n in trainable} == {"lora_A", "lora_B"}
    model.encode(image).square().mean().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is not None} == trainable


@pytest.mark.parametrize("rank", [4, 1])
@torch.inference_mode()
def test_folded_equals_attached_and_differs_from_the_base(tmp_path, base, rank):
    path, image = tmp_path / "a.safetensors", torch.rand(1, 3, 64, 64)
    before = weights_digest(base.state)
    attached = write_adapter(base, path, rank).encode(image)
    folded = fold_adapter(base, path)
    assert (base.model(64).encode(image) - attached).abs().max() > 1e-2
    assert torch.allclose(folded.model(64).encode(image), attached, atol=1e-4)
    assert weights_digest(base.state) == before
    assert folded.lora is not None
    assert (folded.lora.rank, folded.lora.alpha) == (rank, rank)
    assert folded.lora.targets == ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def test_of_an_older_file_alpha_scales_and_a_part_of_qkv_is_the_same_part_of_every_head(base, trained):
    tensors = load_file(trained)
    part = {}
    for name, value in tensors.items():
        if ".qkv." in name:
            of_q = value.view(-1, 3, HEAD_DIM, 4)[:, 0].reshape(-1, 4) if name.endswith("lora_B") else value
            part[name.replace(".all.", ".k.")] = of_q.contiguous()
    rewrite(trained, part, targets=["attn.k"], alpha=8, decoder=None)
    change = fold_adapter(base, trained).state[f"{QKV}.weight"] - base.state[f"{QKV}.weight"]
    change = change.view(HEADS, 3, HEAD_DIM, -1)
    assert (change[:, [0, 2]] == 0).all()
    wanted = 2 * part[f"{QKV}.k.lora_B"] @ part[f"{QKV}.k.lora_A"]
    assert torch.allclose(change[:, 1].reshape(wanted.shape), wanted, atol=1e-6)


def test_the_file_is_small_and_its_bytes_follow_from_its_content(tmp_path, base, trained):
    write_adapter(base, tmp_path / "b", decoder=True)
    assert (tmp_path / "b").read_bytes() == trained.read_bytes()
    assert trained.stat().st_size < 1_000_000


def test_a_decoder_trained_with_it_is_taken_along_and_a_missing_or_other_one_refused(base, trained):
    name, beside = "mask_decoder.iou_token.weight", decoder_path(trained)
    assert torch.allclose(fold_adapter(base, trained).state[name], base.state[name] + 0.01)
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
    with pytest.raises(CheckpointError, match=r"a\.decoder\.safetensors: is not an adapter"):
        fold_adapter(base, decoder_path(trained))


def test_another_base_and_a_double_fold_are_refused(base, trained):
    for other in (untrained_checkpoint(seed=1), fold_adapter(base, trained)):
        with pytest.raises(CheckpointError, match="another base"):
            fold_adapter(other, trained)


def test_entries_that_do_not_fit_are_all_listed(base, trained):
    tensors = load_file(trained)
    tensors["stranger"] = torch.zeros(2)
    name = f"{QKV}.all.lora_A"
    tensors[name] = tensors[name][:, :5].contiguous()
    del tensors["image_encoder.layers.1.blocks.1.mlp.fc1.all.lora_B"]
    rewrite(trained, tensors)
    with pytest.raises(CheckpointError) as error:
        fold_adapter(base, trained)
    for part in ("1 missing", "1 unexpected: stranger", "(4, 5) instead of (4, 160)"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "about",
    [None, {}, "no json", [], {"format": "litemed-adapter-9"}, {"rank": 10**9}, {"alpha": float("nan")}]
    + [{"targets": targets} for targets in (["attn.qvk"], [[]], 3)],
)
def test_what_is_no_adapter_is_refused(base, trained, about):
    """Of rank 10**9 two matrices would take terabytes."""
    if isinstance(about, dict) and about:
        rewrite(trained, load_file(trained), **about)
    else:
        said = about if isinstance(about, str) else json.dumps(about)
        save_file(load_file(trained), trained, metadata=None if about is None else {"litemed": said})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: is not an adapter; give"):
        fold_adapter(base, trained)


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_fold_that_is_not_finite_is_refused(base, trained, value):
    """Be it that an update is not, or that the sum is not."""
    tensors = load_file(trained)
    for name in tensors:
        if "mlp.fc1" in name:
            tensors[name][:] = value
    rewrite(trained, tensors)
    with pytest.raises(CheckpointError, match="not finite: image_encoder"):
        fold_adapter(base, trained)

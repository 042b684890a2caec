"""One step of training: what it does to the gradients and to the weights, in float32 and in bfloat16."""

from pathlib import Path
from typing import Any

import pytest
import torch

from litemed.models.checkpoint import untrained_checkpoint
from litemed.models.tiny_vit import PatchEmbed
from litemed.train import loop
from litemed.train.config import Config, Hardware, updated
from litemed.train.dataset import Batch, Data
from litemed.train.loop import Session, Trainer
from litemed.train.network import autocast, compile_blocks
from litemed.train.prepare.store import Slices
from litemed.train.run_files import Reporter

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slices(prepare_drawn, tmp_path_factory):
    return Slices.open(prepare_drawn(tmp_path_factory.mktemp("data") / "us", ("US",)), split="train")


def after_a_step(slices: Slices, folder: Path, **tables: dict[str, Any]) -> tuple[Trainer, Batch]:
    """Return a trainer that has learnt from one batch, and the batch."""
    run = {"run": {"size": 64, "batch_size": 2}, "hardware": {"workers": 0, "device": "cpu"}}
    config = updated(updated(Config(), run, "test"), tables, "test")
    session = Session(folder, {}, CPU, Reporter(None))
    trainer = Trainer(config, untrained_checkpoint(), Data(slices, slices), session)
    batch = next(iter(trainer.loader))
    trainer.step(batch)
    return trainer, batch


def gradient(trainer: Trainer) -> torch.Tensor:
    gradients = [weights.grad for weights in trainer.network.tuned()]
    return torch.cat([part.flatten() for part in gradients if part is not None])


def test_gradients_are_scaled_down_to_a_norm_and_keep_their_direction(slices, tmp_path, monkeypatch):
    free = gradient(after_a_step(slices, tmp_path)[0])
    assert 0.1 < free.norm() < 1
    monkeypatch.setattr(loop, "CLIP_NORM", 0.01)
    clipped = gradient(after_a_step(slices, tmp_path)[0])
    assert clipped.norm() == pytest.approx(0.01, rel=1e-3)
    assert torch.cosine_similarity(free, clipped, dim=0) > 0.9999


def test_bfloat16_computes_otherwise_and_learns_the_same_in_float32_weights(slices, tmp_path):
    exact, batch = after_a_step(slices, tmp_path, hardware={"precision": "float32"})
    rough, same = after_a_step(slices, tmp_path, hardware={"precision": "bfloat16"})
    assert torch.equal(batch.image, same.image)
    assert all(weights.dtype == torch.float32 for weights in rough.network.parameters())
    assert not torch.equal(gradient(exact), gradient(rough))
    assert torch.cosine_similarity(gradient(exact), gradient(rough), dim=0) > 0.95


@pytest.mark.parametrize(
    ("precision", "compiled", "device", "expected"),
    [
        ("auto", "auto", "cuda", True),
        ("auto", "auto", "cpu", False),
        ("float32", "no", "cuda", False),
        ("bfloat16", "yes", "cpu", True),
    ],
)
def test_compiling_and_bfloat16_are_for_gpus_unless_told_otherwise(precision, compiled, device, expected):
    hardware = Hardware(precision=precision, compile=compiled)
    if device == "cpu" or torch.cuda.is_available():
        with autocast(hardware, torch.device(device)):
            assert torch.is_autocast_enabled(device) is expected
    network = PatchEmbed()
    compile_blocks(network, hardware, torch.device(device))
    assert (network._compiled_call_impl is not None) is expected


def test_the_decoder_has_a_rate_of_its_own(slices, tmp_path):
    """In the first step AdamW moves every weight by the rate, but for the decay."""
    before = untrained_checkpoint().state
    rates = {"lr": 1e-3, "decoder_lr": 1e-5, "weight_decay": 0.0}
    trainer, _ = after_a_step(slices, tmp_path, run={"tune": "all"}, optimizer=rates)
    after = trainer.network.model.state_dict()
    learnt = {name for name, weights in trainer.network.model.named_parameters() if weights.requires_grad}
    moved = {name: float((after[name] - before[name]).abs().max()) for name in learnt}
    for name, distance in moved.items():
        rate = 1e-3 if name.startswith("image_encoder.") else 1e-5
        assert distance < 1.1 * rate
    for part, rate in (("image_encoder", 1e-3), ("mask_decoder", 1e-5), ("prompt_encoder", 1e-5)):
        assert max(moved[name] for name in moved if name.startswith(part)) > 0.9 * rate


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_under_the_same_names(slices, tmp_path, monkeypatch):
    """With PyTorch's plain backend, which needs no C++ compiler: of the capture and its gradients."""
    monkeypatch.setattr(torch.nn.Module, "compile", _captured)
    captured, _ = after_a_step(slices, tmp_path, hardware={"compile": "yes"})
    plain, _ = after_a_step(slices, tmp_path, hardware={"compile": "no"})
    blocks = [module for module in captured.network.modules() if module._compiled_call_impl is not None]
    assert blocks
    assert captured.network.state_dict().keys() == plain.network.state_dict().keys()
    assert torch.cosine_similarity(gradient(captured), gradient(plain), dim=0) > 0.9999


def _captured(module: torch.nn.Module, dynamic: bool | None = None) -> None:
    module._compiled_call_impl = torch.compile(
        module._call_impl, backend="aot_eager", fullgraph=True, dynamic=dynamic
    )

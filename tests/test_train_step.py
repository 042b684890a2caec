"""One step of training: what it does to the gradients and to the weights, in float32 and in bfloat16."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from litemed.benchmarks.phantoms import draw_image
from litemed.export.checkpoint import untrained_checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.errors import UsageError
from litemed.train.config import Config
from litemed.train.dataset import Batch, Data
from litemed.train.distributed import Processes
from litemed.train.loop import Trainer
from litemed.train.losses import pixels_in
from litemed.train.network import uses_bfloat16
from litemed.train.prepare.pipeline import prepare_slices
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import Slices
from litemed.train.progress import Reporter
from litemed.train.tables import updated

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Slices:
    folder = tmp_path_factory.mktemp("data")
    pairs = []
    for number in range(2):
        phantom = draw_image(96, 96, 2, seed=number)
        path = folder / f"{number}.npz"
        np.savez(path, imgs=phantom.image, gts=phantom.labels)
        pairs.append(Pair("US", "drawn", path.stem, "train", "instance", path, None))
    prepare_slices(Found(tuple(pairs)), folder / "data", Settings())
    return Slices.open(folder / "data")


def after_a_step(slices: Slices, folder: Path, **tables: dict[str, Any]) -> tuple[Trainer, Batch]:
    """Return a trainer that has learnt from one batch, and the batch."""
    run = {"run": {"size": 64, "batch_size": 2}, "hardware": {"workers": 0, "device": "cpu"}}
    config = updated(updated(Config(), run, "test"), tables, "test")
    data = Data(slices, slices, "")
    trainer = Trainer(config, untrained_checkpoint(), data, folder, Processes(0, 1, CPU), Reporter(None))
    batch = next(iter(trainer.loader))
    trainer.step(batch)
    return trainer, batch


def gradient(trainer: Trainer) -> torch.Tensor:
    gradients = [weights.grad for weights in trainer.network.tuned()]
    return torch.cat([part.flatten() for part in gradients if part is not None])


def test_gradients_are_scaled_down_to_the_norm_that_was_set_and_keep_their_direction(slices, tmp_path):
    free = gradient(after_a_step(slices, tmp_path, optimizer={"clip_norm": 0})[0])
    clipped = gradient(after_a_step(slices, tmp_path, optimizer={"clip_norm": 0.01})[0])
    assert free.norm() > 0.1
    assert clipped.norm() == pytest.approx(0.01, rel=1e-3)
    assert torch.cosine_similarity(free, clipped, dim=0) > 0.9999
    untouched = gradient(after_a_step(slices, tmp_path, optimizer={"clip_norm": 1e6})[0])
    assert torch.equal(untouched, free)


def test_bfloat16_computes_otherwise_and_learns_the_same_in_float32_weights(slices, tmp_path):
    exact, batch = after_a_step(slices, tmp_path, hardware={"precision": "float32"})
    rough, same = after_a_step(slices, tmp_path, hardware={"precision": "bfloat16"})
    assert torch.equal(batch.image, same.image)
    assert all(weights.dtype == torch.float32 for weights in rough.network.parameters())
    assert not torch.equal(gradient(exact), gradient(rough))
    assert torch.cosine_similarity(gradient(exact), gradient(rough), dim=0) > 0.95


def test_a_step_learns_from_windows_of_the_images(slices, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(LiteMedSAM, "encode", _noting(LiteMedSAM.encode, shapes))
    settings = {"run": {"size": 128, "tune": "all", "windows": True}, "prompts": {"tokens": 64}}
    trainer, batch = after_a_step(slices, tmp_path, **settings)
    assert batch.image.shape == (2, 3, 128, 128)
    ((images, _, height, width),) = shapes
    assert images == 2
    assert {height, width} <= {112, 128}
    encoder = trainer.network.model.image_encoder
    assert all(weights.grad is not None for weights in encoder.parameters() if weights.requires_grad)
    assert gradient(trainer).isfinite().all()


@pytest.mark.parametrize("crop", [False, True])
def test_a_base_of_cropped_masks_is_not_tuned_otherwise_without_a_word(slices, tmp_path, crop):
    run = {"run": {"size": 64, "crop_masks": crop}, "hardware": {"workers": 0, "device": "cpu"}}
    config, data = updated(Config(), run, "test"), Data(slices, slices, "")
    base = dataclasses.replace(untrained_checkpoint(), crop_masks=True)
    log = io.StringIO()
    Trainer(config, base, data, tmp_path, Processes(0, 1, CPU), Reporter(log))
    assert ("end at their boxes" in log.getvalue()) is not crop


@pytest.mark.parametrize("tokens", [0, 64])
def test_what_lies_outside_of_the_boxes_is_not_learnt_where_masks_are_cropped(slices, tmp_path, tokens):
    def gradients(crop, change):
        settings = {"run": {"tune": "decoder", "crop_masks": crop}, "prompts": {"tokens": tokens}}
        trainer, batch = after_a_step(slices, tmp_path, **settings)
        outside = ~pixels_in(batch.boxes, 64)
        masks = torch.where(outside, 1 - batch.masks, batch.masks) if change else batch.masks
        torch.manual_seed(1)
        trainer.step(dataclasses.replace(batch, masks=masks))
        return gradient(trainer)

    assert torch.equal(gradients(True, False), gradients(True, True))
    assert not torch.equal(gradients(False, False), gradients(False, True))


@pytest.mark.parametrize(
    "settings",
    [
        {"run": {"size": 128}},
        {"run": {"size": 64}, "prompts": {"tokens": 64}},
    ],
)
def test_windows_need_a_sample_of_tokens_and_a_large_image(slices, tmp_path, settings):
    settings = {**settings, "run": {**settings["run"], "windows": True}}
    with pytest.raises(UsageError, match=r"run\.windows: needs prompts\.tokens"):
        after_a_step(slices, tmp_path, **settings)


def test_every_pixel_is_asked_with_the_weight_that_was_set(slices, tmp_path):
    def loss(pixels: float, **more: float) -> float:
        settings = {"run": {"size": 64, "tune": "all"}, "loss": {"pixels": pixels, **more}}
        return float(after_a_step(slices, tmp_path, **settings)[0]._sums[3])

    without, once, thrice = loss(0), loss(1), loss(3)
    assert once > without + 0.5
    assert thrice - without == pytest.approx(3 * (once - without), rel=1e-4)
    masks = {"dice": 0, "focal": 0, "iou": 0}
    assert loss(1, **masks) == pytest.approx(once - without, rel=1e-4)


def test_the_encoder_can_learn_from_pixels_alone(slices, tmp_path):
    frozen = ("prompt_encoder", "mask_decoder")
    settings: dict[str, Any] = {"run": {"tune": "all", "freeze": frozen}}
    settings["loss"] = {"dice": 0, "focal": 0, "iou": 0, "pixels": 1}
    trainer, _ = after_a_step(slices, tmp_path, **settings)
    before, after = untrained_checkpoint().state, trainer.network.model.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"image_encoder"}


def test_pixels_are_not_asked_of_an_encoder_that_is_left_alone(slices, tmp_path):
    with pytest.raises(UsageError, match=r"loss\.pixels: asks the encoder"):
        after_a_step(slices, tmp_path, run={"tune": "decoder"}, loss={"pixels": 1})


def _noting(function: Callable[..., torch.Tensor], shapes: list[Any]) -> Callable[..., torch.Tensor]:
    def wrapped(model: LiteMedSAM, image: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(image.shape))
        return function(model, image)

    return wrapped


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        ("float32", "cuda", False),
        ("bfloat16", "cpu", True),
    ],
)
def test_bfloat16_is_for_gpus_unless_told_otherwise(precision, device, expected):
    config = updated(Config(), {"hardware": {"precision": precision}}, "test")
    assert uses_bfloat16(config, torch.device(device)) is expected

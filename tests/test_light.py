"""The light encoder: its weights compute what they did when they were trained, in PyTorch and in a bundle."""

import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import litemed.runtime
from litemed.export.bundle import ExportOptions, write_bundle
from litemed.models.checkpoint import add_decoder, read_checkpoint, untrained_checkpoint
from litemed.models.encoders import LIGHT, TINY_VIT
from litemed.models.weight_files import CheckpointError

WEIGHTS = pathlib.Path(__file__).parents[1] / "weights" / "light.safetensors"
LOOSE = WEIGHTS.with_name("light-loose-decoder.safetensors")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "light"
    write_bundle(read_checkpoint(WEIGHTS), path, ExportOptions(box_counts=(1, 2)))
    return path


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and float(np.abs(found - expected).max()) < TOLERANCE


@torch.inference_mode()
def test_pytorch_reproduces_the_golden_outputs(light_golden):
    checkpoint = read_checkpoint(WEIGHTS)
    assert checkpoint.encoder == LIGHT
    model = checkpoint.model()
    embedding = model.encode(torch.from_numpy(light_golden["image"]))
    logits, iou = model.decode(embedding, torch.from_numpy(light_golden["boxes"]))
    assert close(embedding.numpy(), light_golden["embedding"])
    assert close(logits[:, 0].numpy(), light_golden["logits"])
    assert close(iou[:, 0].numpy(), light_golden["iou"])


@torch.inference_mode()
def test_the_decoder_for_loose_boxes_fills_a_loose_box_less(light_golden):
    """Boxes grown by 0.4 of their sides: its masks are nearer to those of the tight boxes."""
    checkpoint = add_decoder(read_checkpoint(WEIGHTS), "loose_decoder", LOOSE)
    embedding, boxes = (torch.from_numpy(light_golden[name]) for name in ("embedding", "boxes"))
    tight, sides = light_golden["logits"] > 0, boxes[:, 2:] - boxes[:, :2]
    boxes = torch.cat([boxes[:, :2] - 0.28 * sides, boxes[:, 2:] + 0.12 * sides], dim=1)
    dice = []
    for model in checkpoint.models().values():
        masks = model.decode(embedding, boxes)[0][:, 0].numpy() > 0
        dice.append([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(masks, tight, strict=True)])
    assert np.all(np.array(dice[1]) > np.array(dice[0]) + 0.05)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bundle_reproduces_the_golden_outputs(light_golden, bundle, engine):
    loaded = litemed.runtime.load(bundle, engine=engine, precision="exact").engine
    embedding = loaded.encode(light_golden["image"])
    logits, iou = loaded.decode(embedding, light_golden["boxes"])
    assert close(np.asarray(embedding), light_golden["embedding"])
    assert close(logits, light_golden["logits"])
    assert close(iou, light_golden["iou"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tiny, light: tiny | light, "entries of tiny_vit and light image encoder"),
        (lambda tiny, light: {k: v for k, v in light.items() if "r.s" not in k}, r"missing: .*image_enc"),
        (
            lambda tiny, light: {k.replace("image_", ""): v for k, v in light.items()},
            "no image encoder known",
        ),
    ],
)
def test_entries_of_both_encoders_or_neither_are_refused(tmp_path, make, message):
    tiny, light = (untrained_checkpoint(encoder=encoder).state for encoder in (TINY_VIT, LIGHT))
    save_file(make(tiny, light), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(tmp_path / "w.safetensors")
    assert "w.safetensors" in str(error.value)
    assert "\n" not in str(error.value)

"""The network reproduces the published one on the golden weights."""

import numpy as np
import pytest
import torch

from litemed.models.checkpoint import read_checkpoint
from litemed.models.litemedsam import LiteMedSAM

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["plain", "loralib"])
def golden(request, golden_checkpoint, golden_expected):
    layout = request.param
    model = read_checkpoint(golden_checkpoint(layout)).model()
    expected = {k.removeprefix(layout + "_"): v for k, v in golden_expected.items() if k.startswith(layout)}
    expected |= {k: golden_expected[k] for k in ("image", "boxes")}
    with torch.inference_mode():
        embedding = model.encode(torch.from_numpy(expected["image"]))
    return model, embedding, expected


def close(tensor: torch.Tensor, expected: np.ndarray) -> bool:
    array = tensor.numpy()
    return array.shape == expected.shape and float(np.abs(array - expected).max()) < TOLERANCE


def test_embedding(golden):
    _, embedding, expected = golden
    assert embedding.shape == (1, 256, 64, 64)
    assert close(embedding[:, :, ::4, ::4], expected["embedding_every4"])
    # every position counts here, 4096 rounding errors add up
    assert np.abs(embedding.double().sum((2, 3)).numpy() - expected["embedding_sum"]).max() < 4096 * 1e-5


@torch.inference_mode()
def test_box_prompts(golden):
    model, embedding, expected = golden
    logits, iou = model.decode(embedding, torch.from_numpy(expected["boxes"]).float())
    assert logits.shape == (5, 1, 256, 256)
    assert close(logits[:, :, ::2, ::2], expected["logits"])
    assert close(iou, expected["iou"])


@torch.inference_mode()
def test_multimask_outputs_and_point_prompts(golden):
    model, embedding, expected = golden
    boxes = torch.from_numpy(expected["boxes"][:2]).float()
    logits, iou = model.decode(embedding, boxes, multimask=True)
    assert close(logits[:, :, ::4, ::4], expected["multimask_logits_every4"])
    assert close(iou, expected["multimask_iou"])
    points = torch.tensor([[[40.0, 60.0], [60.0, 70.0], [200.0, 90.0]]])
    logits, _ = model.decode(embedding, points=(points, torch.tensor([[1, 1, 0]])))
    assert close(logits[:, :, ::2, ::2], expected["points_logits_every2"])


@torch.inference_mode()
def test_one_embedding_per_prompt_equals_a_shared_one_and_a_mask_changes_the_answer():
    torch.manual_seed(0)
    model = LiteMedSAM(64).eval()
    embedding = model.encode(torch.rand(1, 3, 64, 64))
    boxes = torch.tensor([[3.0, 4, 30, 40], [10, 20, 60, 50], [0, 0, 63, 63]])
    shared, _ = model.decode(embedding, boxes)
    separate, _ = model.decode(embedding.expand(3, -1, -1, -1), boxes)
    assert torch.allclose(shared, separate, atol=1e-5)
    masked, _ = model.decode(embedding, boxes, masks=4 * torch.randn(3, 1, 64, 64))
    assert masked.shape == shared.shape
    for other in (shared[1], masked[0]):
        assert not torch.allclose(shared[0], other, atol=1e-4)


@pytest.mark.parametrize("size", [0, 100, -64])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        LiteMedSAM(size)

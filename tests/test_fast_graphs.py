"""The encoder and the decoder rewritten for speed compute what the published ones compute."""

import copy

import pytest
import torch

from litemed.export.fast_decoder import FastDecoderGraph, MaskEncoderGraph
from litemed.export.graphs import ENCODER_GRAPHS
from litemed.models.checkpoint import untrained_checkpoint
from litemed.models.encoders import LIGHT, TINY_VIT


def boxes(count: int, size: int) -> torch.Tensor:
    torch.manual_seed(count)
    corner = torch.randint(0, size // 2, (count, 2))
    return torch.cat([corner, corner + torch.randint(3, size // 2, (count, 2))], dim=1).float()


@pytest.fixture(scope="module", params=[TINY_VIT, LIGHT])
def perturbed(request):
    """Weights drawn at random, with no bias, norm or running average left at its neutral first value."""
    model = untrained_checkpoint(encoder=request.param).model(64)
    torch.manual_seed(0)
    state = model.state_dict()
    for name, value in state.items():
        if value.dtype.is_floating_point and value.dim() == 1:
            offset = 0.1 * torch.randn(value.shape)
            state[name] = value + (offset.abs() if name.endswith("running_var") else offset)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("size", [64, 192])
@torch.inference_mode()
def test_encoder_at_sizes_that_windows_do_not_divide(perturbed, size):
    image = torch.rand(1, 3, size, size)
    model = copy.deepcopy(perturbed)
    model.size = size
    expected = model.encode(image)
    found = ENCODER_GRAPHS[model.encoder](model)(image)
    assert found.shape == expected.shape == (1, 256, size // 4, size // 4)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("count", [1, 2, 17])
@torch.inference_mode()
def test_decoder(perturbed, count):
    embedding = torch.randn(1, 256, 16, 16)
    expected = perturbed.decode(embedding, boxes(count, 64))
    corners = boxes(count, 64).reshape(-1, 2, 2), torch.tensor([[2.0, 3]]).expand(count, 2)
    found = FastDecoderGraph(perturbed)(embedding, *corners)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b[:, 0].shape
        assert (a - b[:, 0]).abs().max() < 2e-5


@torch.inference_mode()
def test_points_with_and_without_a_box_and_a_mask(perturbed):
    embedding, mask, graph = (
        torch.randn(1, 256, 16, 16),
        torch.randn(1, 1, 64, 64),
        FastDecoderGraph(perturbed),
    )
    box, points, kinds = boxes(3, 64), 64 * torch.rand(3, 4, 2), torch.tensor([[1.0, 0, 1, -1]] * 3)
    alone = [torch.cat([points, torch.zeros(3, 1, 2)], 1), torch.cat([kinds, -torch.ones(3, 1)], 1)]
    corners = torch.tensor([[2.0, 3]] * 3)
    boxed = [torch.cat([points, box.reshape(3, 2, 2)], 1), torch.cat([kinds, corners], 1)]
    placed = embedding + MaskEncoderGraph(perturbed)(mask)
    for found, expected in (
        (graph(embedding, *alone), perturbed.decode(embedding, points=(points, kinds))),
        (graph(embedding, *boxed), perturbed.decode(embedding, box, (points, kinds))),
        (graph(placed, *boxed), perturbed.decode(embedding, box, (points, kinds), mask)),
    ):
        for a, b in zip(found, expected, strict=True):
            assert (a - b[:, 0]).abs().max() < 5e-5

"""The decoder rewritten for speed computes what the published one computes."""

from __future__ import annotations

import pytest
import torch

from litemed.export.checkpoint import read_checkpoint, untrained_checkpoint
from litemed.export.fast_decoder import FastDecoderGraph
from litemed.export.graphs import DecoderGraph


def boxes(count: int, size: int) -> torch.Tensor:
    torch.manual_seed(count)
    corner = torch.randint(0, size // 2, (count, 2))
    return torch.cat([corner, corner + torch.randint(3, size // 2, (count, 2))], dim=1).float()


@pytest.mark.parametrize("count", [1, 2, 17])
@torch.inference_mode()
def test_untrained_weights(count):
    model = untrained_checkpoint().model(64)
    embedding = torch.randn(1, 256, 16, 16)
    expected = DecoderGraph(model)(embedding, boxes(count, 64))
    found = FastDecoderGraph(model)(embedding, boxes(count, 64))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 2e-5


@torch.inference_mode()
def test_trial_weights(shared):
    model = read_checkpoint(shared("weights/trial-64px.safetensors")).model(128)
    embedding = model.encode(torch.rand(1, 3, 128, 128))
    expected, _ = DecoderGraph(model)(embedding, boxes(5, 128))
    found, _ = FastDecoderGraph(model)(embedding, boxes(5, 128))
    assert (found - expected).abs().max() < 2e-5 * max(1.0, float(expected.abs().max()))

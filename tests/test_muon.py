"""Muon: its steps are orthogonal, as large as AdamW's, and PyTorch's own where that can be told."""

from __future__ import annotations

import pytest
import torch

from litemed.models.litemedsam import LiteMedSAM
from litemed.train.config import Optimizer
from litemed.train.muon import Muon, orthogonalised
from litemed.train.network import TrainedNetwork, build_optimizer


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(128, 256), (256, 128), (64, 64), (4, 256)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -2, len(values))) @ right
    result = orthogonalised(matrix)
    found = torch.linalg.svdvals(result)
    assert 0.5 < float(found.min()) <= float(found.max()) < 1.3
    core = left.T @ result @ right.T
    assert torch.allclose(core, torch.diag(core.diagonal()), atol=1e-3)


def test_no_gradient_gives_no_step():
    assert not orthogonalised(torch.zeros(8, 4)).any()


def taken(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, gradients: list[torch.Tensor]):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def test_matrices_move_as_with_pytorchs_own_which_rounds_to_bfloat16():
    start, gradients = torch.randn(96, 160), [torch.randn(96, 160) for _ in range(4)]
    mine, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    group = {"params": [mine], "weight_decay": 0.1, "matrix": True}
    moved = taken(Muon([group], 0.01), mine, gradients) - start
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    expected = taken(torch.optim.Muon([other], **settings), other, gradients) - start
    assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
    assert float(moved.norm() / expected.norm()) == pytest.approx(1, abs=0.02)


def test_everything_else_moves_as_with_adamw():
    start, gradients = torch.randn(40), [torch.randn(40) for _ in range(5)]
    mine, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    moved = taken(Muon([{"params": [mine], "weight_decay": 0.1}], 0.01), mine, gradients)
    expected = taken(torch.optim.AdamW([other], lr=0.01, weight_decay=0.1), other, gradients)
    assert torch.allclose(moved, expected, atol=1e-6)


def test_it_goes_on_from_its_state():
    start, gradients = torch.randn(8, 8), [torch.randn(8, 8) for _ in range(4)]

    def fresh(value: torch.Tensor) -> tuple[Muon, torch.nn.Parameter]:
        weight = torch.nn.Parameter(value.clone())
        return Muon([{"params": [weight], "matrix": True}], 0.01), weight

    optimizer, weight = fresh(start)
    whole = taken(optimizer, weight, gradients).clone()
    optimizer, weight = fresh(start)
    taken(optimizer, weight, gradients[:2])
    other, again = fresh(weight.detach())
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(taken(other, again, gradients[2:]), whole)


def test_matrices_are_the_weights_of_linear_layers():
    network = TrainedNetwork(LiteMedSAM(64), "all")
    optimizer = build_optimizer(network, Optimizer(kind="muon", decay_all=False))
    assert isinstance(optimizer, Muon)
    linear = {id(part.weight) for part in network.modules() if isinstance(part, torch.nn.Linear)}
    tuned = {id(parameter) for parameter in network.tuned()}
    matrices = {id(one) for group in optimizer.param_groups if group["matrix"] for one in group["params"]}
    assert matrices == linear & tuned
    assert {id(one) for group in optimizer.param_groups for one in group["params"]} == tuned

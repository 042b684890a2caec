"""Muon: steps along the orthogonalised momentum for matrices, AdamW for everything else.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale of the
steps is that of Liu et al., "Muon is Scalable for LLM Training" (2025), by which learning rate and weight
decay mean what they mean for AdamW. PyTorch's own Muon computes in bfloat16, which few CPUs can: there it
takes longer than all the rest of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
BETAS, EPSILON = (0.9, 0.999), 1e-8
_COEFFICIENTS, _ROUNDS = (3.4445, -4.7750, 2.0315), 5  # of the polynomial, as published


class Muon(torch.optim.Optimizer):
    """Muon for the parameters of groups with `matrix`, AdamW for the others'.

    Args:
        groups: tables of `params`, `weight_decay` and `matrix`, whose parameters are then (rows, columns).
        lr: learning rate of all of them.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "matrix": False})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            rate = group["lr"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._matrix if group["matrix"] else self._other
                    change = direction(parameter.grad, self.state[parameter])
                    parameter.mul_(1 - rate * group["weight_decay"]).sub_(change, alpha=rate)

    @staticmethod
    def _matrix(gradient: Tensor, state: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        scale = 0.2 * max(gradient.shape) ** 0.5  # as large as AdamW's change, by root mean square
        return scale * orthogonalised(gradient.lerp(state["momentum"], MOMENTUM))

    @staticmethod
    def _other(gradient: Tensor, state: dict[str, Any]) -> Tensor:
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - BETAS[0])
        state["square"].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        mean = state["mean"] / (1 - BETAS[0] ** state["step"])
        square = state["square"] / (1 - BETAS[1] ** state["step"])
        return mean / (square.sqrt() + EPSILON)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return U V' for a matrix U S V' (rows, columns), about: singular values between 0.7 and 1.2.

    In bfloat16 on a GPU, else in the matrix's own precision.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(matrix.dtype)

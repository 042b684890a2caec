"""LoRA as composition: a frozen linear layer plus low-rank updates of its weight.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR
2022): W' = W + (alpha / rank) * B A, with A drawn at random and B zero at first,
so that an untrained adapter changes nothing.

TinyViT interleaves q, k and v per head in the rows of `attn.qkv`, so an update
of "q" alone covers `head_dim` rows out of every `3 * head_dim`. Each update
therefore carries the output rows it applies to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.models.tiny_vit import Attention, Mlp

TARGETS = ("attn.qkv", "attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class LoRAConfig:
    """What to adapt.

    Attributes:
        rank: inner width of each update.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
        targets: which linear layers of each encoder block, out of `TARGETS`;
            `attn.qkv` is one update over all of q, k and v, the single letters
            are updates of their rows only.
    """

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank {self.rank} is not positive")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"LoRA alpha {self.alpha} is not a positive number")
        unknown = [t for t in self.targets if t not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"LoRA targets {unknown or 'are empty'}: choose from {', '.join(TARGETS)}")
        if "attn.qkv" in self.targets and {"attn.q", "attn.k", "attn.v"} & set(self.targets):
            raise ValueError("LoRA targets name attn.qkv and a part of it: choose one")

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRankUpdate(nn.Module):
    """One update `scaling * lora_B @ lora_A` of some output rows of a linear layer.

    Args:
        in_features: width of the layer's input.
        rows: the output rows it applies to, int64 (R,).
        rank: inner width.
        scaling: alpha / rank.
    """

    rows: Tensor

    def __init__(self, in_features: int, rows: Tensor, rank: int, scaling: float) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(len(rows), rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.register_buffer("rows", rows, persistent=False)
        self.scaling = scaling

    def delta(self) -> Tensor:
        """Return the update of its rows, (R, in_features)."""
        return self.scaling * (self.lora_B @ self.lora_A)


class LoRALinear(nn.Module):
    """A linear layer with frozen weights and trainable low-rank updates.

    Args:
        base: the layer to adapt; its parameters stop requiring gradients.
        updates: the updates by name ("" would clash with attributes, so a whole-layer update is "all").
    """

    def __init__(self, base: nn.Linear, updates: dict[str, LowRankUpdate]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.updates = nn.ModuleDict(updates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        y = self.base(x)
        for update in self._each():
            z = update.scaling * F.linear(F.linear(x, update.lora_A), update.lora_B)
            whole = len(update.rows) == y.shape[-1]
            y = y + z if whole else y.index_add(-1, update.rows, z.to(y.dtype))
        return y

    def folded_weight(self) -> Tensor:
        """Return the base weight plus all updates, (out_features, in_features), as a new tensor."""
        weight = self.base.weight.detach().clone()
        for update in self._each():
            weight[update.rows] += update.delta().detach()
        return weight

    def _each(self) -> Iterator[LowRankUpdate]:
        for update in self.updates.values():
            if isinstance(update, LowRankUpdate):
                yield update


def qkv_rows(heads: int, head_dim: int, part: str) -> Tensor:
    """Return the rows of an interleaved qkv layer that make up "q", "k" or "v", int64 (heads * head_dim,)."""
    rows = torch.arange(heads * 3 * head_dim).view(heads, 3, head_dim)
    return rows[:, "qkv".index(part)].flatten()


def add_lora(encoder: nn.Module, config: LoRAConfig) -> list[str]:
    """Wrap the targeted linear layers of a TinyViT in place.

    Only updates require gradients afterwards: everything else in `encoder` is frozen.

    Returns:
        the names of the wrapped layers within `encoder`.
    """
    encoder.requires_grad_(False)
    wrapped = []
    for name, module in list(encoder.named_modules()):
        for layer, updates in _layer_updates(module, config).items():
            setattr(module, layer, LoRALinear(getattr(module, layer), updates))
            wrapped.append(f"{name}.{layer}")
    return wrapped


def _layer_updates(module: nn.Module, config: LoRAConfig) -> dict[str, dict[str, LowRankUpdate]]:
    """The updates to add to each linear layer of one attention or MLP module."""
    layers: dict[str, dict[str, LowRankUpdate]] = {}
    if not isinstance(module, Attention | Mlp):
        return layers
    for target in config.targets:
        owner, layer = target.split(".")
        if (owner == "attn") != isinstance(module, Attention):
            continue
        part = layer if layer in {"q", "k", "v"} else "all"
        if part != "all":
            layer = "qkv"
        linear = getattr(module, layer)
        if part == "all":
            rows = torch.arange(linear.out_features)
        else:
            rows = qkv_rows(module.heads, module.head_dim, part)  # type: ignore[arg-type]
        update = LowRankUpdate(linear.in_features, rows.to(linear.weight.device), config.rank, config.scaling)
        layers.setdefault(layer, {})[part] = update.to(linear.weight.device)
    return layers


def named_updates(model: nn.Module) -> dict[str, LowRankUpdate]:
    """Return every update by its path without wrapper names, such as `layers.1.blocks.0.attn.qkv.all`."""
    return {
        name.replace(".updates.", "."): module
        for name, module in model.named_modules()
        if isinstance(module, LowRankUpdate)
    }


def folded_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the model would have had without wrappers, every update added to its weight.

    The model is left as it was; the tensors of unwrapped layers are shared with it.

    Raises:
        ValueError: a folded weight is not finite; all such weights are named.
    """
    state: dict[str, Tensor] = {}
    wrappers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    for name, value in model.state_dict().items():
        owner = next((w for w in wrappers if name.startswith(w + ".")), None)
        if owner is None:
            state[name] = value
        elif name.startswith(f"{owner}.base."):
            leaf = name.removeprefix(f"{owner}.base.")
            state[f"{owner}.{leaf}"] = wrappers[owner].folded_weight() if leaf == "weight" else value
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise ValueError(f"{len(bad)} folded entries are not finite: {', '.join(bad)}")
    return state

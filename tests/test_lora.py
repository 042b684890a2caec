"""LoRA: composition, per-head rows of the interleaved qkv, folding."""

from __future__ import annotations

import pytest
import torch

from litemed.models.lora import LoRAConfig, LoRALinear, add_lora, folded_state_dict, named_updates
from litemed.models.tiny_vit import TinyViT


def encoder() -> TinyViT:
    torch.manual_seed(0)
    return TinyViT().eval()


def randomise(model: torch.nn.Module, scale: float = 0.1) -> None:
    torch.manual_seed(1)
    for update in named_updates(model).values():
        update.lora_B.data.normal_(std=scale)


CONFIGS = [
    LoRAConfig(),
    LoRAConfig(rank=2, alpha=8, targets=("attn.q", "attn.v")),
    LoRAConfig(rank=1, targets=("attn.k", "mlp.fc2")),
]


@pytest.mark.parametrize("config", CONFIGS)
@torch.inference_mode()
def test_an_adapter_changes_nothing_at_first_then_something_and_folding_keeps_it(config):
    model = encoder()
    image = torch.rand(1, 3, 64, 64)
    base = model(image)
    add_lora(model, config)
    assert torch.equal(model(image), base)
    randomise(model)
    adapted = model(image)
    assert (adapted - base).abs().max() > 1e-2
    plain = encoder()
    plain.load_state_dict(folded_state_dict(model))
    assert torch.allclose(plain(image), adapted, atol=1e-4)
    assert torch.equal(model(image), adapted)  # folding leaves the model as it was


def test_only_updates_require_gradients():
    model = encoder()
    wrapped = add_lora(model, LoRAConfig())
    assert len(wrapped) == 10 * 4
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in trainable} == {"lora_A", "lora_B"}
    model(torch.rand(1, 3, 64, 64)).square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trainable


def test_a_part_of_qkv_covers_the_same_part_of_every_head():
    model = encoder()
    add_lora(model, LoRAConfig(targets=("attn.q", "attn.v")))
    randomise(model)
    layer = model.layers[2].blocks[0].attn.qkv
    assert isinstance(layer, LoRALinear)
    change = (layer.folded_weight() - layer.base.weight).abs().sum(1).view(5, 3, 32)  # heads, q k v, head_dim
    assert (change[:, [0, 2]] > 0).all()
    assert (change[:, 1] == 0).all()


def test_alpha_scales_the_update():
    twice, once = encoder(), encoder()
    for model, alpha in ((twice, 8.0), (once, 4.0)):
        torch.manual_seed(2)
        add_lora(model, LoRAConfig(rank=4, alpha=alpha))
        randomise(model)
    for a, b in zip(named_updates(twice).values(), named_updates(once).values(), strict=True):
        assert torch.allclose(a.delta(), 2 * b.delta())


def test_a_fold_that_is_not_finite_is_refused():
    model = encoder()
    add_lora(model, LoRAConfig(targets=("mlp.fc1",)))
    next(iter(named_updates(model).values())).lora_B.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"layers\.1\.blocks\.0\.mlp\.fc1\.weight"):
        folded_state_dict(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"targets": ("attn.qvk",)}, "attn.qvk"),
        ({"targets": ()}, "empty"),
        ({"targets": ("attn.qkv", "attn.q")}, "choose one"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**settings)

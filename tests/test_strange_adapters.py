"""Adapters that others wrote: peft's folders, and checkpoints of loralib beside their base."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from litemed.export.cli import main
from litemed.models.checkpoint import Checkpoint, read_checkpoint, untrained_checkpoint
from litemed.models.lora_folding import fold_adapter
from litemed.models.weight_files import CheckpointError
from litemed.runtime.errors import LitemedError

RANK = 4


class Attached(nn.Module):
    """A linear layer with an update beside it, as it is while it is trained."""

    def __init__(self, layer: nn.Linear, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.layer, self.a, self.b, self.scale = layer, a, b, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.scale * (x @ self.a.T @ self.b.T)


@pytest.fixture(scope="module")
def base():
    return untrained_checkpoint()


def updates_of(base: Checkpoint, *kinds: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Draw A and B for the linear layers of the encoder's blocks and the mask decoder of these kinds."""
    torch.manual_seed(4)
    found = {}
    for name, value in base.state.items():
        layer = name.removesuffix(".weight")
        if value.ndim == 2 and layer.endswith(tuple(f".{kind}" for kind in kinds)):
            rows, columns = value.shape
            found[layer] = 0.05 * torch.randn(RANK, columns), 0.05 * torch.randn(rows, RANK)
    return found


def write_peft(folder, updates, name="base_model.model.{}.{}.weight", **settings):
    """Write what `save_pretrained` of peft writes."""
    tensors = {
        name.format(layer, leaf): value
        for layer, pair in updates.items()
        for leaf, value in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    about = {"peft_type": "LORA", "task_type": None, "auto_mapping": {"base_model_class": "LiteMedSAM"}}
    about |= {"r": RANK, "lora_alpha": 8, "target_modules": ["qkv"], "lora_dropout": 0.1, "bias": "none"}
    about |= {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "init_lora_weights": True}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(about | settings))
    return folder


@pytest.mark.parametrize(
    ("kinds", "settings", "scale"),
    [
        (["qkv"], {}, 2),
        (["qkv"], {"use_rslora": True}, 4),
        (["qkv", "mlp.fc1", "q_proj"], {"lora_alpha": 2.0}, 0.5),
        (["fc1", "fc2"], {"target_modules": r".*\.mlp\.fc[12]"}, 2),
        (["attn.proj"], {"target_modules": ["attn.proj"], "init_lora_weights": "gaussian"}, 2),
    ],
)
@torch.inference_mode()
def test_what_is_folded_equals_what_is_attached(tmp_path, base, kinds, settings, scale):
    updates = updates_of(base, *kinds)
    write_peft(tmp_path, updates, **{"target_modules": kinds} | settings)
    attached, plain = base.model(64), base.model(64)
    for layer, (a, b) in updates.items():
        owner, _, leaf = layer.rpartition(".")
        owner = attached.get_submodule(owner)
        setattr(owner, leaf, Attached(getattr(owner, leaf), a, b, scale))
    image, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[8.0, 8, 40, 50]])
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        checkpoint = fold_adapter(base, path)
        folded = checkpoint.model(64)
        wanted, found, before = (m.decode(m.encode(image), boxes)[0] for m in (attached, folded, plain))
        assert (wanted - before).abs().max() > 1e-3 * before.abs().max()
        assert (wanted - found).abs().max() < 2e-5 * wanted.abs().max()
    assert (checkpoint.lora.rank, checkpoint.lora.alpha) == (RANK, scale * RANK)
    assert checkpoint.layout == "untrained + adapter"
    with pytest.raises(CheckpointError, match="holds a LoRA already"):
        fold_adapter(checkpoint, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.module.{}.{}.weight",
        "base_model.model._orig_mod.{}.{}.default.weight",
        "ENCODER base_model.model.{}.{}.weight",
    ],
)
def test_names_of_wrapped_networks_and_of_the_encoder_alone(tmp_path, base, name):
    updates = updates_of(base, "qkv")
    wanted = fold_adapter(base, write_peft(tmp_path, updates)).state
    if "ENCODER" in name:
        updates = {layer.removeprefix("image_encoder."): pair for layer, pair in updates.items()}
    found = fold_adapter(base, write_peft(tmp_path, updates, name.removeprefix("ENCODER "))).state
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"use_dora": True}, "not supported: use_dora True"),
        ({"bias": "lora_only"}, "not supported: bias 'lora_only'"),
        (
            {"modules_to_save": ["neck"], "rank_pattern": {"a": 2}},
            "rank_pattern an object, modules_to_save a list",
        ),
        ({"alpha_pattern": {"a": 2}}, "alpha_pattern an object"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"of_tomorrow": 1}, "of_tomorrow 1"),
        ({"r": 10**9}, "r is 1000000000, not"),
        ({"r": "4"}, "r is '4', not"),
        ({"lora_alpha": -1}, "lora_alpha is -1, not"),
        ({"r": 8}, "(4, 160) instead of (8, 160)"),
        ({"target_modules": ["qkv", "fc1"]}, "missing: image_encoder.layers.1.blocks.0.mlp.fc1.lora_A"),
        ({"target_modules": ["fc1"]}, "unexpected: image_encoder.layers.1.blocks.0.attn.qkv.lora_A"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, base, settings, fault):
    write_peft(tmp_path, updates_of(base, "qkv"), **settings)
    with pytest.raises(CheckpointError) as error:
        fold_adapter(base, tmp_path)
    assert fault in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "adapter_"))
    assert str(error.value).isprintable()


def test_settings_have_to_be_there_and_whole(tmp_path, base):
    config = write_peft(tmp_path, updates_of(base, "qkv")) / "adapter_config.json"
    for content in ("", "[1]", "{", '{"r": 4}', '{"r": 4, "r": 5}', '{"r": 4, "lora_alpha": NaN}'):
        config.write_text(content)
        with pytest.raises(LitemedError, match=r"adapter_config\.json: "):
            fold_adapter(base, tmp_path)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"needs its adapter_config\.json beside it"):
        fold_adapter(base, tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is an adapter or its mask decoder; name"):
        read_checkpoint(tmp_path / "adapter_model.safetensors")


def write_loralib(path, base, alpha, merged):
    """Write what loralib leaves in training mode, or `merged`, in evaluation mode; return what is right."""
    state, right = dict(base.state), dict(base.state)
    for layer, (a, b) in updates_of(base, "attn.proj").items():
        state |= {f"{layer}.lora_A": a, f"{layer}.lora_B": b}
        right[f"{layer}.weight"] = right[f"{layer}.weight"] + alpha / RANK * b @ a
    torch.save({"model": state | right if merged else state}, path)
    return right


@pytest.mark.parametrize(("alpha", "kind"), [(1.0, torch.float32), (16.0, torch.float16)])
def test_with_the_base_at_hand_the_update_of_loralib_counts_once(tmp_path, base, alpha, kind):
    """Also where the base was stored in half precision."""
    rounded = {k: v.to(kind).float() if v.is_floating_point() else v for k, v in base.state.items()}
    for merged in (False, True):
        right = write_loralib(tmp_path / "l.pth", base, alpha, merged)
        found = fold_adapter(replace(base, state=rounded), tmp_path / "l.pth", loralib_alpha=alpha)
        assert all(torch.allclose(value, right[key], atol=1e-6) for key, value in found.state.items())
        assert len(found.warnings) == merged
    assert found.warnings[0].startswith(f"{tmp_path / 'l.pth'}: was saved in evaluation mode")
    alone = read_checkpoint(tmp_path / "l.pth", loralib_alpha=0).state
    assert all(torch.equal(value, right[key]) for key, value in alone.items())


def test_export_tells_of_evaluation_mode(tmp_path, base):
    """With the base it knows, without it warns; the run ends at the folder that is not empty."""
    save_file(base.state, tmp_path / "base.safetensors")
    write_loralib(tmp_path / "l.pth", base, 1.0, merged=True)
    tell = "saved in evaluation mode"
    for arguments, told in (
        ([tmp_path / "base.safetensors", "--adapter", tmp_path / "l.pth"], f"l.pth: was {tell}"),
        ([tmp_path / "l.pth"], "l.pth: LoRA of loralib is added with alpha 1; if"),
        ([tmp_path / "l.pth", "--loralib-alpha", 0], None),
    ):
        result = CliRunner().invoke(main, [*map(str, arguments), "-o", str(tmp_path)])
        assert result.exit_code == 1
        assert "folded LoRA of rank 4, alpha" in result.output
        assert (tell in result.output) == (told is not None)
        assert told is None or told in result.output

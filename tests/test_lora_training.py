"""What is trained moves, nothing else does, and the result goes through the adapter file unchanged."""

import dataclasses

import numpy as np
import pytest
import torch

from litemed.benchmarks.phantoms import draw_image
from litemed.models.adapter import decoder_path
from litemed.models.checkpoint import Checkpoint, read_checkpoint, untrained_checkpoint
from litemed.models.encoders import LIGHT, TINY_VIT
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import FoldedLoRA
from litemed.models.lora_folding import fold_adapter
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import UsageError
from litemed.train.config import TUNES, Config, LoRA, Run
from litemed.train.dataset import Batch, generator_of, make_examples
from litemed.train.losses import mask_losses
from litemed.train.network import TrainedNetwork, build_network
from litemed.train.prompts import Prompted
from litemed.train.run_files import write_weights

pytestmark = pytest.mark.usefixtures("one_thread")


SIZE = 64

Examples = tuple[torch.Tensor, Prompted]
"""Images and boxes of them."""


@pytest.fixture(scope="module")
def base():
    return untrained_checkpoint()


@pytest.fixture(scope="module")
def batch():
    phantoms = [draw_image(64, 64, 2, seed=seed) for seed in range(2)]
    images, labels = (np.stack([getattr(one, name) for one in phantoms]) for name in ("image", "labels"))
    content = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    slices = Batch(
        content, torch.from_numpy(labels.astype(np.int32)), torch.full((2, 2), SIZE), torch.zeros(2) > 0, ()
    )
    return make_examples(slices, Config(), generator_of(0, 0, 0, torch.device("cpu")))


def build(base: Checkpoint, tune: str, rank: int = 4, size: int = SIZE) -> TrainedNetwork:
    return build_network(base, Run(seed=1, size=size, tune=tune), LoRA(rank))


def segment(network: TrainedNetwork, batch: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    image, prompts = batch
    return network(image, prompts.boxes, prompts.image_of_box)


def step(network: TrainedNetwork, batch: Examples, steps: int = 1, lr: float = 1e-3) -> None:
    optimizer = torch.optim.AdamW(network.tuned(), lr=lr)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        logits, iou = segment(network, batch)
        mask_losses(logits, iou, batch[1], len(batch[0])).sum().backward()
        optimizer.step()
    network.eval()


@torch.inference_mode()
def answer(model: LiteMedSAM, batch: Examples) -> torch.Tensor:
    model.eval()  # not through TrainedNetwork, which would choose anew what is trained
    image, prompts = batch
    return model.decode(model.encode(image)[prompts.image_of_box], prompts.boxes)[0]


def is_meant(name: str, tune: str) -> bool:
    """Say in words of its own what each choice trains."""
    parts = name.split(".")
    if parts[0] == "mask_decoder":
        used = parts[1] != "output_hypernetworks_mlps" or parts[2] == "0"
        return used and tune in ("lora+decoder", "decoder", "all")
    if parts[0] == "prompt_encoder":
        corners = parts[1] == "point_embeddings" and parts[2] in ("2", "3")
        return tune == "all" and (corners or parts[1] == "no_mask_embed")
    return tune == "all" or ("lora" in tune and parts[-1] in ("lora_A", "lora_B"))


@pytest.mark.parametrize(
    ("tune", "encoder"), [*((tune, TINY_VIT) for tune in TUNES), ("decoder", LIGHT), ("all", LIGHT)]
)
def test_gradients_flow_only_where_they_should_and_nothing_else_moves(batch, tune, encoder):
    network = build(untrained_checkpoint(encoder=encoder), tune)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    step(network, batch)
    parameters = dict(network.model.named_parameters())
    with_gradient = {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert with_gradient == {name for name in parameters if is_meant(name, tune)}
    assert all(bool(torch.isfinite(parameters[name].grad).all()) for name in with_gradient)
    # The first gradient of lora_A is zero, for lora_B is; the bias of keys has none by nature.
    exempt = {n for n in with_gradient if n.endswith(("lora_A", "k_proj.bias"))}
    after = network.model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    statistics = {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert statistics
    assert with_gradient - exempt <= moved
    assert moved - with_gradient == (statistics if tune == "all" else set())


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lora", "lora+decoder"])
def test_the_adapter_differs_from_the_base_and_folded_it_equals_what_was_trained(base, batch, tune, tmp_path):
    network = build(base, tune)
    assert torch.equal(answer(network.model, batch), answer(base.model(SIZE), batch))
    step(network, batch, steps=2, lr=1e-2)
    path = tmp_path / "best.safetensors"
    write_weights(path, network, 4, weights_digest(base.state))
    trained = answer(network.model, batch)
    assert (trained - answer(base.model(SIZE), batch)).abs().max() > 1e-2
    folded = fold_adapter(base, path)
    assert torch.allclose(answer(folded.model(SIZE), batch), trained, atol=1e-4)
    assert decoder_path(path).exists() == (tune == "lora+decoder")


@pytest.mark.slow
@pytest.mark.parametrize(("tune", "encoder"), [("decoder", LIGHT), ("all", TINY_VIT)])
def test_without_adapters_a_complete_checkpoint_in_the_published_layout_is_written(
    batch, tune, encoder, tmp_path
):
    base = untrained_checkpoint(encoder=encoder)
    network = build(base, tune)
    step(network, batch)
    path = tmp_path / "best.safetensors"
    write_weights(path, network, 4, weights_digest(base.state))
    found = read_checkpoint(path)
    assert (found.layout, found.lora, found.encoder) == ("plain", None, encoder)
    assert {str(value.dtype) for value in found.state.values()} == {"torch.float32", "torch.int64"}
    assert torch.equal(answer(found.model(SIZE), batch), answer(network.model, batch))
    assert weights_digest(found.state) != weights_digest(base.state)


def test_boxes_are_embedded_in_full_precision_under_autocast(base, batch):
    network = build(base, "lora").eval()
    seen = []
    network.model.prompt_encoder.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.inference_mode():
        segment(network, batch)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = segment(network, batch)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(seen[0], seen[1])


def test_channels_last_gives_the_same_answer_and_gradients(base, batch):
    results = []
    for memory in (torch.contiguous_format, torch.channels_last):
        network = build(base, "all").eval().to(memory_format=memory)
        image, prompts = batch
        logits, _ = segment(network, (image.contiguous(memory_format=memory), prompts))
        logits.square().mean().backward()
        results.append((logits, network.model.image_encoder.patch_embed.seq[0].c.weight.grad))
    for plain, last in zip(*results, strict=True):
        assert torch.allclose(plain, last, atol=1e-4 * plain.detach().abs().max().item())


def test_lora_is_refused_where_it_has_no_layers_and_where_there_is_one(base):
    with pytest.raises(UsageError, match="light encoder has no layers for LoRA; use --tune d"):
        build(untrained_checkpoint(encoder=LIGHT), "lora+decoder")
    folded = dataclasses.replace(base, lora=FoldedLoRA(4, 1.0, ("attn.qkv",)))
    with pytest.raises(UsageError, match="already holds a LoRA"):
        build(folded, "lora")
    assert build(folded, "all").tune == "all"

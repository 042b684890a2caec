"""The network as it is trained: which weights move, which batch norms learn, where the gradient stops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from litemed.export.checkpoint import Checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import LoRAConfig, add_lora
from litemed.models.tiny_vit import MBConv
from litemed.runtime.errors import UsageError
from litemed.train.config import (
    MUON,
    TUNE_ALL,
    TUNE_DECODER,
    TUNE_LORA,
    TUNE_LORA_DECODER,
    Config,
    LoRA,
    Optimizer,
)
from litemed.train.dataset import Batch
from litemed.train.muon import Muon
from litemed.train.pixels import PixelHead
from litemed.train.tokens import TokenSample
from litemed.train.windows import Windows

_ENCODED_AT_ONCE = 4  # images; in float32 at the full size each takes half a gigabyte on its way

WITH_LORA = (TUNE_LORA, TUNE_LORA_DECODER)

# A box prompt with a single mask as the answer reaches none of these: they keep their values.
_UNREACHED = (
    "prompt_encoder.point_embeddings.0.",
    "prompt_encoder.point_embeddings.1.",
    "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.mask_downscaling.",
    "mask_decoder.output_hypernetworks_mlps.1.",
    "mask_decoder.output_hypernetworks_mlps.2.",
    "mask_decoder.output_hypernetworks_mlps.3.",
)


class Prediction(NamedTuple):
    """What the network says of N boxes and B images.

    logits: (N, S, S), or of a sample of M tokens (N, 16 M). iou: (N,), predicted. pixels: (B, 3, H, W), see
    `litemed.train.pixels`; None without the head for it.
    """

    logits: Tensor
    iou: Tensor
    pixels: Tensor | None


class TrainedNetwork(nn.Module):
    """LiteMedSAM with a set of its weights to tune.

    Args:
        model: with LoRA in place if `tune` trains adapters.
        tune: "lora+decoder", "lora", "decoder" or "all".
        pixels: whether it also reads from the embedding what every pixel is.
    """

    def __init__(self, model: LiteMedSAM, tune: str, pixels: bool = False) -> None:
        super().__init__()
        self.model = model
        self.tune = tune
        self.pixels = PixelHead() if pixels else None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_tuned(name, tune))

    def freeze(self, modules: Sequence[str]) -> None:
        """Leave alone what `tune` would train in these modules, such as "image_encoder.layers.0".

        Raises UsageError for a name that is no module of LiteMedSAM, and when nothing is left to train.
        """
        for name in modules:
            try:
                module = self.model.get_submodule(name)
            except AttributeError:
                raise UsageError(f"run.freeze: LiteMedSAM has no module {name!r}") from None
            module.requires_grad_(False)
        if not self.tuned():
            raise UsageError(f"run.freeze: nothing is left to train with run.tune = {self.tune!r}")

    def train(self, mode: bool = True) -> TrainedNetwork:
        """Set training mode; only batch norms whose weights are trained learn statistics, else these stay."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode and module.weight.requires_grad)
        return self

    def forward(
        self,
        image: Tensor,
        boxes: Tensor,
        image_of_box: Tensor,
        tokens: TokenSample | None = None,
        encoded: bool = False,
        windows: Windows | None = None,
    ) -> Prediction:
        """Segment N boxes on B images.

        Args:
            image: (B, 3, S, S) in [0, 1]; with `encoded` embeddings (B, 256, S/4, S/4) instead.
            boxes: (N, 4) x0, y0, x1, y1 in its pixels.
            image_of_box: (N,) int64, the image of each box.
            tokens: M image tokens of each box to decode; None decodes all.
            encoded: whether the images are encoded already.
            windows: of the images, which alone are encoded; `tokens` must lie in them.

        The pixels of the prediction are those of the images, or of the windows; none where `encoded`.
        """
        pixels = None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune != TUNE_DECODER):
            embedding = (
                image
                if encoded
                else self.model.encode(image if windows is None else windows.of_images(image))
            )
        if self.pixels is not None and not encoded:
            pixels = self.pixels(embedding)
        if windows is not None:
            embedding = windows.in_place(embedding)
        if tokens is not None:
            return Prediction(*self._decode_tokens(embedding, boxes, image_of_box, tokens), pixels)
        return Prediction(*self.decode(embedding.index_select(0, image_of_box), boxes), pixels)

    def encode(self, images: Tensor) -> Tensor:
        """Encode B images (B, 3, S, S) a few at once, which bounds the memory: (B, 256, S/4, S/4)."""
        return torch.cat([self.model.encode(some) for some in images.split(_ENCODED_AT_ONCE)])

    def decode(self, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Segment N boxes (N, 4) on embeddings (N or 1, 256, S/4, S/4): logits (N, S, S) and IoU (N,)."""
        sparse, dense, positions = self._prompts(boxes)
        logits, iou = self.model.mask_decoder(embedding, positions, sparse, dense)
        return logits[:, 0], iou[:, 0]

    def _decode_tokens(
        self, embedding: Tensor, boxes: Tensor, image_of_box: Tensor, tokens: TokenSample
    ) -> tuple[Tensor, Tensor]:
        sparse, dense, positions = self._prompts(boxes)
        logits, iou = self.model.mask_decoder(
            tokens.of_image(embedding, image_of_box),
            tokens.of_image(positions, torch.zeros_like(image_of_box)),
            sparse,
            dense,
            key_bias=tokens.weight.log(),
        )  # (N, 1, 4 M, 4): token by token, and within each row by row
        return logits.flatten(1), iou[:, 0]

    def _prompts(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sparse and dense embeddings of boxes (N, 4), and the positions of the image's tokens."""
        prompts = self.model.prompt_encoder
        with torch.autocast(boxes.device.type, enabled=False):
            # bfloat16 would place a box's corners only to the nearest pixel.
            sparse, dense = prompts(boxes.float())
            return sparse, dense, prompts.image_positions()

    def tuned(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def build_optimizer(network: TrainedNetwork, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of what is trained."""
    groups = parameter_groups(network, settings)
    if settings.kind == MUON:
        return Muon(groups, settings.lr)
    on_gpu = next(network.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=settings.lr, fused=on_gpu)


def parameter_groups(network: TrainedNetwork, settings: Optimizer) -> list[dict[str, Any]]:
    """Return what is trained in groups for optimizers: what decays and what does not, matrices and others.

    Without `settings.decay_all` norms, biases, the attention's tables of relative positions and learnt tokens
    do not decay. `matrix` tells which groups hold the weights of linear layers.
    """
    tables = [one.weight for one in network.modules() if isinstance(one, nn.Embedding)]
    looked_up = {id(parameter) for parameter in tables}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_table = id(parameter) in looked_up or name.endswith("attention_biases")
            multiplies = parameter.ndim > 1 and not is_table
            is_matrix = multiplies and parameter.ndim == 2
            groups[settings.decay_all or multiplies, is_matrix].append(parameter)
    return [
        {"params": groups[key], "weight_decay": settings.weight_decay if key[0] else 0.0, "matrix": key[1]}
        for key in sorted(groups, reverse=True)
    ]


def uses_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the forward pass is computed in bfloat16 where PyTorch's autocast holds that safe."""
    wanted = config.hardware.precision
    return wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")


def batch_forward(
    network: nn.Module, batch: Batch, tokens: TokenSample | None = None, windows: Windows | None = None
) -> Prediction:
    """Return what the network says of a batch."""
    return network(batch.image, batch.boxes, batch.image_of_box, tokens, batch.encoded, windows)


def build_network(
    base: Checkpoint | None, size: int, tune: str, lora: LoRA, seed: int, pixels: bool = False
) -> TrainedNetwork:
    """Return the network of `base`, or with all weights drawn at random, ready to be tuned.

    pixels: with a head that reads every pixel from the embedding.

    Raises UsageError for an impossible choice of LoRA, an adapter on a base that already holds one, or one
    without a base.
    """
    torch.manual_seed(seed)
    if base is None:
        if tune != TUNE_ALL:
            raise UsageError(f"training from scratch trains all weights, not {tune}: leave --tune out")
        return TrainedNetwork(from_scratch(size), tune, pixels)
    model = base.model(size)
    if tune in WITH_LORA:
        if base.lora is not None:
            raise UsageError(
                f"{base.file}: already holds a LoRA, which a second cannot be added to; use --tune all"
            )
        add_lora(model.image_encoder, lora_config(lora))
    return TrainedNetwork(model, tune, pixels)


def lora_config(settings: LoRA) -> LoRAConfig:
    """Return the network's own form of the settings. Raises UsageError for an impossible choice."""
    try:
        return LoRAConfig(settings.rank, settings.alpha, settings.targets)
    except ValueError as error:
        raise UsageError(f"[lora]: {error}") from error


def from_scratch(size: int) -> LiteMedSAM:
    """Return a network with weights drawn as published for TinyViT: PyTorch's own, but for two kinds.

    Linear layers of the encoder are normal, truncated, of standard deviation 0.02, their biases 0; the last
    batch norm of a residual convolution starts at 0.
    """
    model = LiteMedSAM(size)
    for module in model.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, MBConv):
            nn.init.zeros_(module.conv3.bn.weight)
    return model


def _is_tuned(name: str, tune: str) -> bool:
    if name.startswith(_UNREACHED):
        return False
    is_adapter = name.endswith((".lora_A", ".lora_B"))
    is_decoder = name.startswith("mask_decoder.")
    return {
        TUNE_LORA: is_adapter,
        TUNE_DECODER: is_decoder,
        TUNE_LORA_DECODER: is_adapter or is_decoder,
        TUNE_ALL: True,
    }[tune]

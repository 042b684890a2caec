"""The network as it is trained: which weights move, and where it computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from litemed.models import light_encoder, tiny_vit
from litemed.models.checkpoint import Checkpoint
from litemed.models.encoders import ENCODERS
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora import add_lora
from litemed.models.transformer import TwoWayBlock
from litemed.runtime.errors import UsageError
from litemed.train.config import Hardware, LoRA, Run

WITH_LORA = ("lora", "lora+decoder")

_ENCODER_BLOCKS = (
    *(tiny_vit.PatchEmbed, tiny_vit.MBConv, tiny_vit.PatchMerging, tiny_vit.TinyViTBlock),
    *(light_encoder.FusedBlock, light_encoder.MixBlock, light_encoder.Attention),
)
# A box prompt with a single mask as the answer reaches none of these: they keep their values.
_UNREACHED = (
    *("prompt_encoder.point_embeddings.0.", "prompt_encoder.point_embeddings.1."),
    *("prompt_encoder.not_a_point_embed.", "prompt_encoder.mask_downscaling."),
    *(f"mask_decoder.output_hypernetworks_mlps.{mask}." for mask in (1, 2, 3)),
)


class TrainedNetwork(nn.Module):
    """LiteMedSAM with a set of its weights to tune.

    model: with LoRA in place if `tune`, one of `litemed.train.config.TUNES`, trains adapters.
    """

    def __init__(self, model: LiteMedSAM, tune: str) -> None:
        super().__init__()
        self.model = model
        self.tune = tune
        for name, parameter in model.named_parameters():
            parts = {
                "lora": name.endswith((".lora_A", ".lora_B")),
                "decoder": name.startswith("mask_decoder."),
            }
            tuned = tune == "all" or any(parts[part] for part in tune.split("+"))
            parameter.requires_grad_(tuned and not name.startswith(_UNREACHED))

    def train(self, mode: bool = True) -> TrainedNetwork:
        """Set training mode; only batch norms whose weights are trained learn statistics, else these stay."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode and module.weight.requires_grad)
        return self

    def forward(self, image: Tensor, boxes: Tensor, image_of_box: Tensor) -> tuple[Tensor, Tensor]:
        """Segment N boxes on B images: logits (N, S, S), and predicted IoU (N,).

        image: (B, 3, S, S) in [0, 1]. boxes: (N, 4) x0, y0, x1, y1 in its pixels. image_of_box: (N,) int64.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tune != "decoder"):
            embedding = self.model.encode(image)
        return decode_boxes(self.model, embedding, boxes, image_of_box)

    def tuned(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def decode_boxes(
    model: LiteMedSAM, embedding: Tensor, boxes: Tensor, image_of_box: Tensor
) -> tuple[Tensor, Tensor]:
    """Segment N boxes (N, 4) on B embeddings (B, 256, S/4, S/4): logits (N, S, S), and predicted IoU (N,)."""
    with torch.autocast(boxes.device.type, enabled=False):
        # bfloat16 would place a box's corners only to the nearest pixel.
        sparse, dense = model.prompt_encoder(boxes.float())
        positions = model.prompt_encoder.image_positions()
    logits, iou = model.mask_decoder(embedding.index_select(0, image_of_box), positions, sparse, dense)
    return logits[:, 0], iou[:, 0]


def choose_device(wanted: str) -> torch.device:
    """Return where to compute. Raises UsageError for a GPU where there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: no GPU that PyTorch can use; take --device cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(hardware: Hardware, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: in bfloat16 where PyTorch holds that safe, if that is wanted."""
    wanted = hardware.precision == "bfloat16" or (hardware.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def compile_blocks(network: nn.Module, hardware: Hardware, device: torch.device) -> None:
    """Have PyTorch compile the blocks of a network, if that is wanted; the names of its weights stay.

    Each block by itself: those of one shape share what is compiled, in a fraction of the minutes that a whole
    network takes. The encoder's are compiled for one shape each, the decoder's for any number of boxes.
    """
    if not (hardware.compile == "yes" or (hardware.compile == "auto" and device.type == "cuda")):
        return
    torch.compiler.reset()  # what an earlier network left counts towards PyTorch's limit
    for module in network.modules():
        if isinstance(module, _ENCODER_BLOCKS):
            module.compile(dynamic=False)
        elif isinstance(module, TwoWayBlock):
            module.compile()


def check_base(base: Checkpoint, tune: str) -> None:
    """Raise UsageError for LoRA on an encoder that it does not go to, or on a base that already holds one."""
    if tune in WITH_LORA and not ENCODERS[base.encoder].takes_lora:
        encoder = f"its {base.encoder} encoder has no layers for LoRA"
        raise UsageError(f"{base.file}: {encoder}; use --tune decoder or --tune all")
    if tune in WITH_LORA and base.lora is not None:
        raise UsageError(f"{base.file}: already holds a LoRA; use --tune all")


def build_network(base: Checkpoint, run: Run, lora: LoRA) -> TrainedNetwork:
    """Return the network of `base`, ready to be tuned. Raises UsageError as `check_base`."""
    check_base(base, run.tune)
    torch.manual_seed(run.seed)  # of new adapters
    model = base.model(run.size)
    if run.tune in WITH_LORA:
        add_lora(model.image_encoder, lora.rank)
    return TrainedNetwork(model, run.tune)

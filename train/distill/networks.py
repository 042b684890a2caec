"""The two networks of a distillation: the teacher, which is only asked, and the student, which learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.models.encoders import LIGHT, TINY_VIT
from litemed.models.layers import LayerNorm2d
from litemed.models.light_encoder import LightEncoder
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.tiny_vit import TinyViT
from litemed.runtime.errors import UsageError
from litemed.train.run_files import write_bytes

FORMAT = "litemed-distilled-1"


def check_teacher(teacher: Checkpoint) -> None:
    """Raise UsageError for a teacher of another encoder than TinyViT."""
    if teacher.encoder != TINY_VIT:
        raise UsageError(f"{teacher.file}: has the {teacher.encoder} encoder itself; distil from TinyViT's")


def build_student(teacher: Checkpoint, seed: int) -> Checkpoint:
    """Return the student: a light encoder drawn at random, the teacher's prompt encoder and mask decoder.

    The scale and shift of its last norm are the teacher's, so that its embeddings have the right spread from
    the start.
    """
    torch.manual_seed(seed)
    taught, student = teacher.model(), LiteMedSAM(encoder=LIGHT)
    student.prompt_encoder.load_state_dict(taught.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(taught.mask_decoder.state_dict())
    norm = cast(LayerNorm2d, cast(TinyViT, taught.image_encoder).neck[-1])
    encoder = cast(LightEncoder, student.image_encoder)
    with torch.no_grad():
        encoder.gamma.copy_(norm.weight.view(1, -1, 1, 1))
        encoder.beta.copy_(norm.bias.view(1, -1, 1, 1))
    state = dict(student.state_dict())
    return Checkpoint(state, LIGHT, "untrained", f"student of {teacher.file}, seed {seed}", "")


def embedding_error(embedding: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of embeddings, both (B, 256, S/4, S/4).

    Divided by the variance of `target`: 1 for a constant.
    """
    wanted = target.float()
    return (embedding.float() - wanted).square().mean() / wanted.var()


def write_student(path: Path, student: LiteMedSAM, teacher: str) -> None:
    """Write a whole checkpoint, float32, as `litemed-export` and `litemed-train` read it.

    teacher: `weights_digest` of the teacher, with its adapter folded, which the file names.
    Raises OutputError when it cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    about = json.dumps({"format": FORMAT, "teacher": teacher}, sort_keys=True)
    write_bytes(path, save(state, metadata={"litemed": about}))

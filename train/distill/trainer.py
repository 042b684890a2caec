"""One stage of a distillation: a training run whose student imitates a teacher's embeddings."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.models.encoders import LIGHT, PREFIX
from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.errors import UsageError
from litemed.train import losses
from litemed.train.augment import augment, chances_of
from litemed.train.config import Config, Table, setting
from litemed.train.dataset import Batch, Data, generator_of, training_loader
from litemed.train.distill.views import MixedSampler, MixedSource, Ring, Views
from litemed.train.loop import Session, Trainer
from litemed.train.network import autocast, compile_blocks, decode_boxes
from litemed.train.prompts import draw_prompts
from litemed.train.sampler import Batches, training_sampler


@dataclass(frozen=True)
class Distillation(Table):
    """How a student is shown what its teacher says.

    views: how many augmented images are kept with the teacher's embeddings. fresh: share of each batch that
    the teacher encodes anew. unlabelled: share of these that are unlabelled images, where there are any.
    masks: whether the mask losses are learnt beside the embedding, by the mask decoder too.
    """

    views: int = setting(20_000, low=1)
    fresh: float = setting(0.25, low=1e-6, high=1)
    unlabelled: float = setting(0.0, high=1)
    masks: bool = setting(False)


@dataclass(frozen=True)
class DistillConfig(Config):
    """All settings of one stage: those of training, and a few more."""

    distillation: Distillation = Distillation()

    @property
    def fresh(self) -> int:
        """How many views of a step are new."""
        return max(1, math.ceil(self.distillation.fresh * self.run.batch_size))

    def check(self, stage: str) -> None:
        """Raise UsageError for weights that do not learn, or too few views."""
        if self.run.tune != "all":
            raise UsageError(f"{stage}: run.tune = {self.run.tune!r}: the student learns as a whole")
        if self.distillation.views < self.fresh:
            raise UsageError(
                f"{stage}: distillation.views = {self.distillation.views}: must be at least the {self.fresh} "
                "new ones of a step"
            )


class Distiller(Trainer):
    """A training run whose batches are drawn from a ring of views that the teacher has encoded.

    Each step the loader gives a few slices; they are augmented and encoded by the teacher and take the place
    of the oldest views. `student` is the base of a `Trainer`; images without labels teach the embedding only.
    Raises UsageError, too, for more views than the memory holds.
    """

    config: DistillConfig

    def __init__(
        self,
        config: DistillConfig,
        teacher: Checkpoint,
        student: Checkpoint,
        data: Data,
        images: Sequence[Path],
        session: Session,
    ) -> None:
        self.parts = ("embedding", *losses.PARTS) if config.distillation.masks else ("embedding",)
        super().__init__(config, student, data, session)
        self.network.model.prompt_encoder.requires_grad_(False)
        device, run = session.device, config.run
        # A step's share of the loader's slices; as many steps as a run of whole batches has.
        fresh = dataclasses.replace(
            run, samples_per_epoch=self.batches.per_epoch * config.fresh, batch_size=config.fresh
        )
        sampler, _ = training_sampler(dataclasses.replace(config, run=fresh), data.training)
        share = config.distillation.unlabelled
        mixed = MixedSampler(
            **vars(sampler), labelled=len(data.training), unlabelled=len(images), share=share
        )
        self.batches = Batches(mixed, config.fresh)
        self.loader = training_loader(MixedSource(data.training, images), 0, self.batches, config, device)
        self._teacher = teacher.model(run.size).image_encoder
        self._teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_blocks(self._teacher, config.hardware, device)
        self._ring = Ring(config.distillation.views, run.size, device)
        session.reporter.line(
            f"keeping {config.distillation.views} views, {self._ring.gigabytes:.1f} GB on {device}"
        )

    def run(self) -> bool:
        """Do as `Trainer`; a resumed run first has the teacher encode once more what the ring held."""
        steps, device = self.batches.per_epoch, self.session.device
        done = self.progress.epoch * steps + self.progress.step
        next_step = max(0, done - -(-self.config.distillation.views // self.config.fresh))
        self._ring.added = next_step * self.config.fresh
        with self.session.reporter.bar("encoding again what was kept", done - next_step) as bar:
            while next_step < done:
                epoch, first = divmod(next_step, steps)
                self.batches.start_at(epoch, first)
                for step, batch in zip(
                    range(first, min(steps, first + done - next_step)), self.loader, strict=False
                ):
                    generator = generator_of(self.config.run.seed, epoch, step, device)
                    self._ring.add(self.views(batch.to(device), generator))
                    next_step += 1
                    bar.update()
                    if self.session.stop():
                        return False
        return super().run()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what `Trainer.losses` does, of what is drawn from the ring once `batch` is in it."""
        config, device = self.config, self.session.device
        images = config.run.batch_size
        self._ring.add(self.views(batch, generator))
        views = self._ring.draw(images, generator)
        with autocast(config.hardware, device):
            embedding = self.network.model.image_encoder(_as_image(views.image))
            error = embedding_error(embedding, views.embedding)
        means = torch.stack([error, error])
        if config.distillation.masks:
            prompts = draw_prompts(
                views.labels, views.extent, config.prompts, generator, of_volume=views.of_volume
            )
            with autocast(config.hardware, device):
                logits, iou = decode_boxes(self.network.model, embedding, prompts.boxes, prompts.image_of_box)
            summed = losses.summed_losses(logits, iou, prompts, images, config.loss)
            total, *parts = summed / prompts.weights.sum().clamp(min=1)
            means = torch.stack([error + total, error, *parts])
        return images * torch.cat([torch.ones_like(means[:1]), means])

    @torch.no_grad()
    def views(self, batch: Batch, generator: torch.Generator) -> Views:
        """Augment a batch and have the teacher encode it."""
        image, labels, extent = augment(*batch[:3], chances_of(self.config.augmentation), generator)
        kept = (image * 255).round().to(torch.uint8)
        with autocast(self.config.hardware, image.device):
            embedding = self._teacher(_as_image(kept.contiguous(memory_format=torch.channels_last)))
        return Views(kept, labels, extent, embedding, batch.of_volume)


def _as_image(kept: Tensor) -> Tensor:
    return kept.to(torch.float32) / 255


def embedding_error(embedding: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of embeddings (B, 256, S/4, S/4) over the variance of `target`."""
    wanted = target.float()
    return (embedding.float() - wanted).square().mean() / wanted.var()


def build_student(teacher: Checkpoint, seed: int) -> Checkpoint:
    """Return the student: a light encoder drawn at random, the teacher's prompt encoder and mask decoder.

    The scale and shift of its last norm are the teacher's, so that its embeddings have the right spread from
    the start.
    """
    torch.manual_seed(seed)
    taught, state = teacher.model().state_dict(), dict(LiteMedSAM(encoder=LIGHT).state_dict())
    state |= {name: value for name, value in taught.items() if not name.startswith(PREFIX)}
    for own, name in (("gamma", "weight"), ("beta", "bias")):
        state[f"{PREFIX}{own}"] = taught[f"{PREFIX}neck.3.{name}"].view(1, -1, 1, 1)
    return Checkpoint(state, LIGHT, "untrained", f"student of {teacher.file}, seed {seed}", "")

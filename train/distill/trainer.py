"""One stage of a distillation: a training run whose student imitates a teacher's embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.train import losses
from litemed.train.augment import CHANCES, augment
from litemed.train.dataset import Batch, Data
from litemed.train.distill.config import DistillConfig
from litemed.train.distill.images import MixedSampler, MixedSource
from litemed.train.distill.networks import embedding_error
from litemed.train.distill.ring import Ring, Views
from litemed.train.loader import training_loader
from litemed.train.loop import Session, Trainer
from litemed.train.network import autocast, compile_blocks, decode_boxes
from litemed.train.prompts import draw_prompts
from litemed.train.sampler import Batches, training_sampler

EMBEDDING = "embedding"
"""The name that the log gives the error of the embedding."""


class Distiller(Trainer):
    """A training run whose batches are drawn from a ring of views that the teacher has encoded.

    Each step the loader gives a few slices; they are augmented and encoded by the teacher and take the place
    of the oldest views of the ring. What the student learns from is then drawn from all of it.

    Args:
        config: all settings of the stage.
        teacher: any LiteMedSAM.
        student: the weights that the stage starts from.
        data: as for training; the labelled slices.
        images: unlabelled images; they teach the embedding only.
        session: as for `Trainer`.

    Raises:
        UsageError: settings that do not fit the data, the networks or the memory.
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
        self.parts = (EMBEDDING, *losses.PARTS) if config.distillation.masks else (EMBEDDING,)
        super().__init__(config, student, data, session)
        self.network.model.prompt_encoder.requires_grad_(False)
        device, run = session.device, config.run
        # A step's share of the loader's slices; as many steps as a run of whole batches has.
        fresh = dataclasses.replace(
            run, samples_per_epoch=self.batches.per_epoch * config.fresh, batch_size=config.fresh
        )
        sampler, _ = training_sampler(dataclasses.replace(config, run=fresh), data.training)
        mixed = MixedSampler(
            **vars(sampler),
            labelled=len(data.training),
            unlabelled=len(images),
            share=config.distillation.unlabelled,
        )
        self.batches = Batches(mixed, config.fresh)
        everything = MixedSource(data.training, images)
        self.loader = training_loader(everything, 0, self.batches, run, self._workers, device)
        self._teacher = teacher.model(run.size).image_encoder
        self._teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_blocks(self._teacher, config.hardware, device)
        views = config.distillation.views
        self._ring = Ring(views, run.size, device)
        session.reporter.line(f"keeping {views} views, {self._ring.gigabytes:.1f} GB on {device}")

    def run(self) -> bool:
        """Train to the end, or until told to stop, as `Trainer` does.

        A resumed run first has the teacher encode once more what the ring held; it stops only after that.
        """
        self._refill()
        return super().run()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what `Trainer.losses` does, of what is drawn from the ring once `batch` is in it."""
        config, device = self.config, self.session.device
        images = config.run.batch_size
        self._ring.add(self._views(batch, generator))
        views = self._ring.draw(images, generator)
        with autocast(config.hardware, device):
            embedding = self.network.model.image_encoder(_as_image(views.image))
            error = embedding_error(embedding, views.embedding)
        means = torch.stack([error, error])
        if config.distillation.masks:
            prompts = draw_prompts(views.labels, views.extent, config.prompts, generator)
            with autocast(config.hardware, device):
                logits, iou = decode_boxes(self.network.model, embedding, prompts.boxes, prompts.image_of_box)
            summed = losses.summed_losses(logits, iou, prompts, images, config.loss)
            total, *parts = summed / prompts.weights.sum().clamp(min=1)
            means = torch.stack([error + total, error, *parts])
        return images * torch.cat([torch.ones_like(means[:1]), means])

    @torch.no_grad()
    def _views(self, batch: Batch, generator: torch.Generator) -> Views:
        """Augment a batch and have the teacher encode it."""
        chances = CHANCES[self.config.augmentation.kind]
        image, labels, extent = augment(*batch[:3], chances, generator)
        kept = (image * 255).round().to(torch.uint8)
        with autocast(self.config.hardware, image.device):
            embedding = self._teacher(_as_image(kept.contiguous(memory_format=torch.channels_last)))
        return Views(kept, labels, extent, embedding)

    def _refill(self) -> None:
        """Fill the ring of a resumed run with what it held."""
        done = self.progress.epoch * self.batches.per_epoch + self.progress.step
        first = max(0, done - -(-self.config.distillation.views // self.config.fresh))
        self._ring.start_at(first * self.config.fresh)
        with self.session.reporter.bar("encoding again what was kept", done - first) as bar:
            for epoch, step, batch in self._again(first, done):
                moved = batch.to(self.session.device)
                self._ring.add(self._views(moved, self.generator(epoch, step)))
                bar.update()

    def _again(self, first: int, end: int) -> Iterator[tuple[int, int, Batch]]:
        """Yield the batches of the run's steps from `first` to before `end`, with epoch and step."""
        while first < end:
            epoch, step = divmod(first, self.batches.per_epoch)
            self.batches.start_at(epoch, step)
            for batch in self.loader:
                yield epoch, step, batch
                step, first = step + 1, first + 1
                if first == end:
                    break


def _as_image(kept: Tensor) -> Tensor:
    return kept.to(torch.float32) / 255

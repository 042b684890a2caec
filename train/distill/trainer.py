"""One stage of a distillation: a training run whose student imitates a teacher's embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.models.weight_files import weights_digest
from litemed.train.augment import augment
from litemed.train.dataset import Batch, Data, TrainingSet
from litemed.train.distill.config import DistillConfig
from litemed.train.distill.images import MixedSampler, MixedSource
from litemed.train.distill.networks import EmbeddingLoss
from litemed.train.distill.ring import Ring, Views, bytes_of_view
from litemed.train.distributed import Processes
from litemed.train.examples import draw_boxes, generator_of
from litemed.train.history import EMBEDDING, LOSSES
from litemed.train.loader import training_loader, training_sampler
from litemed.train.loop import Trainer
from litemed.train.losses import summed_losses
from litemed.train.network import compile_blocks, decode_boxes, is_compiled, uses_bfloat16
from litemed.train.progress import Reporter
from litemed.train.sampler import Batches


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
        others: as for `Trainer`.

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
        images: list[Path],
        folder: Path,
        processes: Processes,
        reporter: Reporter,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.parts = (EMBEDDING, *LOSSES) if config.distillation.masks else (EMBEDDING,)
        source = MixedSource(data.training, images)
        super().__init__(config, student, data, folder, processes, reporter, stop)
        self._base_digest = weights_digest(teacher.state)
        self.network.model.prompt_encoder.requires_grad_(False)
        device, run = processes.device, config.run
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
        everything = TrainingSet(source, run.size, min_object_pixels=0)  # for the embedding needs no object
        self.loader = training_loader(everything, self.batches, run, self._workers, device)
        self._teacher = teacher.model(run.size).image_encoder.to(device)
        self._teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._learn = EmbeddingLoss(self.network.model.image_encoder)
        if is_compiled(config.hardware, device):
            compile_blocks(self._teacher)
        views = config.distillation.views
        self._ring = Ring(views, run.size, device)
        reporter.line(f"keeping {views} views, {views * bytes_of_view(run.size) / 1e9:.1f} GB on {device}")

    def run(self) -> bool:
        """Train to the end, or until told to stop, as `Trainer` does.

        A resumed run first has the teacher encode once more what the ring held; it stops only after that.
        """
        self._refill()
        return super().run()

    def step(self, batch: Batch) -> None:
        """Take one optimizer step: on what is drawn from the ring, once `batch` is in it."""
        progress, config = self.progress, self.config
        self._rate.before_step(progress.epoch * self.batches.per_epoch + progress.step)
        generator = self._generator(progress.epoch, progress.step)
        self._ring.add(self._views(batch, generator))
        images = config.run.batch_size
        views = self._ring.draw(images, generator)
        with self._autocast():
            embedding, error = self._learn(_as_image(views.image), views.embedding)
        means = torch.stack([error, error])
        if config.distillation.masks:
            prompts = draw_boxes(views.labels, views.extent, config.prompts, generator)
            with self._autocast():
                logits, iou = decode_boxes(self.network.model, embedding, prompts.boxes, prompts.image_of_box)
            summed = summed_losses(logits, iou, prompts, images, config.loss)
            total, *parts = summed / prompts.weights.sum().clamp(min=1)
            means = torch.stack([error + total, error, *parts])
        self._descend(images * means, torch.full_like(error, images))

    def _autocast(self) -> torch.autocast:
        device = self._processes.device
        return torch.autocast(
            device.type, torch.bfloat16, enabled=uses_bfloat16(self.config.hardware, device)
        )

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        return generator_of(self.config.run.seed, epoch, step, 0, self._processes.device)

    @torch.no_grad()
    def _views(self, batch: Batch, generator: torch.Generator) -> Views:
        """Augment a batch and have the teacher encode it."""
        image, labels, extent = augment(
            batch.image, batch.labels, batch.extent, self.config.augmentation, generator
        )
        kept = (image * 255).round().to(torch.uint8)
        with self._autocast():
            embedding = self._teacher(_as_image(kept.contiguous(memory_format=torch.channels_last)))
        return Views(kept, labels, extent, embedding)

    def _refill(self) -> None:
        """Fill the ring of a resumed run with what it held."""
        done = self.progress.epoch * self.batches.per_epoch + self.progress.step
        first = max(0, done - -(-self.config.distillation.views // self.config.fresh))
        self._ring.start_at(first * self.config.fresh)
        for epoch, step, batch in self._again(first, done):
            self._ring.add(self._views(batch.to(self._processes.device), self._generator(epoch, step)))
            if self._reporter.is_due():
                self._reporter.status(f"encoding again what was kept: {len(self._ring)} views")

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

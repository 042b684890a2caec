"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.models.weight_files import weights_digest
from litemed.train.averaging import averaged
from litemed.train.config import Config
from litemed.train.dataset import Batch, Data, TrainingSet
from litemed.train.distributed import Processes
from litemed.train.errors import TrainingError
from litemed.train.examples import generator_of, make_examples
from litemed.train.history import LOSSES, Counts, EventLog, summary, trained_row, untrained_row, write_history
from litemed.train.loader import loader_workers, timed, training_loader, training_sampler
from litemed.train.losses import summed_losses
from litemed.train.network import (
    TrainedNetwork,
    build_network,
    build_optimizer,
    compile_blocks,
    is_compiled,
    uses_bfloat16,
)
from litemed.train.outputs import write_weights
from litemed.train.progress import Progress, Reporter
from litemed.train.sampler import Batches
from litemed.train.schedule import LearningRate
from litemed.train.state import State, write_state
from litemed.train.tables import as_tables
from litemed.train.validation import ValidationScores, validate

BEST, LAST = "best.safetensors", "last.safetensors"

_AGREE_EVERY = 10
"""Steps after which several processes ask one another whether to stop; asking waits for the GPU."""


class Trainer:
    """One run: its network, optimizer, loader and progress.

    `loader` yields what `batches` is set to; `step` learns from one batch; `run` does everything.

    Args:
        config: all settings.
        base: the weights to start from.
        data: slices to train on (at least one) and to score on.
        folder: where everything is written; exists.
        processes: this process among those that train together.
        reporter: where progress is printed.
        stop: asked after each step; True ends the run with its state written, to be resumed.

    Raises:
        UsageError: settings that do not fit the data, the base or the processes.
    """

    parts: tuple[str, ...] = LOSSES
    """Of what the loss is the sum, by the names that the log gives them."""

    def __init__(
        self,
        config: Config,
        base: Checkpoint,
        data: Data,
        folder: Path,
        processes: Processes,
        reporter: Reporter,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.progress = Progress()
        self._base_digest = weights_digest(base.state)
        self._data = data
        self._folder = folder
        self._processes = processes
        self._reporter = reporter
        self._stop = stop
        device, run, hardware = processes.device, config.run, config.hardware
        self.network = build_network(base, run.size, run.tune, config.lora, run.seed).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = averaged(self.network, run.average)
        if is_compiled(hardware, device):
            compile_blocks(self.network)
        self._forward = processes.wrap(self.network.train())
        sampler, warnings = training_sampler(config, data.training)
        for warning in warnings:
            reporter.line(f"warning: {warning}")
        self.batches = Batches(sampler, run.batch_size, processes.rank, processes.world)
        self._workers = loader_workers(hardware.workers, processes.world)
        samples = TrainingSet(data.training, run.size, config.prompts.min_object_pixels)
        self.loader = training_loader(samples, self.batches, run, self._workers, device)
        self._optimizer = build_optimizer(self.network, config.optimizer)
        self._rate = LearningRate(self._optimizer, config.schedule, run.epochs * self.batches.per_epoch)
        self._sums = torch.zeros(2 + len(self.parts), dtype=torch.float64, device=device)

    def resume(self, state: State) -> None:
        """Go on from a state of this run: same settings, base and data, which the caller has checked."""
        self.network.load_state_dict(state.model)
        if self._average is not None and state.average is not None:
            self._average.load_state_dict(state.average)
        self._optimizer.load_state_dict(state.optimizer)
        self._rate.load_state_dict(state.schedule)
        self.progress = Progress(**state.progress)
        if not self._processes.is_first:  # sums of all processes go on in the first
            self.progress.clear_counts()

    def run(self) -> bool:
        """Train to the end, or until told to stop; returns whether it reached the end.

        Raises:
            TrainingError: the loss is not finite, or no slice can be used.
            OutputError: something cannot be written.
        """
        events = EventLog(self._folder if self._processes.is_first else None)
        try:
            if len(self._data.validation) and self.progress.is_new:
                events.add(self._score_base())
            while self.progress.epoch < self.config.run.epochs:
                if not self._train_epoch():
                    self._save_state()
                    return False
                events.add(self._end_epoch())
                if self.progress.epoch < self.config.run.epochs and self._stops():
                    return False
            return True
        finally:
            events.close()

    def _score_base(self) -> dict[str, Any]:
        """Score the weights that the run starts from, for comparison; returns row 0 of the history."""
        scores = self._validate()
        row = untrained_row(scores)
        self.progress.history.append(row)
        if scores.macro is not None:
            self._reporter.line(
                f"before training: DSC {scores.macro:.4f} (ellipse in the box {scores.macro_ellipse:.4f})"
            )
        return row

    def _train_epoch(self) -> bool:
        """Train on the rest of the epoch; returns False when told to stop before its end."""
        progress = self.progress
        self._sums.copy_(torch.tensor(progress.losses or [0.0], dtype=torch.float64))
        self.network.train()
        began, seconds_before = time.monotonic(), progress.seconds
        self.batches.start_at(progress.epoch, progress.step)
        for batch, waited in timed(self.loader):
            progress.skipped += len(batch.skipped)
            self._reporter.skipped(batch.skipped)
            self.step(batch.to(self._processes.device))
            progress.step += 1
            progress.waited_s += waited
            progress.seconds = seconds_before + time.monotonic() - began
            if self._reporter.is_due():
                self._reporter.status(self._status())
            if progress.step == self.batches.per_epoch:
                break
            if self._stops():
                return False
            if progress.step % self.config.run.state_every_steps == 0:
                self._save_state()
        return True

    def step(self, batch: Batch) -> None:
        """Take one optimizer step on a batch that is on the device already."""
        progress, config, processes = self.progress, self.config, self._processes
        self._rate.before_step(progress.epoch * self.batches.per_epoch + progress.step)
        rank, device = processes.rank, processes.device
        generator = generator_of(config.run.seed, progress.epoch, progress.step, rank, device)
        image, prompts = make_examples(batch, config, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config.hardware, device)):
            logits, iou = self._forward(image, prompts.boxes, prompts.image_of_box)
        summed = summed_losses(logits, iou, prompts, len(image), config.loss)
        self._descend(summed, prompts.weights.sum())

    def _descend(self, summed: Tensor, own: Tensor) -> None:
        """Change the weights once.

        summed: (1 + parts,), sums of the loss and its parts over those images of this process that count, of
        which there are `own`.
        """
        config, processes = self.config, self._processes
        # Of all images in the whole batch, whichever process holds them. Gradients are averaged over the
        # processes, hence the factor.
        images = processes.sum(own.clone()).clamp(min=1)
        self._optimizer.zero_grad(set_to_none=True)
        (summed[0] * processes.world / images).backward()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.tuned(), config.optimizer.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.network)
        self._sums[0] += own
        self._sums[1:] += summed.detach()

    def _end_epoch(self) -> dict[str, Any]:
        """Score, write and count the epoch; returns its row of the history."""
        progress, config = self.progress, self.config
        losses, rate = self._mean_losses(), self._rate.value
        self._rate.after_epoch(losses["loss"])
        is_last = progress.epoch + 1 == config.run.epochs
        scores = None
        if is_last or (progress.epoch + 1) % config.validation.every_epochs == 0:
            scores = self._validate()
        row = trained_row(progress.epoch + 1, rate, losses, self._counts(), scores)
        progress.history.append(row)
        # Without validation slices the training loss has to do.
        score = (scores.macro if scores else None) if len(self._data.validation) else -losses["loss"]
        is_best = score is not None and (progress.best is None or score > progress.best)
        if is_best:
            progress.best, progress.best_epoch = score, progress.epoch + 1
        progress.next_epoch()
        if self._processes.is_first:
            for name in [LAST] + [BEST] * is_best:
                write_weights(self._folder / name, self._outcome(), config.lora, self._base_digest)
            write_history(self._folder, progress.history)
        self._save_state()
        self._reporter.line(summary(row, config.run.epochs, is_best))
        return row

    def _mean_losses(self) -> dict[str, float]:
        images, *sums = self._processes.sum(self._sums.clone()).tolist()
        if not images:
            raise TrainingError("no training slice could be used in a whole epoch: see the lines above")
        self._check_finite(sums[0])
        means = (total / images for total in sums)
        # Rounded, for the weights of an image's boxes do not quite add up to 1.
        return {"samples": round(images), **dict(zip(("loss", *self.parts), means, strict=True))}

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of epoch {self.progress.epoch + 1} is not finite: lower optimizer.lr, or use "
                'hardware.precision = "float32"; the last state, of before, can be resumed'
            )

    def _validate(self) -> ValidationScores:
        self._reporter.status("validating")
        model, settings = self._outcome().model, self.config.validation
        return validate(model, self._data.validation, settings, self._workers, self._processes)

    def _outcome(self) -> TrainedNetwork:
        """Return what is scored and written: the network, or the average of its weights."""
        return self.network if self._average is None else cast(TrainedNetwork, self._average.module)

    def _counts(self) -> Counts:
        """Return what all processes counted in this epoch."""
        progress, world = self.progress, self._processes.world
        own = torch.tensor([progress.skipped, progress.seconds, progress.waited_s], dtype=torch.float64)
        skipped, seconds, waited = self._processes.sum(own).tolist()
        return Counts(int(skipped), seconds / world, waited / world)

    def _stops(self) -> bool:
        """Whether any process was told to stop; all of them come to the same answer at the same step."""
        if self._processes.world > 1 and self.progress.step % _AGREE_EVERY:
            return False
        return self._processes.any(self._stop())

    def _status(self) -> str:
        progress, steps = self.progress, self.batches.per_epoch
        images, total = self._sums[:2].tolist()
        rate = progress.step * self.config.run.batch_size / progress.seconds
        return (
            f"epoch {progress.epoch + 1}/{self.config.run.epochs} step {progress.step}/{steps} "
            f"loss {total / max(images, 1):.4f} lr {self._rate.value:.2g} {rate:.1f} samples/s"
        )

    def _save_state(self) -> None:
        """Write the state; every process has to call."""
        progress = dataclasses.asdict(self.progress)
        if self.progress.step:
            progress["losses"] = self._processes.sum(self._sums.clone()).tolist()
            self._check_finite(progress["losses"][1])
            counts = self._counts()
            progress["skipped"] = counts.skipped
            progress["waited_s"] = counts.waited_s * self._processes.world  # of which the others know nothing
        if not self._processes.is_first:
            return
        write_state(
            self._folder,
            State(
                config=as_tables(self.config),
                base=self._base_digest,
                data=self._data.digest,
                model=self.network.state_dict(),
                average=None if self._average is None else self._average.state_dict(),
                optimizer=self._optimizer.state_dict(),
                schedule=self._rate.state_dict(),
                progress=progress,
            ),
        )

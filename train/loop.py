"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch

from litemed.export.checkpoint import Checkpoint, weights_digest
from litemed.train.averaging import averaged
from litemed.train.config import Config
from litemed.train.dataset import Batch, Data
from litemed.train.distributed import Processes
from litemed.train.errors import TrainingError
from litemed.train.history import EventLog, score_columns, summary, untrained_row, write_history
from litemed.train.loader import loader_workers, timed, training_loader, training_sampler
from litemed.train.losses import mask_losses, pixels_in
from litemed.train.network import (
    TrainedNetwork,
    batch_forward,
    build_network,
    build_optimizer,
    uses_bfloat16,
)
from litemed.train.outputs import write_weights
from litemed.train.pixels import pixel_loss
from litemed.train.pool import EmbeddingPool
from litemed.train.progress import Progress, Reporter
from litemed.train.sampler import Batches
from litemed.train.schedule import LearningRate
from litemed.train.state import State, random_state, set_random_state, write_state
from litemed.train.tables import as_tables
from litemed.train.tokens import sample_tokens
from litemed.train.validation import ValidationScores, validate
from litemed.train.windows import Windows, in_windows

BEST, LAST = "best.safetensors", "last.safetensors"

_AGREE_EVERY = 10
"""Steps after which several processes ask one another whether to stop; asking waits for the GPU."""

_REASONS_SHOWN = 20
"""Lines about slices that could not be used, in a run; beyond them they are only counted."""


_NOTHING_USABLE = "no training slice could be used in a whole epoch: see the lines above"


class Trainer:
    """One run: its network, optimizer, loader and progress.

    `loader` yields what `batches` is set to; `step` learns from one batch; `run` does everything.

    Args:
        config: all settings.
        base: the weights to start from; None draws them at random.
        data: slices to train on (at least one) and to score on.
        folder: where everything is written; exists.
        processes: this process among those that train together.
        reporter: where progress is printed.
        stop: asked after each step; True ends the run with its state written, to be resumed.

    Raises:
        UsageError: settings that do not fit the data, the base or the processes.
    """

    def __init__(
        self,
        config: Config,
        base: Checkpoint | None,
        data: Data,
        folder: Path,
        processes: Processes,
        reporter: Reporter,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.progress = Progress()
        self._base_digest = None if base is None else weights_digest(base.state)
        self._data = data
        self._folder = folder
        self._processes = processes
        self._reporter = reporter
        self._stop = stop
        self._reasons_left = _REASONS_SHOWN
        device, run = processes.device, config.run
        config.check()
        self.network = build_network(
            base, run.size, run.tune, config.lora, run.seed, config.loss.pixels > 0
        ).to(device)
        self.network.freeze(run.freeze)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = averaged(self.network, run.average)
        self._forward = processes.wrap(self.network.train())
        if base is not None and base.crop_masks and not run.crop_masks:
            reporter.line(
                f"warning: {base.file} was trained for masks that end at their boxes; without "
                "run.crop_masks=true it learns otherwise"
            )
        sampler, warnings = training_sampler(config, data.training)
        for warning in warnings:
            reporter.line(f"warning: {warning}")
        self.batches = Batches(sampler, run.batch_size, processes.rank, processes.world)
        self._workers = loader_workers(config.hardware.workers, processes.world)
        self.loader = training_loader(config, data.training, self.batches, self._workers, device)
        self._optimizer = build_optimizer(self.network, config.optimizer)
        self.steps_per_epoch = self.batches.per_epoch * max(1, config.pool.passes)
        self._rate = LearningRate(self._optimizer, config.schedule, run.epochs * self.steps_per_epoch)
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def resume(self, state: State) -> None:
        """Go on from a state of this run: same settings, base and data, which the caller has checked."""
        self.network.load_state_dict(state.model)
        if self._average is not None and state.average is not None:
            self._average.load_state_dict(state.average)
        self._optimizer.load_state_dict(state.optimizer)
        self._rate.load_state_dict(state.schedule)
        self.progress = Progress(**state.progress)
        if not self._processes.is_first:  # sums of all processes go on in the first
            self.progress.losses, self.progress.skipped, self.progress.waited_s = [0.0] * 5, 0, 0.0
        set_random_state(state.random)

    def run(self) -> bool:
        """Train to the end, or until told to stop; returns whether it reached the end.

        Raises:
            TrainingError: the loss is not finite, or no slice can be used.
            OutputError: something cannot be written.
        """
        events = EventLog(self._folder if self._processes.is_first else None)
        try:
            if self._base_digest is not None and len(self._data.validation) and self.progress.is_new:
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
        self._sums = torch.tensor(progress.losses, dtype=torch.float64, device=self._processes.device)
        self.network.train()
        began, seconds_before = time.monotonic(), progress.seconds
        pooled = self.config.pool.passes > 0
        self.batches.start_at(progress.epoch, 0 if pooled else progress.step)
        batches = self._pooled() if pooled else self.loader
        if batches is None:
            return False
        for batch, waited in timed(batches):
            self._note_skipped(batch)
            self.step(batch.to(self._processes.device))
            progress.step += 1
            progress.waited_s += waited
            progress.seconds = seconds_before + time.monotonic() - began
            if self._reporter.is_due():
                self._reporter.status(self._status())
            if progress.step == self.steps_per_epoch:
                break
            if self._stops():
                return False
            if progress.step % self.config.run.state_every_steps == 0:
                self._save_state()
        return True

    def _pooled(self) -> Iterable[Batch] | None:
        """Encode the epoch's images; returns the batches of the steps yet to do, or None if told to stop."""
        progress, config = self.progress, self.config
        pool = EmbeddingPool(self.network, config, progress.epoch, self._processes.rank)
        progress.skipped = 0  # a resumed epoch meets them again
        for number, batch in enumerate(self.loader, 1):
            self._note_skipped(batch)
            pool.add(batch.to(self._processes.device), uses_bfloat16(config, self._processes.device))
            if self._stops():
                return None
            if self._reporter.is_due():
                epoch = f"epoch {progress.epoch + 1}/{config.run.epochs}"
                self._reporter.status(f"{epoch} encoding {number}/{self.batches.per_epoch}")
        if not len(pool):
            raise TrainingError(_NOTHING_USABLE)
        images = config.run.batch_size // self._processes.world
        steps = range(progress.step, self.steps_per_epoch)
        return (pool.draw(images, step) for step in steps)

    def step(self, batch: Batch) -> None:
        """Take one optimizer step on a batch that is on the device already."""
        step = self.progress.epoch * self.steps_per_epoch + self.progress.step
        self._rate.before_step(step)
        device, size = self._processes.device, self.config.run.size
        windows = None
        if self.config.run.windows and not batch.encoded:
            batch, windows = in_windows(batch)
        allowed = None if batch.shown is None else batch.shown[batch.image_of_box]
        tokens = sample_tokens(batch.boxes, size, self.config.prompts.tokens, allowed)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(self.config, device)):
            logits, iou, pixels = batch_forward(self._forward, batch, tokens, windows)
        masks, weights = batch.masks, None
        if tokens is not None:
            masks, weights = tokens.of_masks(masks), tokens.pixel_weight
        if self.config.run.crop_masks:
            inside = pixels_in(batch.boxes, size)
            weights = inside.float() if tokens is None else tokens.of_masks(inside) * tokens.pixel_weight
        parts = mask_losses(logits, iou, masks, self.config.loss, weights)
        # Of all images in the whole batch, whichever process holds them. Gradients are averaged over the
        # processes, hence the factor.
        images = self._processes.sum(torch.tensor(float(batch.images), device=device)).clamp(min=1)
        losses = torch.stack([parts.dice, parts.focal, parts.iou, parts.total(self.config.loss)])
        summed = (losses * batch.weights).sum(1)
        if pixels is not None:
            summed[3] += self.config.loss.pixels * self._pixel_loss(pixels, batch, windows)
        self._optimizer.zero_grad(set_to_none=True)
        (summed[3] * self._processes.world / images).backward()
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.tuned(), self.config.optimizer.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.network)
        self._sums[:4] += summed.detach()
        self._sums[4] += batch.images

    def _pixel_loss(self, pixels: torch.Tensor, batch: Batch, windows: Windows | None) -> torch.Tensor:
        """Return the sum over the images that have boxes."""
        image, labels = batch.image, batch.labels
        if windows is not None:
            image, labels = windows.of_images(image), windows.of_images(labels[:, None])[:, 0]
        counts = torch.zeros(len(image), device=image.device).index_add_(0, batch.image_of_box, batch.weights)
        return (pixel_loss(pixels, image, labels) * counts).sum()

    def _end_epoch(self) -> dict[str, Any]:
        """Score, write and count the epoch; returns its row of the history."""
        progress, config = self.progress, self.config
        losses, rate = self._mean_losses(), self._rate.value
        self._rate.after_epoch(losses["loss"])
        is_last = progress.epoch + 1 == config.run.epochs
        scores = None
        if is_last or (progress.epoch + 1) % config.validation.every_epochs == 0:
            scores = self._validate()
        row = self._row(losses, rate, scores)
        progress.history.append(row)
        # Without validation slices the training loss has to do.
        score = (scores.macro if scores else None) if len(self._data.validation) else -losses["loss"]
        is_best = score is not None and (progress.best is None or score > progress.best)
        if is_best:
            progress.best, progress.best_epoch = score, progress.epoch + 1
        progress.next_epoch()
        if self._processes.is_first:
            for name in [LAST] + [BEST] * is_best:
                write_weights(
                    self._folder / name,
                    self._outcome(),
                    config.lora,
                    self._base_digest,
                    config.run.crop_masks,
                )
            write_history(self._folder, progress.history)
        self._save_state()
        self._reporter.line(summary(row, config.run.epochs, is_best))
        return row

    def _mean_losses(self) -> dict[str, float]:
        dice, focal, iou, total, images = self._processes.sum(self._sums.clone()).tolist()
        if not images:
            raise TrainingError(_NOTHING_USABLE)
        self._check_finite(total)
        means = {"loss": total, "dice": dice, "focal": focal, "iou": iou}
        return {"samples": images, **{name: value / images for name, value in means.items()}}

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of epoch {self.progress.epoch + 1} is not finite: lower optimizer.lr, or use "
                'hardware.precision = "float32"; the last state, of before, can be resumed'
            )

    def _validate(self) -> ValidationScores:
        self._reporter.status("validating")
        config = self.config
        return validate(
            self._outcome(),
            self._data.validation,
            config.run.size,
            config.validation.slices_per_modality,
            config.run.batch_size,
            self._workers,
            self._processes,
            config.run.crop_masks,
        )

    def _outcome(self) -> TrainedNetwork:
        """Return what is scored and written: the network, or the average of its weights."""
        return self.network if self._average is None else cast(TrainedNetwork, self._average.module)

    def _row(self, losses: dict[str, float], rate: float, scores: ValidationScores | None) -> dict[str, Any]:
        progress = self.progress
        counts = torch.tensor([progress.skipped, progress.seconds, progress.waited_s], dtype=torch.float64)
        skipped, seconds, waited = self._processes.sum(counts).tolist()
        seconds /= self._processes.world
        return {
            "epoch": progress.epoch + 1,
            "samples": int(losses["samples"]),
            "lr": rate,
            **{name: losses[name] for name in ("loss", "dice", "focal", "iou")},
            "skipped": int(skipped) + (scores.skipped if scores else 0),
            "seconds": seconds,
            "samples_per_second": losses["samples"] / seconds,
            "wait_share": waited / self._processes.world / seconds,
            **score_columns(scores),
        }

    def _stops(self) -> bool:
        """Whether any process was told to stop; all of them come to the same answer at the same step."""
        if self._processes.world == 1:
            return self._stop()
        if self.progress.step % _AGREE_EVERY:
            return False
        return bool(self._processes.sum(torch.tensor(float(self._stop()))).item())

    def _note_skipped(self, batch: Batch) -> None:
        self.progress.skipped += len(batch.skipped)
        for reason in batch.skipped[: self._reasons_left]:
            self._reporter.line(f"warning: skipped {reason}")
        self._reasons_left -= min(self._reasons_left, len(batch.skipped))

    def _status(self) -> str:
        progress, steps = self.progress, self.steps_per_epoch
        total, images = self._sums[3:].tolist()
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
            self._check_finite(progress["losses"][3])
            counts = torch.tensor([self.progress.skipped, self.progress.waited_s], dtype=torch.float64)
            skipped, progress["waited_s"] = self._processes.sum(counts).tolist()
            progress["skipped"] = int(skipped)
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
                random=random_state(),
            ),
        )

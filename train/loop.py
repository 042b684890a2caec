"""The training loop."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from litemed.models.checkpoint import Checkpoint
from litemed.models.weight_files import weights_digest
from litemed.train import losses, run_files
from litemed.train.config import Config
from litemed.train.dataset import Batch, Data, generator_of, make_examples, training_loader
from litemed.train.network import TrainedNetwork, autocast, build_network, compile_blocks
from litemed.train.optimise import LearningRate, averaged, build_optimizer
from litemed.train.prompts import MIN_OBJECT_PIXELS
from litemed.train.run_files import BEST, LAST, Inputs, Progress, Reporter, State, TrainingError
from litemed.train.sampler import Batches, training_sampler
from litemed.train.validation import Stopped, validate

CLIP_NORM = 1.0  # to which gradients are scaled down
STATE_EVERY = 500  # steps after which the state to resume from is written within an epoch
_COUNTS = ("skipped", "seconds", "waited", "samples", "loss")


@dataclass(frozen=True)
class Session:
    """Where a run takes place.

    folder: where everything is written; exists. inputs: what the run reads, for its records. stop: asked
    after each step, and each slice that is scored; True ends the run with its state written, to be resumed.
    """

    folder: Path
    inputs: Inputs
    device: torch.device
    reporter: Reporter
    stop: Callable[[], bool] = lambda: False


class Trainer:
    """One run: its network, optimizer, loader and progress.

    `loader` yields what `batches` is set to; `step` learns from one batch; `run` does everything. `totals`
    are sums over this epoch, by the names `_COUNTS` and `parts`.
    Raises UsageError for settings that do not fit the data or the base.
    """

    parts: tuple[str, ...] = losses.PARTS  # of which the loss is the sum, as the log names them

    def __init__(self, config: Config, base: Checkpoint, data: Data, session: Session) -> None:
        self.config = config
        self.progress = Progress()
        self.session = session
        self._data = data
        self._validates = bool(len(data.validation) or data.volumes)
        self._base_digest = weights_digest(base.state)
        run, device = config.run, session.device
        self.network = build_network(base, run, config.lora)
        self.network.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = averaged(self.network, run.average)
        compile_blocks(self.network, config.hardware, device)
        sampler, warnings = training_sampler(config, data.training)
        for warning in warnings:
            session.reporter.line(f"warning: {warning}")
        self.batches = Batches(sampler, run.batch_size)
        self.loader = training_loader(data.training, MIN_OBJECT_PIXELS, self.batches, config, device)
        self._optimizer = build_optimizer(self.network, config.optimizer)
        self._rate = LearningRate(self._optimizer, config.schedule, run.epochs * self.batches.per_epoch)
        self.totals = torch.zeros(len(_COUNTS) + len(self.parts), dtype=torch.float64, device=device)

    def resume(self, state: State) -> None:
        """Go on from a state of this run: same settings and inputs, which the caller has checked."""
        self.network.load_state_dict(state.model)
        if self._average is not None and state.average is not None:
            self._average.load_state_dict(state.average)
        self._optimizer.load_state_dict(state.optimizer)
        self._rate.plateau.load_state_dict(state.schedule)
        self.progress = Progress(**state.progress)
        if self.progress.totals:
            self.totals.copy_(torch.tensor(self.progress.totals, dtype=torch.float64))

    def run(self) -> bool:
        """Train to the end, or until told to stop; returns whether it reached the end.

        Raises TrainingError when the loss is not finite, or no slice can be used.
        """
        status, here = "failed", self.session
        run_files.write_report(here.folder, "running", self.config, here.inputs, here.device, self.progress)
        try:
            status = "finished" if self._train() else "stopped"
        except Stopped:
            self._save_state()
            status = "stopped"
        finally:
            run_files.write_report(here.folder, status, self.config, here.inputs, here.device, self.progress)
        return status == "finished"

    def _train(self) -> bool:
        progress, reporter, epochs = self.progress, self.session.reporter, self.config.run.epochs
        if self._validates and not (progress.epoch or progress.step):
            progress.history[:] = [{"epoch": 0, "samples": 0, **self._validate()}]
            reporter.line(f"before training:{_dsc_of(progress.history[0])}")
        while progress.epoch < epochs:
            if not self._train_epoch():
                self._save_state()
                return False
            self._end_epoch()
            if progress.epoch < epochs and self.session.stop():
                return False
        before = progress.history[0]
        start = self._score(before) if not before["epoch"] else None
        if start is not None and progress.best is not None and progress.best <= start:
            reporter.line(
                f"warning: no epoch scored above the weights that training began from:{_dsc_of(before)}"
            )
        return True

    def _train_epoch(self) -> bool:
        """Train on the rest of the epoch; returns False when told to stop before its end."""
        progress, reporter, steps = self.progress, self.session.reporter, self.batches.per_epoch
        if progress.step == steps:  # stopped when it was scored
            return True
        self.network.train()
        self.batches.start_at(progress.epoch, progress.step)
        with reporter.bar(f"epoch {progress.epoch + 1}", steps, progress.step) as bar:
            began = time.monotonic()
            for batch in self.loader:
                waited = time.monotonic() - began
                reporter.skipped(batch.skipped)
                self.step(batch)
                progress.step += 1
                for i, count in enumerate((len(batch.skipped), time.monotonic() - began, waited)):
                    self.totals[i] += count
                began = time.monotonic()
                bar.update()
                if progress.step == steps:
                    break
                if self.session.stop():
                    return False
                if progress.step % STATE_EVERY == 0:
                    self._save_state()
        return True

    def step(self, batch: Batch) -> None:
        """Take one optimizer step on a batch."""
        progress, device = self.progress, self.session.device
        self._rate.before_step(progress.epoch * self.batches.per_epoch + progress.step)
        generator = generator_of(self.config.run.seed, progress.epoch, progress.step, device)
        summed = self.losses(batch.to(device), generator)
        self._optimizer.zero_grad(set_to_none=True)
        (summed[1] / summed[0].detach().clamp(min=1)).backward()
        torch.nn.utils.clip_grad_norm_(self.network.tuned(), CLIP_NORM)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.network)
        self.totals[3:] += summed.detach()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return (2 + parts,): how many images count, and sums over them of the loss and of its parts."""
        config, device = self.config, self.session.device
        image, prompts = make_examples(batch, config, generator)
        with autocast(config.hardware, device):
            logits, iou = self.network(image, prompts.boxes, prompts.image_of_box)
        summed = losses.summed_losses(logits, iou, prompts, len(image), config.loss)
        return torch.cat([prompts.weights.sum()[None], summed])

    def _end_epoch(self) -> None:
        """Score, write and count the epoch."""
        progress, config = self.progress, self.config
        row = {"epoch": progress.epoch + 1, "lr": self._optimizer.param_groups[0]["lr"], **self._means()}
        is_due = row["epoch"] == config.run.epochs or row["epoch"] % config.validation.every_epochs == 0
        if is_due and self._validates:
            scores = self._validate()
            row |= scores | {"skipped": row["skipped"] + scores["skipped"]}
        self._rate.after_epoch(row["loss"])
        # Without anything to validate on the training loss has to do.
        score = self._score(row) if self._validates else -row["loss"]
        is_best = score is not None and (progress.best is None or score > progress.best)
        if is_best:
            progress.best, progress.best_epoch = score, row["epoch"]
        progress.history.append(row)
        progress.epoch, progress.step = row["epoch"], 0
        self.totals.zero_()
        for name in [LAST] + [BEST] * is_best:
            path = self.session.folder / name
            run_files.write_weights(path, self._outcome(), config.lora.rank, self._base_digest)
        run_files.write_log(self.session.folder, progress.history)
        self._save_state()
        skipped = f" skipped {row['skipped']} slices" if row["skipped"] else ""
        parts = " ".join(f"{name} {row[name]:.4f}" for name in self.parts)
        self.session.reporter.line(
            f"epoch {row['epoch']}/{config.run.epochs} loss {row['loss']:.4f} ({parts}){_dsc_of(row)}"
            f"{' best' if is_best else ''} lr {row['lr']:.2g} {row['samples_per_second']:.1f} samples/s, "
            f"waited {row['wait_share']:.0%}{skipped}"
        )

    def _means(self) -> dict[str, Any]:
        """Return the columns of the log about this epoch's training."""
        totals = dict(zip((*_COUNTS, *self.parts), self._finite_totals(), strict=True))
        skipped, seconds, waited, images = (totals.pop(name) for name in _COUNTS[:4])
        if not images:
            raise TrainingError("no training slice could be used in a whole epoch: see the lines above")
        return {
            "samples": round(images),  # the weights of an image's boxes do not quite add up to 1
            **{name: total / images for name, total in totals.items()},
            "skipped": int(skipped),
            "seconds": seconds,
            "samples_per_second": images / seconds,
            "wait_share": waited / seconds,
        }

    def _finite_totals(self) -> list[float]:
        """Return the sums over this epoch. Raises TrainingError for a loss not finite."""
        totals: list[float] = self.totals.tolist()
        if not math.isfinite(totals[4]):
            raise TrainingError(
                f"the loss of epoch {self.progress.epoch + 1} is not finite: lower optimizer.lr, or use "
                'hardware.precision = "float32"; the last state, of before, can be resumed'
            )
        return totals

    def _validate(self) -> dict[str, Any]:
        """Return the columns of the log about the validation slices and volumes. Raises Stopped."""
        model, settings = self._outcome().model, self.config.validation
        means, skipped = validate(model, self._data, settings, self.session.device, self.session.stop)
        columns: dict[str, Any] = {"skipped": skipped}
        for part, scores in means.items():
            columns[part] = sum(scores.values()) / len(scores)
            columns |= {f"{part}_{name}": dsc for name, dsc in scores.items()}
        return columns

    def _score(self, row: dict[str, Any]) -> float | None:
        """Return what of an epoch's row decides which one is best; None if nothing was scored."""
        slices, volumes, share = row.get("dsc"), row.get("dsc_volumes"), self.config.validation.volume_share
        if slices is None or volumes is None:
            return volumes if slices is None else slices
        return (1 - share) * slices + share * volumes

    def _outcome(self) -> TrainedNetwork:
        """Return what is scored and written: the network, or the average of its weights."""
        return self.network if self._average is None else cast(TrainedNetwork, self._average.module)

    def _save_state(self) -> None:
        self.progress.totals = self._finite_totals() if self.progress.step else []
        state = State(
            config=asdict(self.config),
            inputs=self.session.inputs,
            model=self.network.state_dict(),
            average=None if self._average is None else self._average.state_dict(),
            optimizer=self._optimizer.state_dict(),
            schedule=self._rate.plateau.state_dict(),
            progress=asdict(self.progress),
        )
        run_files.write_state(self.session.folder, state)


def _dsc_of(row: dict[str, Any]) -> str:
    names = {"dsc": " DSC", "dsc_volumes": " of volumes"}
    return "".join(f"{text} {row[name]:.4f}" for name, text in names.items() if name in row)

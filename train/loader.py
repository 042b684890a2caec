"""Which batches a run takes, made by processes beside the one that trains."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from litemed.runtime.modalities import MODALITIES
from litemed.train.config import Config, Run
from litemed.train.dataset import Batch, SliceSource, TrainingSet, by_source, collate
from litemed.train.sampler import Batches, ModalitySampler, modality_shares, whole_batches

_MOST_WORKERS = 16


def loader_workers(wanted: int, processes: int) -> int:
    """Return how many loader processes each of `processes` starts: `wanted`, or its share of cores for -1."""
    return max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) // processes)) if wanted < 0 else wanted


def training_sampler(config: Config, source: SliceSource) -> tuple[ModalitySampler, list[str]]:
    """Return the sampler of a run, and warnings of what the data lack or the table leaves out.

    Raises UsageError when the table gives all weight to modalities without slices.
    """
    run, sampling = config.run, config.sampling
    sources = {
        modality: [part for name, part in by_source(source, of).items() if name not in sampling.exclude]
        for modality, of in source.indices_by_modality().items()
    }
    sources = {modality: parts for modality, parts in sources.items() if parts}
    found = modality_shares(sampling, MODALITIES, tuple(sources))
    warnings = []
    if found.absent:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in found.shares.items())
        warnings.append(f"no training slices of {', '.join(found.absent)}; drawn instead: {shares}")
    if found.undrawn:
        warnings.append(f"{', '.join(found.undrawn)} weigh 0 in the table and are not drawn")
    slices = sum(len(part) for parts in sources.values() for part in parts)
    samples = whole_batches(run.samples_per_epoch or slices, run.batch_size)
    if not sampling.balance_sources:
        sources = {modality: [np.concatenate(parts)] for modality, parts in sources.items()}
    return ModalitySampler(sources, found.shares, samples, run.seed), warnings


def training_loader(
    samples: TrainingSet, batches: Batches, run: Run, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Return the loader of a run: each iteration yields what `batches` is set to."""
    before_forking()
    dataset: Dataset[Any] = samples  # its items become a Batch in `collate`
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=functools.partial(collate, size=run.size),
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        # Its own, so that starting an epoch anew takes nothing from the run's random numbers.
        generator=torch.Generator().manual_seed(run.seed),
    )


def timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield each batch and the seconds that it was waited for."""
    iterator = iter(batches)
    while True:
        asked = time.monotonic()
        batch = next(iterator, None)
        if batch is None:
            return
        yield batch, time.monotonic() - asked


def start_worker(_: int) -> None:
    """Let a loader process leave Ctrl-C to the process that trains, and end when it is told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def before_forking() -> None:
    """Keep OpenCV to one thread in this process and in the loader processes forked from it.

    Not in the loader processes: they inherit a pool without its threads, and any change of it waits for ever.
    """
    cv2.setNumThreads(1)

"""Processes beside the one that trains, which read and resize."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from litemed.train.config import Run
from litemed.train.dataset import Batch, SliceSource, load_batch
from litemed.train.sampler import Batches

_MOST_WORKERS = 16


def loader_workers(wanted: int) -> int:
    """Return how many loader processes to start: `wanted`, or for -1 one for each core."""
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0))) if wanted < 0 else wanted


def loader_of(load: Callable[[list[int]], Any], workers: int, **options: Any) -> DataLoader[Any]:
    """Return a loader that gives what `load` makes of numbers of slices; `options` say which, when.

    Its processes, if any, leave Ctrl-C and OpenCV's threads alone. OpenCV keeps to one thread in this process
    and so in those forked from it. Not in the loader processes: they inherit a pool without its threads, and
    any change of it waits for ever.
    """
    cv2.setNumThreads(1)
    return DataLoader(num_workers=workers, worker_init_fn=_start_worker, collate_fn=load, **options)


def training_loader(
    source: SliceSource, min_pixels: int, batches: Batches, run: Run, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Return the loader of a run: each iteration yields what `batches` is set to."""
    return loader_of(
        functools.partial(load_batch, source=source, size=run.size, min_pixels=min_pixels),
        workers,
        dataset=range(len(source)),
        batch_sampler=batches,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        # Its own, so that starting an epoch anew takes nothing from the run's random numbers.
        generator=torch.Generator().manual_seed(run.seed),
    )


def _start_worker(_: int) -> None:
    """Let a loader process leave Ctrl-C, and a SIGTERM to the whole group, to the process that trains.

    A second SIGTERM ends it: that process sends one to those that it waited for in vain.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
